"""Which findings of a case are explained."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contract.decisions import ServedLabel
from contract.labels import LABEL_INDEX

Array = NDArray[np.float32]
_DEFAULT_THRESHOLD: Final = 0.5  # for a model without thresholds


def choose_indices(
    labels: Sequence[ServedLabel], probabilities: Array, wanted: Sequence[str] | None, *, only_top: bool
) -> list[int]:
    """Return the indices of the labels to explain.

    Args:
        labels: The K categories with their thresholds.
        probabilities: (K,), calibrated.
        wanted: Keys of the labels that the caller names. None: those that reach their threshold, the most probable one
            first; without one, that of `choose_label`.
        only_top: Without named labels, only that of `choose_label`.
    """
    if wanted is not None:
        return [LABEL_INDEX[label] for label in dict.fromkeys(wanted)]
    top = choose_label(labels, probabilities)
    if only_top:
        return [top]
    present = [
        index
        for index, (label, probability) in enumerate(zip(labels, probabilities, strict=True))
        if label.threshold is not None and probability >= label.threshold
    ]
    return sorted(present, key=lambda index: -probabilities[index]) or [top]


def choose_label(labels: Sequence[ServedLabel], probabilities: Array) -> int:
    """Return the index of the label to explain if the caller names none.

    This is the label whose probability is furthest above its threshold, as a share of the distance from the threshold
    to 1. If no probability reaches its threshold, it is the label closest to its threshold. `normal` is chosen only if
    no other label reaches its threshold. A label that was held out of training is never chosen. A model without
    thresholds for this kind of input gets the threshold 0.5.

    Args:
        labels: The K categories with their thresholds.
        probabilities: (K,), calibrated.
    """
    thresholds = [_DEFAULT_THRESHOLD if label.threshold is None else label.threshold for label in labels]
    limits = np.clip(thresholds, 1e-6, 1 - 1e-6)
    distances = probabilities - limits
    margins = np.where(distances >= 0, distances / (1 - limits), distances / limits)  # -1 to 1
    margins[[label.is_undecidable for label in labels]] = -np.inf
    normal = LABEL_INDEX["normal"]
    others = np.delete(margins, normal)
    if margins[normal] >= 0 > others.max():
        return normal
    margins[normal] = -np.inf
    return int(margins.argmax())
