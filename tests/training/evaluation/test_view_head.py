"""The view head on the test studies: which images count, and where the figures are told."""

import io

import numpy as np
import pytest
from rich.console import Console

from cli.evaluate import print_results
from training.evaluation.plan import Studies
from training.evaluation.report import _write_view_head
from training.evaluation.view_head import measure_view_head

TRUSTED = {"view_confidence": 0.999, "view_source": "list of projections"}
GUESSED = {"view_confidence": 0.999, "view_source": "other images of the study"}


class Predictor:
    """Tells laterals by the name of their file; cannot read the first one."""

    def __init__(self, tells_views: bool = True) -> None:
        self.tells_views = tells_views

    def tell_laterals(self, paths, progress=None):
        answers = np.array(["lateral" in path for path in paths], np.float32)
        answers[0] = np.nan
        return answers


@pytest.fixture
def parts():
    row = {
        "image_paths": ["frontal.dcm", "lateral.dcm", "lateral.png"],
        "views": ["PA", "LATERAL", "FRONTAL"],
        "headers": [TRUSTED, TRUSTED, GUESSED],
    }
    return {"test": Studies((row,) * 12, {}, np.zeros((12, 22), bool), np.zeros((12, 22), bool))}


def test_trusted_images_that_can_be_read_are_measured(parts):
    score = measure_view_head(parts, Predictor())
    assert (score["frontals"], score["laterals"], score["unreadable"]) == (11, 12, 1)
    assert score["accuracy"] == score["auroc"] == 1
    assert "Accuracy 1.000, AUROC 1.000 on 12 lateral and 11 frontal images" in _write_view_head(
        {"view_head": score}
    )


def test_a_model_without_a_head_is_not_measured(parts):
    assert measure_view_head(parts, Predictor(tells_views=False)) is None
    for results in ({}, {"view_head": None}):  # also of an evaluation that an older version wrote
        assert _write_view_head(results) == ""


def test_the_command_says_it(parts):
    console = Console(record=True, width=200, file=io.StringIO())
    results = {"trained_on": "unknown", "classification": [], "retrieval": {}, "pairs": []}
    print_results(console, results | {"view_head": measure_view_head(parts, Predictor())})
    assert "View head: Accuracy 1.000" in console.export_text()
