"""Fit the "uncertain" bands and the conformal sets on the validation split.

Selective classification (El-Yaniv and Wiener 2010, On the Foundations of Noise-free Selective Classification;
Geifman and El-Yaniv 2017, Selective Classification for Deep Neural Networks) answers only if an error is unlikely
enough. The plain error rate is a poor measure for rare findings: for a finding in 2 % of the studies, always answering
"absent" has an error rate of 2 %. So each kind of error has its own limit, within its own class:

    missed        of the studies with the finding, the share that is decided "absent"
    false alarms  of the studies without it, the share that is decided "present"

Both hold for any prevalence of the finding, as long as the cases of each class are similar. (The plain error outside
the band is not limited. It may be larger than over all studies, because a weak model can no longer answer "absent",
which is right for most.) The band of a label is the smallest one around its threshold that keeps both limits:

    0 ──── absent ────[ low ── uncertain ── threshold ── uncertain ── high )──── present ──── 1

The limits are met in expectation over validation splits, by split conformal prediction conditional on the class
(Vovk 2012, Conditional validity of inductive conformal predictors; "Mondrian"), which is Conformal Risk Control
(Angelopoulos et al. 2022, https://arxiv.org/abs/2208.02814) of each kind of error. Each way to read a study (image,
report, both) is fitted separately: in a joint fit, good ways would hide the misses of a weak one, and rows of one study
are not independent.

The method assumes that new cases are drawn like the validation split, one row per study, and that nothing else was
fitted on it. But calibration, thresholds and the choice of the epoch were fitted on it. So compare the stated limits
with the measured values on the test split (`training.evaluation.abstention`).
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.decisions import ServedLabel
from contract.errors import ConfigError

MISSED: Final = 0.10
FALSE_ALARMS: Final = 0.05
RECALL: Final = 0.90
_GRID: Final = np.concatenate(
    [[-1.0], np.geomspace(1e-4, 0.99, 80)]
)  # -1 also includes labels with probability 0
_BLOCK: Final = 500  # studies at a time; MAPIE copies their answers for each point of the grid

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Selection:
    """The statements of a model about its decisions for one way to read a study.

    Attributes:
        bands: (K, 2), low and high edge; a probability in [low, high) is uncertain.
        missed: (K,) limit on the share of missed positives; NaN with too few cases.
        false_alarms: (K,) limit on the share of false alarms; NaN with too few cases.
        include: Probability from which a label belongs to the conformal set; None with too few studies.
        recall: Smallest expected share of a study's labels in its set; None with too few studies.
    """

    bands: Floats
    missed: Floats
    false_alarms: Floats
    include: float | None
    recall: float | None

    def add_to(self, labels: tuple[ServedLabel, ...]) -> tuple[ServedLabel, ...]:
        """Return K labels with these statements. A label without limits gets no band."""
        updated = []
        for label, (low, high), missed, false_alarms in zip(
            labels, self.bands.tolist(), self.missed.tolist(), self.false_alarms.tolist(), strict=True
        ):
            limits = [None if np.isnan(limit) else limit for limit in (missed, false_alarms)]
            banded = any(limit is not None for limit in limits)
            updated.append(
                replace(
                    label,
                    uncertain_low=low if banded else None,
                    uncertain_high=high if banded else None,
                    stated_missed=limits[0],
                    stated_false_alarms=limits[1],
                    include=self.include,
                    stated_recall=self.recall,
                )
            )
        return tuple(updated)


def mark_unlearned(labels: tuple[ServedLabel, ...], learned: NDArray[np.bool_]) -> tuple[ServedLabel, ...]:
    """Return the labels. A label that was not learned is always "uncertain".

    Args:
        labels: K labels.
        learned: (K,), whether a training study states the label.
    """
    return tuple(
        label
        if is_learned
        else replace(
            label,
            threshold=1.0,
            uncertain_low=0.0,
            uncertain_high=1.0,
            stated_missed=None,
            stated_false_alarms=None,
            include=None if label.include is None else 1.0,
        )
        for label, is_learned in zip(labels, learned.tolist(), strict=True)
    )


def fit_selection(
    probabilities: NDArray[np.floating[Any]],
    targets: NDArray[np.bool_],
    thresholds: NDArray[np.floating[Any]],
    *,
    known: NDArray[np.bool_] | None = None,
    missed: float = MISSED,
    false_alarms: float = FALSE_ALARMS,
    recall: float = RECALL,
) -> Selection:
    """Fit the bands and the conformal set; see `fit_bands` for the arguments and `fit_include` for `recall`."""
    bands = fit_bands(
        probabilities, targets, thresholds, known=known, missed=missed, false_alarms=false_alarms
    )
    include = fit_include(probabilities, targets, recall=recall)
    negatives = _find_negatives(targets, known)
    return Selection(
        bands,
        np.where(_find_supported(targets, missed), missed, np.nan),
        np.where(_find_supported(negatives, false_alarms), false_alarms, np.nan),
        include,
        None if include is None else recall,
    )


def fit_bands(
    probabilities: NDArray[np.floating[Any]],
    targets: NDArray[np.bool_],
    thresholds: NDArray[np.floating[Any]],
    *,
    known: NDArray[np.bool_] | None = None,
    missed: float = MISSED,
    false_alarms: float = FALSE_ALARMS,
) -> Floats:
    """Fit the band of each label.

    An edge needs 1 / limit studies of its class (10 with the finding for 10 % missed). With fewer studies the edge is
    the threshold, and "absent" has no limit. If the model separates the classes well, both edges are the threshold
    too, and no study is uncertain.

    Args:
        probabilities: (M, K), 0 to 1, calibrated.
        targets: (M, K), False if unknown.
        thresholds: (K,), from which a finding is present.
        known: (M, K), whether a target is known. Default: all.
        missed: Limit on the expected share of positives decided "absent", 0 to 1 (both excluded).
        false_alarms: Limit on the expected share of negatives decided "present", 0 to 1 (both excluded).

    Returns:
        (K, 2), low <= threshold <= high.

    Raises:
        ConfigError: The shapes of the arrays do not match, or a limit is out of range.
    """
    _check(probabilities, targets, missed, false_alarms)
    if thresholds.shape != targets.shape[1:]:
        raise ConfigError(f"{targets.shape[1]} labels need as many thresholds, not {thresholds.shape}.")
    bands = np.repeat(np.asarray(thresholds, np.float64)[:, None], 2, axis=1)
    negatives = _find_negatives(targets, known)
    supported = zip(_find_supported(targets, missed), _find_supported(negatives, false_alarms), strict=True)
    for k, (has_low, has_high) in enumerate(supported):
        values = probabilities[:, k]
        if has_low:
            bands[k, 0] = min(bands[k, 0], _find_edge(values[targets[:, k]], missed))
        if has_high:  # the highest negative without an alarm is inside the band
            highest = -_find_edge(-values[negatives[:, k]], false_alarms)
            bands[k, 1] = max(bands[k, 1], min(1.0, np.nextafter(highest, np.inf)))
    return bands


def fit_include(
    probabilities: NDArray[np.floating[Any]],
    targets: NDArray[np.bool_],
    *,
    recall: float = RECALL,
) -> float | None:
    """Fit the probability from which a label belongs to the conformal set.

    In expectation, the set of all labels with at least this probability holds at least `recall` of the known true
    labels of a study with labels. This is conformal risk control of the recall by MAPIE
    (`mapie.risk_control.MultiLabelClassificationController`, method "crc").

    Args:
        probabilities: (M, K), 0 to 1.
        targets: (M, K).
        recall: 0 to 1, both excluded.

    Returns:
        0 to 1; None with fewer than 1 / (1 - recall) studies that have a label.

    Raises:
        ConfigError: The shapes of the arrays do not match, `recall` is out of range, or MAPIE is not installed.
    """
    _check(probabilities, targets, 1 - recall)
    labelled = targets.any(1)
    if not _can_state(labelled.sum(), 1 - recall):
        return None
    return _control_recall(probabilities[labelled], targets[labelled], recall)


def _control_recall(
    probabilities: NDArray[np.floating[Any]], targets: NDArray[np.bool_], recall: float
) -> float:
    try:
        from mapie.risk_control import MultiLabelClassificationController
    except ModuleNotFoundError as error:
        raise ConfigError("Conformal sets need MAPIE: pip install 'cxr-serving[train]'.") from error
    controller = MultiLabelClassificationController(
        lambda rows: rows, risk="recall", method="crc", target_level=recall, predict_params=_GRID
    )
    for start in range(0, len(targets), _BLOCK):
        rows = slice(start, start + _BLOCK)
        controller.compute_risks(probabilities[rows], targets[rows].astype(np.int64))
    controller.compute_best_predict_param()
    return max(0.0, float(controller.best_predict_param[0]))


def _find_edge(scores: NDArray[np.floating[Any]], limit: float) -> float:
    """Return the highest of n scores such that a new score is below it with a probability of at most `limit`.

    If k scores are strictly below it, that probability is at most (k + 1) / (n + 1).
    """
    below = int(limit * (len(scores) + 1) - 1 + 1e-9)  # the small term prevents a rounding error
    return float(np.sort(scores)[below])


def _find_negatives(targets: NDArray[np.bool_], known: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    return ~targets if known is None else ~targets & known


def _find_supported(classes: NDArray[np.bool_], limit: float) -> NDArray[np.bool_]:
    """Return (K,), whether a label has enough studies of the class (M, K) for a limit."""
    return np.array([_can_state(count, limit) for count in classes.sum(0).tolist()], bool)


def _can_state(count: float, limit: float) -> bool:
    return count * limit >= 1 - 1e-9


def _check(probabilities: NDArray[np.floating[Any]], targets: NDArray[np.bool_], *limits: float) -> None:
    """Raise ConfigError for arguments that cannot be fitted."""
    if probabilities.shape != targets.shape:
        raise ConfigError(f"Probabilities {probabilities.shape} and targets {targets.shape} do not fit.")
    for limit in limits:
        if not 0 < limit < 1:
            raise ConfigError(f"A stated share must lie between 0 and 1, not at {limit:g}.")
