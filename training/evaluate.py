"""How good are probabilities: AUROC, average precision and F1 per label, with patient-bootstrap intervals.

The resamples of the bootstrap are weights on the studies (how often each was drawn), so that all of them are
computed at once from one sorting per label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.labels import LABEL_KEYS

MIN_POSITIVES: Final = 5  # fewer positive (or negative) studies say nothing about a label
RESAMPLES: Final = 1000
METRICS: Final = ("auroc", "ap", "f1")
_DEFAULT_THRESHOLD: Final = 0.5

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval (2.5th to 97.5th percentile of the bootstrap)."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return the fields, rounded to 4 digits."""
        return {name: round(value, 4) for name, value in vars(self).items()}


@dataclass(frozen=True)
class LabelMetrics:
    """Results over M studies.

    Attributes:
        studies: M.
        averaged: Keys of the labels with at least `MIN_POSITIVES` positives and negatives.
        macro: Metric name -> mean over the averaged labels; empty when no label qualifies.
        labels: Label key -> {"auroc", "ap", "f1", "positives"} for each averaged label.
    """

    studies: int
    averaged: tuple[str, ...]
    macro: dict[str, Interval]
    labels: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Return what metrics.json holds."""
        return {
            "studies": self.studies,
            "averaged": list(self.averaged),
            "macro": {name: interval.to_dict() for name, interval in self.macro.items()},
            "labels": self.labels,
        }


def evaluate_labels(
    probabilities: NDArray[np.floating],
    targets: NDArray[np.bool_],
    thresholds: NDArray[np.floating],
    *,
    groups: Sequence[str],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> LabelMetrics:
    """Measure predictions.

    Args:
        probabilities: (M, K), or any scores for AUROC and AP alone.
        targets: (M, K).
        thresholds: (K,), fitted on other studies; a label counts as present from its threshold on.
        groups: M patient ids; the bootstrap draws patients, not studies.
        seed: Of the bootstrap.
        resamples: How many times patients are drawn.
    """
    positives, predicted = targets.sum(0), probabilities >= thresholds  # (K,), (M, K)
    usable = np.flatnonzero(np.minimum(positives, len(targets) - positives) >= MIN_POSITIVES)
    weights = np.concatenate([np.ones((1, len(targets))), _draw_weights(groups, seed, resamples)])  # (1+R, M)
    tables = {
        "auroc": [compute_auroc(probabilities[:, k], targets[:, k], weights) for k in usable],
        "ap": [compute_ap(probabilities[:, k], targets[:, k], weights) for k in usable],
        "f1": [compute_f1(predicted[:, k], targets[:, k], weights) for k in usable],
    }
    macro = {name: _summarise(np.stack(rows)) for name, rows in tables.items() if rows}
    labels = {
        LABEL_KEYS[k]: {name: round(float(tables[name][place][0]), 4) for name in METRICS}
        | {"positives": int(positives[k])}
        for place, k in enumerate(usable)
    }
    return LabelMetrics(len(targets), tuple(labels), macro, labels)


def fit_thresholds(probabilities: NDArray[np.floating], targets: NDArray[np.bool_]) -> Floats:
    """Return, per label, the threshold with the highest F1 on (M, K) probabilities.

    The threshold lies midway between the two neighbouring probabilities, so that it does not cling to one
    case. A label with fewer than `MIN_POSITIVES` positives keeps 0.5: the best threshold of a single case can be
    next to 0, and would call the finding present in everyone.
    """
    from sklearn.metrics import precision_recall_curve

    thresholds = np.full(targets.shape[1], _DEFAULT_THRESHOLD)
    for k in np.flatnonzero(targets.sum(0) >= MIN_POSITIVES):
        precision, recall, points = precision_recall_curve(targets[:, k], probabilities[:, k])
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = int(np.argmax(f1[:-1]))
        below = points[best - 1] if best else points[best]
        thresholds[k] = (float(points[best]) + float(below)) / 2
    return thresholds


def compute_auroc(scores: NDArray[np.floating], targets: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return the area under the ROC curve for each row of weights.

    The chance that a positive study scores above a negative one, ties counting half (Hanley and McNeil 1982).

    Args:
        scores: (M,).
        targets: (M,).
        weights: (R, M), how often each study counts.

    Returns:
        (R,), NaN where one of the classes is empty.
    """
    order, starts = _sort_in_ties(scores)
    positive = np.add.reduceat(weights[:, order] * targets[order], starts, axis=1)  # (R, groups of ties)
    negative = np.add.reduceat(weights[:, order] * ~targets[order], starts, axis=1)
    below = negative[:, ::-1].cumsum(1)[:, ::-1] - negative  # negatives with a lower score
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((positive * (below + negative / 2)).sum(1) / (positive.sum(1) * negative.sum(1)))


def compute_ap(scores: NDArray[np.floating], targets: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return the average precision, sum of (R_n - R_{n-1}) P_n over the distinct scores; as `compute_auroc`."""
    order, starts = _sort_in_ties(scores)
    positive = np.add.reduceat(weights[:, order] * targets[order], starts, axis=1)
    everything = np.add.reduceat(weights[:, order], starts, axis=1)
    seen = everything.cumsum(1)
    precision = np.divide(positive.cumsum(1), seen, out=np.zeros_like(seen), where=seen > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((positive * precision).sum(1) / positive.sum(1))


def compute_f1(predicted: NDArray[np.bool_], targets: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return F1 for each row of weights; NaN where no study is positive; as `compute_auroc`."""
    hits = weights @ (predicted & targets)
    positive = weights @ targets
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = 2 * hits / (positive + weights @ predicted)
    return np.where(positive > 0, f1, np.nan)


def _sort_in_ties(scores: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the order of the scores, highest first, and where each run of equal scores starts."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return order, starts


def _draw_weights(groups: Sequence[str], seed: int, resamples: int) -> Floats:
    """Draw patients with replacement; return (R, M), how often each study was drawn."""
    if not len(groups):
        return np.zeros((resamples, 0))
    names, members = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return np.asarray(drawn[:, members], dtype=np.float64)


def _summarise(table: Floats) -> Interval:
    """Turn (labels, 1 + R) values, the first column without resampling, into the mean over labels."""
    drawn = table[:, 1:]
    # A resample without a positive (or negative) study of any label says nothing.
    resampled = np.nanmean(drawn[:, ~np.isnan(drawn).all(0)], axis=0)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(np.mean(table[:, 0])), float(low), float(high))
