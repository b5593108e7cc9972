"""Platt scaling: per label, probability = sigmoid(scale * logit + bias), fitted on held-out studies.

Platt 1999, Probabilistic Outputs for Support Vector Machines, with the smoothed targets of its section 2.2
and damped Newton steps as in Lin, Lin and Weng 2007, A note on Platt's probabilistic outputs.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SMALLEST_SCALE: Final = 0.05  # a scale of 0 or less would lose or reverse the order of the cases
_PRIOR: Final = 1.0  # weight of the prior for scale 1, in cases; matters only for rare labels
_STEPS: Final = 50
_SMALLEST_STEP: Final = 1e-8


def fit_platt(
    logits: NDArray[np.float32], targets: NDArray[np.bool_], known: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Fit scale and bias of each label.

    Args:
        logits: (M, K), before calibration.
        targets: (M, K).
        known: (M, K), whether a target is known. Default: all.

    Returns:
        scale (K,), at least `SMALLEST_SCALE`, and bias (K,); 1 and 0 for a label without cases.
    """
    count = logits.shape[1]
    known = np.ones_like(targets) if known is None else known
    scale, bias = np.ones(count, np.float32), np.zeros(count, np.float32)
    for label in np.flatnonzero(known.any(0)):
        rows = known[:, label]
        scale[label], bias[label] = _fit_label(logits[rows, label].astype(np.float64), targets[rows, label])
    return scale, bias


def apply_platt(
    logits: NDArray[np.float32], scale: NDArray[np.float32], bias: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return calibrated probabilities (M, K)."""
    probabilities: NDArray[np.float32] = _sigmoid(logits * scale + bias).astype(np.float32)
    return probabilities


def _fit_label(logits: NDArray[np.float64], targets: NDArray[np.bool_]) -> tuple[float, float]:
    positives = int(targets.sum())
    negatives = len(targets) - positives
    smoothed = np.where(targets, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    features = np.stack([logits, np.ones_like(logits)])  # (2, M)
    ridge = np.diag([_PRIOR, 1e-3])
    start = np.array([1.0, 0.0])

    def measure_loss(point: NDArray[np.float64]) -> float:
        values, moved = point @ features, point - start
        return float((np.logaddexp(0.0, values) - smoothed * values).sum() + moved @ ridge @ moved / 2)

    point = start
    for _ in range(_STEPS):
        probabilities = _sigmoid(point @ features)
        gradient = features @ (probabilities - smoothed) + ridge @ (point - start)
        curvature = (features * probabilities * (1 - probabilities)) @ features.T + ridge
        step = np.linalg.solve(curvature, gradient)
        loss = measure_loss(point)
        while np.abs(step).max() >= _SMALLEST_STEP and (
            measure_loss(point - step) > loss - 1e-4 * float(gradient @ step)
        ):
            step = step / 2  # a full step goes too far if the probabilities are nearly 0 or 1
        point = point - step
        if np.abs(step).max() < _SMALLEST_STEP:
            break
    if point[0] < SMALLEST_SCALE:
        return SMALLEST_SCALE, _fit_bias(logits * SMALLEST_SCALE, smoothed)
    return float(point[0]), float(point[1])


def _fit_bias(scaled: NDArray[np.float64], smoothed: NDArray[np.float64]) -> float:
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if _sigmoid(scaled + middle).mean() < smoothed.mean():
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _sigmoid(values: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    return 0.5 * (1.0 + np.tanh(0.5 * values))
