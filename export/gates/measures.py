"""How far two sets of answers are apart, as a person would notice it. Numpy alone; everything is per case.

M cases, K labels, D embedding size.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.decisions import ServedLabel

Array = NDArray[np.floating[Any]]
NEIGHBOURS: Final = 10
MIN_CASES: Final = NEIGHBOURS + 2  # with fewer, nearly every case is among the nearest
MIN_SCORED: Final = (
    50  # with fewer labelled cases, one pair in another order changes AUROC more than a limit allows
)
_TIE: Final = 1e-6  # cosines that close count as equal
_DECIMALS: Final = 5  # probabilities that agree so far count as equal, so that equal cases stay equal


def find_largest_difference(expected: Array, found: Array) -> float:
    """Return the largest absolute difference; NaN where an answer is not a finite number."""
    difference = np.abs(expected.astype(np.float64) - found)
    return float(difference.max()) if np.isfinite(difference).all() else float("nan")


def compute_cosines(expected: Array, found: Array) -> NDArray[np.float64]:
    """Return the cosine (M,) of each pair of rows of two (M, D) arrays."""
    first, second = expected.astype(np.float64), found.astype(np.float64)
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return (first * second).sum(-1) / np.maximum(lengths, np.finfo(np.float64).tiny)


def count_flips(labels: Sequence[ServedLabel], expected: Array, found: Array) -> int:
    """Count decisions of two (M, K) arrays of probabilities that turn from present to absent or back.

    A decision that is uncertain in one of them is none: crossing an edge of the uncertain band tells a person that the
    model is less or more sure, not something else. Nor is one of a label without a threshold.
    """
    return int((_decide(labels, expected) * _decide(labels, found) == -1).sum())


def score_labels(
    targets: NDArray[np.bool_], probabilities: Array, known: NDArray[np.bool_] | None = None
) -> tuple[float, float, int]:
    """Return macro AUROC, macro average precision and how many labels they are the mean of.

    Args:
        targets: (M, K).
        probabilities: (M, K).
        known: (M, K), which of the targets are known; a label is scored on these cases alone. Default: all.

    Returns:
        Over the labels that some but not all cases have; (NaN, NaN, 0) where there is none, and NaN where a
        probability is not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    known = np.ones_like(targets) if known is None else known
    usable = np.flatnonzero((targets & known).any(0) & (~targets & known).any(0))
    if not len(usable) or not np.isfinite(probabilities).all():
        return float("nan"), float("nan"), len(usable)
    rounded = probabilities.astype(np.float64).round(_DECIMALS)
    asked = [(targets[known[:, k], k], rounded[known[:, k], k]) for k in usable]
    auroc, ap = (
        float(np.mean([score(*answers) for answers in asked]))
        for score in (roc_auc_score, average_precision_score)
    )
    return auroc, ap, len(usable)


def measure_overlap(expected: Array, found: Array) -> float | None:
    """Return the mean share of each case's ten nearest other cases, by `found`, that are nearest by `expected` too.

    A neighbour whose cosine in `expected` equals that of the tenth counts as one of the ten.

    Args:
        expected: (M, D) embeddings.
        found: (M, D) embeddings of the same cases.

    Returns:
        0 to 1; None with fewer than 12 cases.
    """
    if len(expected) < MIN_CASES:
        return None
    before, after = _compare_all(expected), _compare_all(found)
    tenth = np.sort(before, axis=1)[:, -NEIGHBOURS]
    nearest = np.argpartition(-after, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    return float((np.take_along_axis(before, nearest, axis=1) >= tenth[:, None] - _TIE).mean())


def _decide(labels: Sequence[ServedLabel], probabilities: Array) -> NDArray[np.int8]:
    """Return 1 for present, -1 for absent, 0 for all else; `contract.decisions.decide` for whole arrays."""
    rows = [(label.threshold, label.uncertain_low, label.uncertain_high) for label in labels]
    threshold, low, high = np.array(rows, np.float64).T  # (K,) each, NaN where nothing is stated
    undecided = np.isnan(threshold) | ((probabilities >= low) & (probabilities < high))
    return np.where(undecided, 0, np.where(probabilities >= threshold, 1, -1)).astype(np.int8)


def _compare_all(embeddings: Array) -> NDArray[np.float64]:
    """Return the cosines (M, M) of all pairs; a case with itself is -inf."""
    rows = embeddings.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines
