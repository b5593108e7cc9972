"""Which rows of a studies table the exporter's gates are run on, and what is known of them."""

import io

import numpy as np
import pytest

from cli.cases import make_parity_cases, make_precision_cases
from contract.labels import LABELS


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """30 studies with an image each; of every tenth nobody knows the labels."""
    image_module = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image_module.fromarray(np.full((40, 30), 99, np.uint8)).save(file, format="PNG")
    path = tmp_path_factory.mktemp("images") / "chest.png"
    path.write_bytes(file.getvalue())
    return [
        {
            "study_id": f"S{number}",
            "image_paths": [str(path)] if number else [],
            "labels": ["cardiac"] if number % 2 else ["normal"],
            "labelled": number % 10 != 0,
            "unknown_labels": [],
            "indication": None,
            "comparison": None,
            "findings": f"Study {number}: " + "clear " * number,
            "impression": None,
        }
        for number in range(30)
    ]


def read_numbers(cases) -> list[int]:
    return [int(case.text.split()[1].rstrip(":")) for case in cases]


def test_a_profile_is_held_to_the_test_split_with_its_labels(rows):
    pytest.importorskip("torch")
    cases = make_precision_cases(rows, {"S0", "S3", "S4", "S10"}, "findings", 28, least=4)
    assert read_numbers(cases) == [0, 3, 4, 10]
    assert cases[0].pixels is None
    assert cases[1].pixels.shape == (1, 28, 28)
    keys = [label.key for label in LABELS]
    assert [keys[place] for place in np.flatnonzero(cases[1].labels)] == ["cardiac"]
    assert [keys[place] for place in np.flatnonzero(cases[2].labels)] == ["normal"]
    assert cases[0].labels is None
    assert cases[3].labels is None


def test_a_small_test_split_is_filled_up_and_a_large_one_thinned_out(rows):
    pytest.importorskip("torch")
    assert read_numbers(make_precision_cases(rows, {"S5"}, "findings", 28, least=4)) == [5, 0, 15, 29]
    assert read_numbers(make_precision_cases(rows, {"another"}, "findings", 28)) == list(range(30))
    assert read_numbers(make_precision_cases(rows, set(), "findings", 28, most=4)) == [0, 10, 19, 29]


def test_parity_runs_the_shortest_and_the_longest_report(rows):
    pytest.importorskip("torch")
    assert read_numbers(make_parity_cases(rows, "findings", 28, count=3)) == [1, 15, 29]
    assert len(make_parity_cases(rows, "findings", 28)) == 8
    assert len(make_parity_cases(rows[:3], "findings", 28)) == 2  # with an image
