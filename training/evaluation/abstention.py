"""Measure abstention: risk by coverage, decisions outside the bands, and the conformal sets.

The confidence of a decision is the probability that it is right: p for "present", 1 - p for "absent". If p is
calibrated, refusing the decisions with the lowest confidence first is optimal for the plain error (Chow 1970, On
Optimum Recognition Error and Reject Tradeoff). The distance of p from its threshold is not optimal unless the
threshold is 0.5. The order is measured by the curve of the error among the kept decisions over the share kept, and by
the area under it (AURC; El-Yaniv and Wiener 2010; Geifman and El-Yaniv 2017). An oracle refuses the wrong decisions
first. The excess over the oracle is the part of the area that the order causes (Geifman, Uziel and El-Yaniv 2019).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.decisions import Decisions, ServedLabel
from training.evaluation.bootstrap import Floats, summarise, weigh_studies
from training.evaluation.labels import find_usable
from training.evaluation.split_predictions import Options, SplitPredictions

METRICS: Final = (
    "coverage",  # share of the decisions that are not "uncertain"
    "error",  # share of these decisions that are wrong
    "error_all",  # share of wrong decisions if the threshold decides every study
    "missed",  # share of the studies with the finding that is decided "absent"
    "false_alarms",  # share of the studies without it that is decided "present"
    "aurc",
    "aurc_oracle",
    "aurc_excess",
)
_POINTS: Final = 50  # points of a plotted curve
_BLOCK: Final = 4_000_000  # weights in memory at a time: 32 MB


@dataclass(frozen=True)
class RiskCoverage:
    """A risk-coverage curve over M decisions, the most confident first.

    Attributes:
        coverage: (M,), share of kept decisions: 1 / M to 1.
        risk: (M,), share of wrong decisions among them. Within equal confidence, wrong decisions are spread evenly, as
            in a random order on average.
    """

    coverage: Floats
    risk: Floats

    @property
    def area(self) -> float:
        """AURC, 0 to 1: the mean risk over all coverages; lower is better."""
        return float(self.risk.mean())


def measure_confidence(
    probabilities: NDArray[np.floating[Any]], thresholds: NDArray[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Return the probability, 0 to 1, that the decision at the threshold is right, for (M, K) or (M,)."""
    return np.where(probabilities >= thresholds, probabilities, 1 - probabilities)


def risk_coverage(confidence: NDArray[np.floating[Any]], wrong: NDArray[np.bool_]) -> RiskCoverage:
    """Return the curve of M >= 1 decisions, given the confidence (M,) of each and whether it is wrong (M,)."""
    kept, wrong_kept = _count_kept(confidence, wrong, np.ones((1, len(wrong))))
    ranks = np.arange(1, len(wrong) + 1)
    summed = np.interp(ranks, np.concatenate([[0], kept[0]]), np.concatenate([[0], wrong_kept[0]]))
    return RiskCoverage(ranks / len(wrong), summed / ranks)


