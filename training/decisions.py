"""Thresholds, bands and conformal cuts of one way to read a study, fitted on studies that were not trained on."""

import numpy as np
from numpy.typing import NDArray

from contract.decisions import ServedLabel
from contract.labels import LABELS
from training.calibrate import apply_platt
from training.evaluation.labels import fit_thresholds
from training.selective import fit_selection, mark_unlearned


def fit_decisions(
    logits: NDArray[np.float32],
    targets: NDArray[np.bool_],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
    *,
    known: NDArray[np.bool_] | None = None,
    learned: NDArray[np.bool_] | None = None,
) -> tuple[ServedLabel, ...]:
    """Fit what is decided from which calibrated probability.

    Args:
        logits: (M, K), before calibration.
        targets: (M, K), False where nothing is known.
        scale: (K,) calibration of this way.
        bias: (K,) likewise.
        known: (M, K), which of the targets are known. Default: all.
        learned: (K,), which labels some training study states. Default: all. The others are always "uncertain".

    Returns:
        The K categories. A label with too few positive studies has the threshold 0.5
        (`training.evaluation.labels.fit_thresholds`), and no band (`training.selective.fit_bands`).
    """
    probabilities = apply_platt(logits, scale, bias)
    thresholds = fit_thresholds(probabilities, targets, known)
    fitted = zip(LABELS, thresholds.tolist(), scale.tolist(), bias.tolist(), strict=True)
    labels = tuple(ServedLabel(label.key, label.name, *numbers) for label, *numbers in fitted)
    labels = fit_selection(probabilities, targets, thresholds, known=known).add_to(labels)
    return labels if learned is None else mark_unlearned(labels, learned)
