"""Thresholds, bands and conformal cuts of one way to read a study, fitted on studies that were not trained on."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from contract.decisions import ServedLabel
from contract.labels import LABELS
from training.evaluation.calibrate import apply_platt, fit_platt
from training.evaluation.labels import find_usable, fit_thresholds
from training.evaluation.selective import fit_selection, mark_unlearned


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
        (`training.evaluation.labels.fit_thresholds`), and no band (`training.evaluation.selective.fit_bands`).
    """
    probabilities = apply_platt(logits, scale, bias)
    thresholds = fit_thresholds(probabilities, targets, known)
    fitted = zip(LABELS, thresholds.tolist(), scale.tolist(), bias.tolist(), strict=True)
    labels = tuple(ServedLabel(label.key, label.name, *numbers) for label, *numbers in fitted)
    labels = fit_selection(probabilities, targets, thresholds, known=known).add_to(labels)
    return labels if learned is None else mark_unlearned(labels, learned)


def refit_decisions(
    logits: NDArray[np.float32],
    targets: NDArray[np.bool_],
    old: tuple[ServedLabel, ...],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
    *,
    known: NDArray[np.bool_],
) -> tuple[tuple[ServedLabel, ...], tuple[str, ...]]:
    """Fit calibration and decisions anew where there are enough studies, and keep the old ones elsewhere.

    Args:
        logits: (M, K), before calibration.
        targets: (M, K), False where nothing is known.
        old: The K categories of this way as they were decided; without thresholds where nothing was.
        scale: (K,) old calibration of this way; 0 for a label that the model never learned.
        bias: (K,) likewise.
        known: (M, K), which of the targets are known.

    Returns:
        The K categories, and the keys of those that keep calibration, threshold and band: with fewer than
        `MIN_POSITIVES` studies with or without them, or never learned. The conformal cut is one for all labels: the old
        one stays only where too few studies have a label.
    """
    enough = np.zeros(len(old), bool)
    enough[find_usable(targets, known)] = True
    enough &= scale != 0
    scale, bias = (
        np.where(enough, *pair) for pair in zip(fit_platt(logits, targets, known), (scale, bias), strict=True)
    )
    fitted_labels = fit_decisions(logits, targets, scale, bias, known=known)
    labels = []
    for fitted, before, refitted in zip(fitted_labels, old, enough, strict=True):
        label = fitted if refitted or before.threshold is None else before
        cut = before if fitted.include is None or fitted.scale == 0 else fitted
        labels.append(
            replace(
                label,
                scale=fitted.scale,
                bias=fitted.bias,
                include=cut.include,
                stated_recall=cut.stated_recall,
            )
        )
    return tuple(labels), tuple(
        label.key for label, refitted in zip(old, enough, strict=True) if not refitted
    )
