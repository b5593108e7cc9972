"""Controls: one logistic regression per label, on simple features.

The results of a network must be compared with such a regression on the same studies. The regression is fitted on the
training studies. Its calibration and thresholds are fitted on the validation studies, like those of a model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.bootstrap import RESAMPLES
from training.evaluation.calibrate import apply_platt, fit_platt
from training.evaluation.labels import LabelMetrics, evaluate_labels, fit_thresholds
from training.evaluation.plan import Studies

Truth = tuple[NDArray[np.bool_], NDArray[np.bool_]]  # targets (M, K), and whether they are known (M, K)
_NEVER = -10.0  # logit of a label that no regression can be fitted for


@dataclass(frozen=True)
class ControlAnswers:
    """The predictions of a control for the M test studies that it can read.

    Attributes:
        rows: (M,), their rows among the test studies.
        probabilities: (M, K), calibrated on validation.
        thresholds: (K,), fitted on validation.
    """

    rows: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    thresholds: NDArray[np.float64]


def fit_regressions(
    features: Mapping[str, Any],
    targets: NDArray[np.bool_],
    known: NDArray[np.bool_] | None,
    make_model: Callable[[], Any],
) -> dict[str, NDArray[np.float32]]:
    """Fit one regression per label on the features of "train".

    Args:
        features: Part -> (M, F), dense or sparse.
        targets: (M_train, K).
        known: (M_train, K), whether a target is known. None: all.
        make_model: Returns a new classifier of scikit-learn with `fit` and `decision_function`.

    Returns:
        Part -> logits (M, K). They are constant for a label that all or none of the known "train" studies have.
    """
    known = np.ones_like(targets) if known is None else known
    logits = {
        part: np.full((matrix.shape[0], targets.shape[1]), _NEVER, np.float32)
        for part, matrix in features.items()
    }
    for k in np.flatnonzero((targets & known).any(0) & (~targets & known).any(0)):
        rows = np.flatnonzero(known[:, k])
        model = make_model().fit(features["train"][rows], targets[rows, k])
        for part, matrix in features.items():
            logits[part][:, k] = model.decision_function(matrix)
    return logits


def calibrate_logits(
    logits: Mapping[str, NDArray[np.float32]], validation: Truth
) -> dict[str, NDArray[np.float32]]:
    """Return part -> probabilities (M, K), calibrated on the part "validation"."""
    scale, bias = fit_platt(logits["validation"], *validation)
    return {part: apply_platt(values, scale, bias) for part, values in logits.items()}


def decide(
    rows: NDArray[np.int64], probabilities: Mapping[str, NDArray[np.float32]], validation: Truth
) -> ControlAnswers:
    """Return the answers for the part "test", with thresholds fitted on the part "validation"."""
    thresholds = fit_thresholds(probabilities["validation"], *validation)
    return ControlAnswers(rows, probabilities["test"], thresholds)


def evaluate_answers(
    answers: ControlAnswers, test: Studies, *, seed: int = 0, resamples: int = RESAMPLES
) -> LabelMetrics:
    """Evaluate the predictions of a control for test studies."""
    studies = test.take(answers.rows)
    return evaluate_labels(
        answers.probabilities,
        studies.targets,
        answers.thresholds,
        groups=studies.patient_ids,
        known=studies.known,
        seed=seed,
        resamples=resamples,
    )
