"""Measures of the difference between two sets of answers, such as flipped decisions and changed neighbours.

The shapes: M cases, K labels, D embedding size. This module needs only numpy, and scikit-learn for the scores.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.decisions import ServedLabel
from contract.embedding import take_joint

Array = NDArray[np.floating[Any]]
NEIGHBOURS: Final = 10
MIN_CASES: Final = NEIGHBOURS + 2  # with fewer cases, nearly all are among the nearest
MIN_SCORED: Final = 50  # with fewer labelled cases, one swapped pair changes AUROC by more than a limit
_TIE: Final = 1e-6  # cosines with a smaller difference count as equal
_DECIMALS: Final = 5  # probabilities are rounded before scoring, so that equal cases stay equal


def find_largest_difference(expected: Array, actual: Array) -> float:
    """Return the largest absolute difference, or NaN if a value is not finite."""
    difference = np.abs(expected.astype(np.float64) - actual)
    return float(difference.max()) if np.isfinite(difference).all() else float("nan")


def compute_cosines(expected: Array, actual: Array, label_part: int) -> NDArray[np.float64]:
    """Return the cosine (M,) in the joint space of each pair of rows of two (M, D) arrays of embeddings.

    The label part (`contract.embedding`) repeats the probabilities, which have limits of their own. In the whole cosine
    it would hide most of an error of the joint space.

    Args:
        expected: (M, D) embeddings.
        actual: (M, D) embeddings of the same cases.
        label_part: Length of their label part.
    """
    return np.asarray((take_joint(expected, label_part) * take_joint(actual, label_part)).sum(-1))


def count_flips(labels: Sequence[ServedLabel], expected: Array, actual: Array) -> int:
    """Count the decisions that change from present to absent or back between two (M, K) arrays of probabilities.

    A decision that is uncertain in one of the arrays does not count. A step into or out of the uncertain band changes
    how sure the model is, but not what it says. A label without a threshold does not count either.
    """
    return int((_decide(labels, expected) * _decide(labels, actual) == -1).sum())


def score_labels(
    targets: NDArray[np.bool_], probabilities: Array, known: NDArray[np.bool_] | None = None
) -> tuple[float, float, int]:
    """Return macro AUROC, macro average precision and the number of labels in these means.

    Args:
        targets: (M, K) labels.
        probabilities: (M, K) probabilities.
        known: (M, K), True where the target is known. A label is scored on its known cases only. None: all are known.

    Returns:
        The means over the labels with at least one positive and one negative case. Both means are NaN if there is no
        such label or a probability is not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    known = np.ones_like(targets) if known is None else known
    usable = np.flatnonzero((targets & known).any(0) & (~targets & known).any(0))
    if not len(usable) or not np.isfinite(probabilities).all():
        return float("nan"), float("nan"), len(usable)
    rounded = probabilities.astype(np.float64).round(_DECIMALS)
    pairs = [(targets[known[:, k], k], rounded[known[:, k], k]) for k in usable]
    auroc, ap = (
        float(np.mean([score(*pair) for pair in pairs])) for score in (roc_auc_score, average_precision_score)
    )
    return auroc, ap, len(usable)


def measure_overlap(expected: Array, actual: Array) -> float | None:
    """Return the mean share of each case's ten nearest other cases that both sets of embeddings have in common.

    A neighbour counts as common if its cosine in `expected` is at least that of the tenth neighbour there.

    Args:
        expected: (M, D) embeddings.
        actual: (M, D) embeddings of the same cases.

    Returns:
        A share from 0 to 1, or None with fewer than 12 cases.
    """
    if len(expected) < MIN_CASES:
        return None
    before, after = _compare_all(expected), _compare_all(actual)
    tenth = np.sort(before, axis=1)[:, -NEIGHBOURS]
    nearest = np.argpartition(-after, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    return float((np.take_along_axis(before, nearest, axis=1) >= tenth[:, None] - _TIE).mean())


def _decide(labels: Sequence[ServedLabel], probabilities: Array) -> NDArray[np.int8]:
    """Return 1 for present, -1 for absent and 0 for other decisions: `contract.decisions.decide` for arrays."""
    rows = [(label.threshold, label.uncertain_low, label.uncertain_high) for label in labels]
    threshold, low, high = np.array(rows, np.float64).T  # (K,) each, NaN for None
    undecided = np.isnan(threshold) | ((probabilities >= low) & (probabilities < high))
    return np.where(undecided, 0, np.where(probabilities >= threshold, 1, -1)).astype(np.int8)


def _compare_all(embeddings: Array) -> NDArray[np.float64]:
    """Return the cosines (M, M) of all pairs of cases, with -inf on the diagonal."""
    rows = embeddings.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines
