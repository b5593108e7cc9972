"""The view head of a model is fitted on the training images of a trusted view, and measured on those of the test part.

Nothing of the rest of the model changes: the encoder is only asked.
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
    """Return the images of studies whose view is trusted: their rows of `StudySet.pixels`, and which are laterals."""
    found = [
        (place, lateral)
        for row in rows
        for place, lateral in zip(studies.views[row], studies.laterals[row], strict=True)
        if lateral is not None
    ]
    return np.array([place for place, _ in found], np.int64), np.array(
        [lateral for _, lateral in found], bool
    )


def fit_views(examined: Examined, model: CxrModel) -> str:
    """Fit the view head, or leave the model without one, and say which in a sentence."""
    head, C = model.fusion.lateral, examined.config.view_head.C
    clear_view_head(head)  # of the bundle that the run started from
    if not C:
        return "No view head: view_head.C is 0."
    places, laterals = find_trusted(examined.studies, examined.split["train"])
    counts = f"{int(laterals.sum()):,} lateral and {int((~laterals).sum()):,} frontal"
    if min(laterals.sum(), (~laterals).sum()) < FEWEST:
        return (
            f"No view head: of the training images with a trusted view {counts} ones could be read, and {FEWEST} of "
            "each are needed."
        )
    features = [values.cpu().numpy() for values in _average_tokens(examined, model, places)]
    fit_view_head(head, np.concatenate(features), laterals, C)
    return f"View head fitted on {counts} training images."


@torch.inference_mode()
def measure_views(examined: Examined, model: CxrModel, part: str) -> dict[str, Any]:
    """Return what `score_views` finds on a part of the split; {} of a model without a head."""
    head = model.fusion.lateral
    if not head.is_fitted:
        return {}
    places, laterals = find_trusted(examined.studies, examined.split[part])
    answers = [
        head(means[:, None]).float().cpu().numpy()[:, 0] for means in _average_tokens(examined, model, places)
    ]
    return score_views(np.concatenate([np.zeros(0, np.float32), *answers]), laterals)


@torch.inference_mode()
def _average_tokens(examined: Examined, model: CxrModel, places: NDArray[np.int64]) -> Iterator[torch.Tensor]:
    """Yield the mean tokens (B, C) float32 of images, some at a time."""
    model.eval()
    device, size = next(model.parameters()).device, examined.config.loop.batch_size
    for start in range(0, len(places), size):
        pixels = torch.from_numpy(examined.studies.pixels[places[start : start + size]]).to(device)
        yield model.image_encoder(pixels).float().mean(dim=1)
