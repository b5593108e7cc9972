"""Fit thresholds, bands and conformal cuts for one way to read a study, on studies outside the training data."""

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
    """Fit the decisions by the calibrated probability.

    Args:
        logits: (M, K), before calibration.
        targets: (M, K), False where nothing is known.
        scale: (K,) calibration of this way.
        bias: (K,) calibration of this way.
        known: (M, K), whether a target is known. Default: all.
        learned: (K,), whether a training study states the label. Default: all. Other labels are always "uncertain".

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
    """Fit calibration and decisions again for labels with enough studies, and keep the old values for the others.

    Args:
        logits: (M, K), before calibration.
        targets: (M, K), False where nothing is known.
        old: The K categories of this way with their old values; without thresholds if there were no decisions.
        scale: (K,) old calibration of this way; 0 for a label that the model never learned.
        bias: (K,) old calibration of this way.
        known: (M, K), whether a target is known.

    Returns:
        The K categories, and the keys of those that keep calibration, threshold and band: labels that fewer than
        `MIN_POSITIVES` studies have or lack, and labels that were never learned. All labels share one conformal cut.
        The old cut stays only if too few studies have a label.
    """
    known = known & (scale != 0)  # a set never holds a label that was never learned, so its recall ignores it
    targets = targets & known
    enough = np.zeros(len(old), bool)
    enough[find_usable(targets, known)] = True
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
