"""Evaluate probabilities: AUROC, average precision, F1, Brier score and calibration error.

Each metric is computed per label, as the mean over the labels with enough studies (macro), and over all their answers
together (micro), with 95 % intervals (`training.evaluation.bootstrap`). All resamples are computed at once from one
sorting per label.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.labels import LABEL_KEYS
from training.evaluation.bootstrap import (
    RESAMPLES,
    Difference,
    Floats,
    Interval,
    summarise,
    summarise_difference,
    weigh_studies,
)

MIN_POSITIVES: Final = 5  # with fewer positive (or negative) studies a label is not measured
METRICS: Final = ("auroc", "ap", "f1", "brier", "ece")
CENTRED: Final = ("ap", "ece")  # metrics with an upward bias under resampling
CALIBRATION_BINS: Final = 15
_DEFAULT_THRESHOLD: Final = 0.5
_BLOCK: Final = 8_000_000  # weights in memory at a time: 64 MB


@dataclass(frozen=True)
class LabelMetrics:
    """Results over M studies.

    Attributes:
        studies: M.
        averaged: Keys of the labels with at least `MIN_POSITIVES` positives and negatives.
        macro: Metric name -> mean over the averaged labels; empty if no label qualifies.
        micro: Metric name -> value over all answers of the averaged labels, as if they were one label.
        labels: Label key -> metric name -> value, for each averaged label.
        positives: Label key -> number of studies with it, for each averaged label.
        known: Label key -> number of studies with a known value, for each averaged label.
    """

    studies: int
    averaged: tuple[str, ...]
    macro: dict[str, Interval]
    micro: dict[str, Interval]
    labels: dict[str, dict[str, Interval]]
    positives: dict[str, int]
    known: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the content for metrics.json."""
        return {
            "studies": self.studies,
            "averaged": list(self.averaged),
            "macro": _to_dicts(self.macro),
            "micro": _to_dicts(self.micro),
            "labels": {
                key: {**_to_dicts(values), "positives": self.positives[key], "known": self.known[key]}
                for key, values in self.labels.items()
            },
        }


