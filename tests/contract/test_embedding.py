"""The label part of an embedding: its length, and the joint space without it."""

import numpy as np
import pytest

from contract.embedding import count_label_part, take_joint
from contract.labels import LABELS


@pytest.mark.parametrize(
    ("config", "length"), [({}, 0), ({"label_share": 0.0}, 0), ({"label_share": 0.75}, 22)]
)
def test_the_length_of_the_label_part(config, length):
    assert count_label_part(config) == length <= len(LABELS)


def test_the_joint_space_has_unit_length_without_the_label_part():
    embeddings = np.float32([[0.3, 0.4, 0.5, 0.7], [0.0, -2.0, 1.0, 1.0]])
    assert take_joint(embeddings, 2) == pytest.approx(np.array([[0.6, 0.8], [0.0, -1.0]]))
    assert take_joint(embeddings[0], 2) == pytest.approx(np.array([0.6, 0.8]))
    assert take_joint(embeddings, 0) == pytest.approx(
        embeddings / np.linalg.norm(embeddings, axis=1)[:, None]
    )


def test_a_vector_of_zeros_stays():
    assert not take_joint(np.zeros((1, 4), np.float32), 2).any()
