"""How well a model tells lateral views from frontal ones: all images of the test studies whose view is trusted."""

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
    """Return what `score_views` finds on the test studies, and how many images were unreadable.

    None of a model without a view head. `progress` is called with images read and images in all.
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
