"""When to say "uncertain", and which labels to name to be on the safe side; fitted on the validation split.

Selective classification (El-Yaniv and Wiener 2010, On the Foundations of Noise-free Selective Classification;
Geifman and El-Yaniv 2017, Selective Classification for Deep Neural Networks) answers only where an error is
unlikely enough. The plain error rate is a poor measure for rare findings: whoever calls a finding of 2 % absent
in everyone errs in 2 %. So each kind of error has a limit of its own, within its own class:

    missed        of the studies with the finding, the share that is decided "absent"
    false alarms  of the studies without it, the share that is decided "present"

Both hold whatever the share of the finding is where the model is used, as long as the cases of each class look
alike. (The plain error outside the band is not limited, and may be larger than over all: a weak model may no longer
say the "absent" that is right for most.) The band of a label is the smallest one around its threshold that keeps both:

    0 ──── absent ────[ low ── uncertain ── threshold ── uncertain ── high )──── present ──── 1

The limits are met in expectation over validation splits, by split conformal prediction conditional on the class
(Vovk 2012, Conditional validity of inductive conformal predictors; "Mondrian"), which is Conformal Risk Control
(Angelopoulos et al. 2022, https://arxiv.org/abs/2208.02814) of each kind of error. Each way to read a study (image,
report, both) is fitted by itself: over all of them together the sure ones would hide what a weak one misses, and rows
of one study are not independent.

It supposes that new cases are drawn like the validation split, one row per study, and that nothing else was fitted on
it. Here calibration, thresholds and the choice of the epoch were, so that what was reached on the
test split has to be read beside what is stated: `training.evaluation.abstention`.
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
_GRID: Final = np.concatenate([[-1.0], np.geomspace(1e-4, 0.99, 80)])  # -1 keeps also what has probability 0
_BLOCK: Final = 500  # studies at once; MAPIE holds a copy of their answers per point of the grid

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Selection:
    """What a model states about its decisions on one way to read a study.

    Attributes:
        bands: (K, 2), low and high edge; a probability in [low, high) is uncertain.
        missed: (K,) limit on the share of missed positives, NaN where too few cases support one.
        false_alarms: (K,) limit on the share of false alarms, NaN likewise.
        include: Probability from which a label belongs to the conformal set; None without enough studies.
        recall: Expected share of a study's labels in its set, at least; None likewise.
    """

    bands: Floats
    missed: Floats
    false_alarms: Floats
    include: float | None
    recall: float | None

    def add_to(self, labels: tuple[ServedLabel, ...]) -> tuple[ServedLabel, ...]:
        """Return K labels with these statements; a label about which nothing can be stated gets no band."""
        found = []
        for label, (low, high), missed, false_alarms in zip(
            labels, self.bands.tolist(), self.missed.tolist(), self.false_alarms.tolist(), strict=True
        ):
            limits = [None if np.isnan(limit) else limit for limit in (missed, false_alarms)]
            banded = any(limit is not None for limit in limits)
            found.append(
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
        return tuple(found)


def mark_unlearned(labels: tuple[ServedLabel, ...], learned: NDArray[np.bool_]) -> tuple[ServedLabel, ...]:
    """Return the labels; those that nothing was learned of are "uncertain" whatever the probability is.

    Args:
        labels: K labels.
        learned: (K,), which of them some training study states.
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

    An edge needs 1 / limit studies of its class (10 with the finding for 10 % missed). With fewer it is the threshold:
    "absent" then rests on the finding being rare, not on a limit. Where the model tells the classes well apart both
    edges are the threshold too, and nothing is uncertain.

    Args:
        probabilities: (M, K), 0 to 1, calibrated.
        targets: (M, K), False where nothing is known.
        thresholds: (K,), from which a finding counts as present.
        known: (M, K), which of the targets are known; default: all.
        missed: Limit on the expected share of positives decided "absent", 0 to 1 (both excluded).
        false_alarms: Limit on the expected share of negatives decided "present", likewise.

    Returns:
        (K, 2), low <= threshold <= high.

    Raises:
        ConfigError: The arrays do not fit each other, or a limit is out of range.
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
        if has_high:  # the highest negative that is still no alarm lies inside the band
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

    The set of all labels with at least this probability holds, in expectation, at least `recall` of the true labels
    of a study that has any, of those that are known: conformal risk control of the recall by MAPIE
    (`mapie.risk_control.MultiLabelClassificationController`, method "crc").

    Args:
        probabilities: (M, K), 0 to 1.
        targets: (M, K).
        recall: 0 to 1, both excluded.

    Returns:
        0 to 1; None with fewer than 1 / (1 - recall) studies that have a label.

    Raises:
        ConfigError: The arrays do not fit each other, `recall` is out of range, or MAPIE is not installed.
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
    """Return the highest of n scores below which a new one lies with a probability of at most `limit`.

    With k of them strictly below it, that probability is at most (k + 1) / (n + 1).
    """
    below = int(limit * (len(scores) + 1) - 1 + 1e-9)  # rounding must not cost a case
    return float(np.sort(scores)[below])


def _find_negatives(targets: NDArray[np.bool_], known: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    return ~targets if known is None else ~targets & known


def _find_supported(classes: NDArray[np.bool_], limit: float) -> NDArray[np.bool_]:
    """Return for which labels (K,) there are enough studies of the class (M, K) for a limit."""
    return np.array([_can_state(count, limit) for count in classes.sum(0).tolist()], bool)


def _can_state(count: float, limit: float) -> bool:
    return count * limit >= 1 - 1e-9


def _check(probabilities: NDArray[np.floating[Any]], targets: NDArray[np.bool_], *limits: float) -> None:
    """Raise ConfigError for what cannot be fitted."""
    if probabilities.shape != targets.shape:
        raise ConfigError(f"Probabilities {probabilities.shape} and targets {targets.shape} do not fit.")
    for limit in limits:
        if not 0 < limit < 1:
            raise ConfigError(f"A stated share must lie between 0 and 1, not at {limit:g}.")
