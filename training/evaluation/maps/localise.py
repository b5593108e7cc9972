"""Where a map points, against the boxes of a finding.

Pointing game: Zhang et al. 2016, arXiv:1608.00507, without a margin. Energy in the box: Wang et al. 2020, Score-CAM,
arXiv:1910.01279.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.evaluation.maps.subject import Array

METRICS: Final = {
    "pointing": "pointing game",
    "energy": "energy in the box",
    "iou": "IoU at the area of the box",
}


def localise(strength: Array, box: NDArray[np.bool_]) -> dict[str, float]:
    """Measure one map.

    Args:
        strength: (S, S), 0 or more.
        box: (S, S), the pixels of the finding's boxes, at least one.

    Returns:
        "pointing": whether the strongest pixel lies in a box, 0 or 1; of several equally strong ones, their share.
        "energy": share of the sum of the map in the boxes.
        "iou": intersection over union of the boxes with as many of the strongest pixels as the boxes have.
        A map without any strength points nowhere: all three are 0.
    """
    total = float(strength.sum(dtype=np.float64))
    if total <= 0:
        return dict.fromkeys(METRICS, 0.0)
    top = strength == strength.max()
    chosen = choose_top(strength, int(box.sum()))
    return {
        "pointing": float(box[top].mean()),
        "energy": float(strength[box].sum(dtype=np.float64)) / total,
        "iou": compute_iou(chosen, box),
    }


def choose_top(strength: Array, count: int) -> NDArray[np.bool_]:
    """Return (S, S): the `count` strongest pixels; of equally strong ones those that come first."""
    chosen = np.zeros(strength.size, np.bool_)
    chosen[np.argsort(-strength.ravel(), kind="stable")[:count]] = True
    return chosen.reshape(strength.shape)


def compute_iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return the intersection over the union of two masks; 0 for two empty ones."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 0.0