def evaluate_labels(
    probabilities: NDArray[np.floating[Any]],
    targets: NDArray[np.bool_],
    thresholds: NDArray[np.floating[Any]] | None,
    *,
    groups: Sequence[str],
    known: NDArray[np.bool_] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> LabelMetrics:
    """Measure predictions.

    Args:
        probabilities: (M, K), 0 to 1.
        targets: (M, K).
        thresholds: (K,), fitted on other studies. A label is present from its threshold on. None: no decisions and no
            F1.
        groups: M patient ids; the bootstrap draws patients, not studies.
        known: (M, K), whether a target is known. A label is measured only on studies with a known target. Default: all.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.
    """
    known = np.ones_like(targets) if known is None else known
    predicted = _decide(probabilities, thresholds)  # (M, K)
    names = _name_metrics(decided=thresholds is not None)
    usable = find_usable(targets, known)
    keys = tuple(LABEL_KEYS[k] for k in usable)
    weights = weigh_studies(groups, seed, resamples)  # (1+R, M)
    # For each label: metric -> (1+R,)
    tables = [_measure_label(k, probabilities, predicted, targets, known, weights) for k in usable]
    macro, micro = {}, {}
    if tables:
        macro = {name: _summarise(name, [table[name] for table in tables]) for name in names}
        stated = known[:, usable]
        everything = _measure(
            probabilities[:, usable][stated],
            predicted[:, usable][stated],
            targets[:, usable][stated],
            weights,
            np.repeat(np.arange(len(targets)), stated.sum(1)),
        )
        micro = {name: _summarise(name, [everything[name]]) for name in names}
    labels = {
        key: {name: _summarise(name, [table[name]]) for name in names}
        for key, table in zip(keys, tables, strict=True)
    }
    positives, counts = (
        {key: int(table[:, k].sum()) for key, k in zip(keys, usable, strict=True)}
        for table in (targets & known, known)
    )
    return LabelMetrics(len(targets), keys, macro, micro, labels, positives, counts)


def find_usable(targets: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the labels that at least `MIN_POSITIVES` known studies have, and as many lack, for (M, K) targets."""
    positives, negatives = (targets & known).sum(0), (~targets & known).sum(0)
    return np.flatnonzero(np.minimum(positives, negatives) >= MIN_POSITIVES)


def compare_labels(
    first: tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]] | None],
    second: tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]] | None],
    targets: NDArray[np.bool_],
    *,
    groups: Sequence[str],
    known: NDArray[np.bool_] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Difference]:
    """Return metric name -> difference of the macro means, first minus second.

    Args:
        first: Probabilities (M, K) and thresholds (K,) of the first model. Without thresholds F1 is left out.
        second: The same of the second model, for the same studies.
        targets: (M, K).
        groups: M patient ids. Each resample of patients is used for both.
        known: (M, K), whether a target is known. Both are measured only on known targets. Default: all.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.
    """
    known = np.ones_like(targets) if known is None else known
    usable, weights = find_usable(targets, known), weigh_studies(groups, seed, resamples)
    if not len(usable):
        return {}
    tables = [
        [
            _measure_label(k, probabilities, _decide(probabilities, thresholds), targets, known, weights)
            for k in usable
        ]
        for probabilities, thresholds in (first, second)
    ]
    names = _name_metrics(decided=first[1] is not None and second[1] is not None)
    return {
        name: summarise_difference(
            np.stack([table[name] for table in tables[0]]), np.stack([table[name] for table in tables[1]])
        )
        for name in names
    }


def _name_metrics(*, decided: bool) -> tuple[str, ...]:
    return tuple(name for name in METRICS if decided or name != "f1")


def _decide(
    probabilities: NDArray[np.floating[Any]], thresholds: NDArray[np.floating[Any]] | None
) -> NDArray[np.bool_]:
    """Return (M, K), whether a label is decided present; all False without thresholds."""
    if thresholds is None:
        return np.zeros(probabilities.shape, bool)
    return np.asarray(probabilities >= thresholds)


def _measure_label(
    label: int,
    probabilities: NDArray[np.floating[Any]],
    predicted: NDArray[np.bool_],
    targets: NDArray[np.bool_],
    known: NDArray[np.bool_],
    weights: Floats,
) -> dict[str, Floats]:
    """Return every metric of one label for each row of weights, over the studies with a known target."""
    rows = np.flatnonzero(known[:, label])
    return _measure(probabilities[rows, label], predicted[rows, label], targets[rows, label], weights, rows)


def _measure(
    probabilities: NDArray[np.floating[Any]],
    predicted: NDArray[np.bool_],
    targets: NDArray[np.bool_],
    weights: Floats,
    studies: NDArray[np.int64],
) -> dict[str, Floats]:
    """Return every metric of A answers for each row of weights, a block of rows at a time.

    Args:
        probabilities: (A,).
        predicted: (A,).
        targets: (A,).
        weights: (1 + R, M), one column for each study.
        studies: (A,), the study of each answer. The weights of all answers would not fit into memory.
    """
    measures: dict[str, Callable[[Floats], Floats]] = {
        "auroc": lambda rows: compute_auroc(probabilities, targets, rows),
        "ap": lambda rows: compute_ap(probabilities, targets, rows),
        "f1": lambda rows: compute_f1(predicted, targets, rows),
        "brier": lambda rows: compute_brier(probabilities, targets, rows),
        "ece": lambda rows: compute_ece(probabilities, targets, rows),
    }
    step = max(1, _BLOCK // max(1, len(studies)))
    tables: dict[str, list[Floats]] = {name: [] for name in measures}
    for start in range(0, len(weights), step):
        block = weights[start : start + step, studies]
        for name, measure in measures.items():
            tables[name].append(measure(block))
    return {name: np.concatenate(parts) for name, parts in tables.items()}


def fit_thresholds(
    probabilities: NDArray[np.floating[Any]],
    targets: NDArray[np.bool_],
    known: NDArray[np.bool_] | None = None,
) -> Floats:
    """Return, per label, the threshold with the highest F1 on (M, K) probabilities.

    The threshold lies midway between the two neighbouring probabilities, so that it does not cling to one
    case. A label with fewer than `MIN_POSITIVES` positives keeps 0.5: the best threshold of a single case can be
    next to 0, and would call the finding present in everyone. Of the targets those count that are `known` (M, K).
    """
    from sklearn.metrics import precision_recall_curve

    thresholds = np.full(targets.shape[1], _DEFAULT_THRESHOLD)
    known = np.ones_like(targets) if known is None else known
    for k in np.flatnonzero((targets & known).sum(0) >= MIN_POSITIVES):
        rows = known[:, k]
        precision, recall, points = precision_recall_curve(targets[rows, k], probabilities[rows, k])
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = int(np.argmax(f1[:-1]))
        below = points[best - 1] if best else points[best]
        thresholds[k] = (float(points[best]) + float(below)) / 2
    return thresholds


def compute_auroc(scores: NDArray[np.floating[Any]], targets: NDArray[np.bool_], weights: Floats) -> Floats:
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


def compute_ap(scores: NDArray[np.floating[Any]], targets: NDArray[np.bool_], weights: Floats) -> Floats:
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


def compute_brier(
    probabilities: NDArray[np.floating[Any]], targets: NDArray[np.bool_], weights: Floats
) -> Floats:
    """Return the Brier score, the mean of (p - y)^2 (Brier 1950), NaN without a study; as `compute_auroc`."""
    squares = (probabilities.astype(np.float64) - targets) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(weights @ squares / weights.sum(1))


def compute_ece(
    probabilities: NDArray[np.floating[Any]], targets: NDArray[np.bool_], weights: Floats
) -> Floats:
    """Return the expected calibration error of the probability of being positive; as `compute_auroc`.

    The mean distance between the mean probability and the share of positives in `CALIBRATION_BINS` bins of
    equal width, weighted by the studies in each (Naeini et al. 2015, Guo et al. 2017). NaN without a study.
    """
    bins = place_in_bins(probabilities)
    gaps = np.zeros((len(probabilities), CALIBRATION_BINS))
    gaps[np.arange(len(probabilities)), bins] = probabilities.astype(np.float64) - targets
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.abs(weights @ gaps).sum(1) / weights.sum(1))


def place_in_bins(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return the calibration bin, 0 to `CALIBRATION_BINS` - 1, of each probability."""
    return np.clip((probabilities * CALIBRATION_BINS).astype(np.int64), 0, CALIBRATION_BINS - 1)


def _sort_in_ties(scores: NDArray[np.floating[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the order of the scores, highest first, and where each run of equal scores starts."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return order, starts


def _summarise(name: str, rows: Sequence[Floats]) -> Interval:
    return summarise(np.stack(rows), centred=name in CENTRED)


def _to_dicts(values: dict[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: interval.to_dict() for name, interval in values.items()}
