"""Scores that choose the epoch count the labels that the test side counts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import training.validate as validate_module
from contract.errors import ArtifactError
from contract.labels import LABELS
from training.evaluation.labels import MIN_POSITIVES
from training.validate import predict_rows, score

STUDIES = 40


def make_answers(positives: dict[int, int]):
    """Return logits that put each label's studies last, but for label 0, whose studies come first."""
    targets = np.zeros((STUDIES, len(LABELS)), bool)
    for label, count in positives.items():
        targets[:count, label] = True
    logits = np.where(targets, -1.0, 1.0).astype(np.float32)
    logits[:, 0] *= -1
    studies = SimpleNamespace(targets=targets, known=np.ones_like(targets))
    return studies, {"image": (logits, np.arange(STUDIES))}


@pytest.mark.parametrize(
    ("positives", "counted"),
    [
        ({0: MIN_POSITIVES}, True),
        ({0: MIN_POSITIVES - 1}, False),
        ({0: STUDIES - MIN_POSITIVES}, True),
        ({0: STUDIES - MIN_POSITIVES + 1}, False),
        ({0: MIN_POSITIVES, 1: MIN_POSITIVES - 1, 2: 1, 3: STUDIES - 1}, True),  # the others are all wrong
    ],
)
def test_labels_need_enough_studies_of_each_kind(positives, counted):
    studies, predictions = make_answers(positives)
    expected = {"image/auroc": 1.0, "image/ap": 1.0, "score": 1.0} if counted else {}
    assert score(studies, predictions) == expected


def test_ways_are_averaged():
    studies, predictions = make_answers({0: 10})
    logits, rows = predictions["image"]
    scores = score(studies, {**predictions, "text": (-logits, rows)})
    assert (scores["image/auroc"], scores["text/auroc"]) == (1.0, 0.0)
    assert scores["score"] == pytest.approx(np.mean([1, 1, 0, scores["text/ap"]]))


def test_a_model_that_diverged_is_named_and_not_left_to_scikit_learn(monkeypatch):
    out = SimpleNamespace(logits=torch.tensor([[0.5], [float("nan")]]))
    batch = SimpleNamespace(to=lambda _: None)
    monkeypatch.setattr(validate_module, "choose_batch", lambda *_, **__: None)
    monkeypatch.setattr(validate_module, "make_batch", lambda *_: batch)
    monkeypatch.setattr(validate_module, "read_batch", lambda *_: {"image": (out, torch.ones(2).bool())})
    config = SimpleNamespace(data=None, loop=SimpleNamespace(batch_size=2))
    examined = SimpleNamespace(config=config, studies=None, tokenizer=None)
    with pytest.raises(ArtifactError, match=r"not finite numbers.*lower optimizer\.learning_rate"):
        predict_rows(examined, nn.Linear(1, 1), np.arange(2))
