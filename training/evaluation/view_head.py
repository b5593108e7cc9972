"""Evaluate a model's view head on all images of the test studies with a trusted view."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.data.studies import read_laterals
from training.evaluation.plan import Studies
from training.evaluation.predict import Progress, TorchPredictor
from training.evaluation.view_scores import score_views


def measure_view_head(
    parts: Mapping[str, Studies], predictor: TorchPredictor, progress: Progress | None = None
) -> dict[str, Any] | None:
    """Return the result of `score_views` for the test studies, and the number of unreadable images.

    None for a model without a view head. `progress` is called with the number of images read and their total.
    """
    if not predictor.tells_views:
        return None
    trusted = [
        (path, lateral)
        for row in parts["test"].rows
        for path, lateral in zip(row["image_paths"], read_laterals(row), strict=True)
        if lateral is not None
    ]
    answers = predictor.tell_laterals([path for path, _ in trusted], progress)
    read = ~np.isnan(answers)
    laterals = np.array([lateral for _, lateral in trusted], bool)
    return score_views(answers[read], laterals[read]) | {"unreadable": int((~read).sum())}
