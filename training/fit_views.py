"""Fit the view head of a model on training images with a trusted view, and measure it on such test images.

The rest of the model does not change.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.studies import StudySet
from training.evaluation.view_scores import FEWEST, score_views
from training.model.model import CxrModel
from training.model.view_head import clear_view_head, fit_view_head
from training.validate import Examined, Rows


def find_trusted(studies: StudySet, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the images with a trusted view: their rows of `StudySet.pixels`, and whether each is a lateral."""
    images = [
        (row_of_pixels, lateral)
        for row in rows
        for row_of_pixels, lateral in zip(studies.views[row], studies.laterals[row], strict=True)
        if lateral is not None
    ]
    return np.array([row_of_pixels for row_of_pixels, _ in images], np.int64), np.array(
        [lateral for _, lateral in images], bool
    )


def fit_views(examined: Examined, model: CxrModel) -> str:
    """Fit the view head if there are enough images; return a sentence about the result."""
    head, C = model.fusion.lateral, examined.config.view_head.C
    clear_view_head(head)  # it may come from the start bundle
    if not C:
        return "No view head: view_head.C is 0."
    pixel_rows, laterals = find_trusted(examined.studies, examined.split["train"])
    counts = f"{int(laterals.sum()):,} lateral and {int((~laterals).sum()):,} frontal"
    if min(laterals.sum(), (~laterals).sum()) < FEWEST:
        return (
            f"No view head: it needs {FEWEST} readable training images of each kind with a trusted view, but there are "
            f"{counts}."
        )
    features = [values.cpu().numpy() for values in _average_tokens(examined, model, pixel_rows)]
    fit_view_head(head, np.concatenate(features), laterals, C)
    return f"View head fitted on {counts} training images."


@torch.inference_mode()
def measure_views(examined: Examined, model: CxrModel, part: str) -> dict[str, Any]:
    """Return the result of `score_views` on a part of the split; {} for a model without a view head."""
    head = model.fusion.lateral
    if not head.is_fitted:
        return {}
    pixel_rows, laterals = find_trusted(examined.studies, examined.split[part])
    answers = [
        head(means[:, None]).float().cpu().numpy()[:, 0]
        for means in _average_tokens(examined, model, pixel_rows)
    ]
    return score_views(np.concatenate([np.zeros(0, np.float32), *answers]), laterals)


@torch.inference_mode()
def _average_tokens(
    examined: Examined, model: CxrModel, pixel_rows: NDArray[np.int64]
) -> Iterator[torch.Tensor]:
    """Yield the mean tokens (B, C) float32 of images, in batches."""
    model.eval()
    device, size = next(model.parameters()).device, examined.config.loop.batch_size
    for start in range(0, len(pixel_rows), size):
        pixels = torch.from_numpy(examined.studies.pixels[pixel_rows[start : start + size]]).to(device)
        yield model.image_encoder(pixels).float().mean(dim=1)