def compute_aurc(confidence: NDArray[np.floating[Any]], wrong: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return the area under the risk-coverage curve for each row of weights.

    A study that is drawn several times counts as several decisions of equal confidence. For g decisions of equal
    confidence with w wrong, after n decisions with W wrong, the risks (W + w j / g) / (n + j), j = 1 to g, add up to
    w + (W - w n / g) (H(n + g) - H(n)) with the harmonic numbers H.

    Args:
        confidence: (M,).
        wrong: (M,).
        weights: (R, M), how often each decision counts: whole numbers.

    Returns:
        (R,), NaN where no decision counts.
    """
    kept_counts, wrong_kept = _count_kept(confidence, wrong, weights)  # (R, runs)
    counts = np.rint(kept_counts).astype(np.int64)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, max(1, int(counts.max(initial=0))) + 1))])
    before, wrong_before = (np.pad(values, ((0, 0), (1, 0)))[:, :-1] for values in (counts, wrong_kept))
    run, wrong_run = counts - before, wrong_kept - wrong_before
    slope = np.divide(wrong_run, run, out=np.zeros_like(wrong_run), where=run > 0)
    areas = wrong_run + (wrong_before - slope * before) * (harmonic[counts] - harmonic[before])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(areas.sum(1) / counts[:, -1])


def _count_kept(
    confidence: NDArray[np.floating[Any]], wrong: NDArray[np.bool_], weights: Floats
) -> tuple[Floats, Floats]:
    """Return the cumulative number of decisions and of wrong ones after each run of equal confidence: (R, runs)."""
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    drawn = weights[:, order]
    return (
        np.add.reduceat(drawn, starts, axis=1).cumsum(1),
        np.add.reduceat(drawn * wrong[order], starts, axis=1).cumsum(1),
    )


def measure_abstention(
    predictions: SplitPredictions, decisions: Decisions, options: Options
) -> list[dict[str, Any]]:
    """Return a row for the study, the image and the report: decisions, curve and conformal sets.

    A label counts if at least `MIN_POSITIVES` studies are known to have it and as many to lack it. A model without
    bands is never uncertain. Without a conformal threshold "set" is None. A way without thresholds has no row.
    """
    rows = []
    for way in predictions.gallery_answers:  # the plain ways
        if way.kind not in decisions.ways:
            continue
        answers = predictions.answers[way]
        answered = np.flatnonzero(answers.answered)
        patients = [predictions.test.patient_ids[row] for row in answered]
        weights = weigh_studies(patients, options.seed, options.resamples)
        metrics = measure_decisions(
            answers.probabilities[answered],
            predictions.test.targets[answered],
            decisions.of(way.kind),
            weights,
            known=predictions.test.known[answered],
        )
        rows.append({"key": way.key, "title": way.title, "studies": len(answered), **metrics})
    return rows


def measure_decisions(
    probabilities: NDArray[np.floating[Any]],
    targets: NDArray[np.bool_],
    labels: Sequence[ServedLabel],
    weights: Floats,
    *,
    known: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """Measure the decisions about M studies.

    Args:
        probabilities: (M, K).
        targets: (M, K), False if unknown.
        labels: K labels with thresholds.
        weights: (1 + R, M). The first row is ones; the others are the number of times each study was drawn.
        known: (M, K), which of the targets are known; a label is measured on these studies alone. Default: all.

    Returns:
        "averaged" (keys), "macro", "labels", "curve" (means over the labels, by coverage) and "set".
    """
    known = np.ones_like(targets) if known is None else known
    usable, positives = find_usable(targets, known), (targets & known).sum(0)
    tables = {
        k: _measure_label(probabilities[rows, k], targets[rows, k], labels[k], weights[:, rows])
        for k, rows in ((k, known[:, k]) for k in usable)
    }
    macro = {name: _summarise([table[name] for table in tables.values()]) for name in METRICS}
    return {
        "averaged": [labels[k].key for k in usable],
        "macro": {name: value for name, value in macro.items() if value is not None},
        "labels": {labels[k].key: _describe_label(labels[k], tables[k], int(positives[k])) for k in usable},
        "curve": _average_curves(
            [(probabilities[known[:, k], k], targets[known[:, k], k], labels[k]) for k in usable]
        ),
        "set": _measure_sets(probabilities, targets & known, labels, weights),
    }


def _measure_label(
    probabilities: NDArray[np.floating[Any]], targets: NDArray[np.bool_], label: ServedLabel, weights: Floats
) -> dict[str, Floats]:
    """Return every metric (1 + R,) of one label."""
    decisions = np.array([label.decide(value) for value in probabilities.tolist()])
    threshold = np.array(label.threshold, np.float64)
    wrong = (probabilities >= threshold) != targets
    decided = decisions != "uncertain"
    everything = np.ones_like(decided)
    confidence = measure_confidence(probabilities, threshold)
    step = max(1, _BLOCK // max(1, len(targets)))
    blocks = [weights[start : start + step] for start in range(0, len(weights), step)]
    aurc, oracle = (
        np.concatenate([compute_aurc(order, wrong, rows) for rows in blocks])
        for order in (confidence, (~wrong).astype(np.float64))
    )
    return {
        "coverage": _share(decided, everything, weights),
        "error": _share(wrong & decided, decided, weights),
        "error_all": _share(wrong, everything, weights),
        "missed": _share(targets & (decisions == "absent"), targets, weights),
        "false_alarms": _share(~targets & (decisions == "present"), ~targets, weights),
        "aurc": aurc,
        "aurc_oracle": oracle,
        "aurc_excess": aurc - oracle,
    }


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_], weights: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((weights @ part) / (weights @ whole))


def _summarise(rows: Sequence[Floats]) -> dict[str, float] | None:
    """Return the mean over the labels for which a metric is defined, with its interval; None without such a label."""
    defined = [row for row in rows if not np.isnan(row[0])]
    return summarise(np.stack(defined)).to_dict() if defined else None


def _describe_label(label: ServedLabel, table: Mapping[str, Floats], positives: int) -> dict[str, Any]:
    metrics = {name: _summarise([table[name]]) for name in METRICS}
    return {
        **{name: value for name, value in metrics.items() if value is not None},
        "positives": positives,
        "band": None if label.uncertain_low is None else [label.uncertain_low, label.uncertain_high],
        "stated_missed": label.stated_missed,
        "stated_false_alarms": label.stated_false_alarms,
    }


def _average_curves(
    answers: Sequence[tuple[NDArray[np.floating[Any]], NDArray[np.bool_], ServedLabel]],
) -> dict[str, list[float]]:
    """Return the mean risk over labels at `_POINTS` coverages, and that of the oracle; empty without labels.

    Args:
        answers: For each label, the probabilities and targets (M,) of the studies with a known value.
    """
    if not answers:
        return {"coverage": [], "risk": [], "oracle": []}
    coverage = np.linspace(0.02, 1, _POINTS)
    risks = np.zeros((2, _POINTS))
    for probabilities, targets, label in answers:
        threshold = np.array(label.threshold, np.float64)
        wrong = (probabilities >= threshold) != targets
        confidence = measure_confidence(probabilities, threshold)
        for index, order in enumerate((confidence, (~wrong).astype(np.float64))):
            curve = risk_coverage(order, wrong)
            risks[index] += np.interp(coverage, curve.coverage, curve.risk) / len(answers)
    values = {"coverage": coverage, "risk": risks[0], "oracle": risks[1]}
    return {name: [round(float(value), 4) for value in row] for name, row in values.items()}


def _measure_sets(
    probabilities: NDArray[np.floating[Any]],
    targets: NDArray[np.bool_],
    labels: Sequence[ServedLabel],
    weights: Floats,
) -> dict[str, Any] | None:
    """Return stated and reached recall of the conformal sets over the studies with a label, and their mean size."""
    stated, limits = labels[0].stated_recall, [label.include for label in labels]
    counted = targets.any(1)
    if stated is None or None in limits or not counted.any():
        return None
    included = (probabilities >= np.array(limits, np.float64))[counted]
    truth, weights = targets[counted], weights[:, counted]
    values = {
        "recall": (included & truth).sum(1) / truth.sum(1),
        "size": included.sum(1),
        "labels": truth.sum(1),  # number of labels of a study
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        means = {name: (weights @ value) / weights.sum(1) for name, value in values.items()}
    return {"stated_recall": stated, **{name: _summarise([row]) for name, row in means.items()}}
