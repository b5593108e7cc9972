"""Statistics that compare two samples. The tests, kernels and intervals are those of scipy and scikit-learn."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from sklearn.metrics import pairwise

Values = NDArray[np.floating[Any]]
BINS: Final = 10
PERMUTATIONS: Final = 1999
RESAMPLES: Final = 1000
_SMOOTHING: Final = 0.5  # cases added to each bin, so that no share is 0


def measure_psi(reference: Values, current: Values, *, categories: int = 0) -> tuple[float, float]:
    """Return the population stability index of two samples, and the value that chance alone rarely exceeds.

    PSI = sum over bins of (q - p) ln(q / p), where p and q are the shares of the two samples (S. Lewis, "An
    Introduction to Credit Scoring", 1994). It is the Kullback-Leibler divergence in both directions. The bins are the
    deciles of the reference.

    Without a change, PSI is about (1/n + 1/m) times a chi-squared variable with (bins - 1) degrees of freedom
    (B. Yurdakul, J. Naranjo, "Statistical properties of the population stability index", Journal of Risk Model
    Validation 14(4), 2020). So the usual limits of 0.1 and 0.25 mean little for small samples.

    Args:
        reference: (n,), at least one value.
        current: (m,), at least one value.
        categories: Number of categories if the values are codes 0, 1, ...; each is a bin. 0: the values are numbers.

    Returns:
        PSI, 0 or more, and the 95 % quantile of its distribution without a change.
    """
    counts = _count(reference, current, categories)
    p, q = ((row + _SMOOTHING) / (row + _SMOOTHING).sum() for row in counts)
    psi = float((special.rel_entr(p, q) + special.rel_entr(q, p)).sum())
    freedom = max(1, counts.shape[1] - 1)
    return psi, float(stats.chi2.ppf(0.95, freedom) * (1 / len(reference) + 1 / len(current)))


def _count(reference: Values, current: Values, categories: int) -> NDArray[np.int64]:
    """Return (2, bins), the cases of both samples in each bin. Categories that neither has are left out."""
    if categories:
        counts = [np.bincount(x.astype(np.int64), minlength=categories) for x in (reference, current)]
        return np.array(counts)[:, np.sum(counts, axis=0) > 0]
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins = (np.searchsorted(edges, x, side="left") for x in (reference, current))
    return np.array([np.bincount(x, minlength=len(edges) + 1) for x in bins])


def compare_values(reference: Values, current: Values, *, categories: int = 0) -> tuple[str, float, float]:
    """Test whether two samples have the same distribution.

    Args:
        reference: (n,), at least one value.
        current: (m,), at least one value.
        categories: As for `measure_psi`.

    Returns:
        "KS" (Kolmogorov-Smirnov), or "chi2" for categories; its statistic; its p value.
    """
    if not categories:
        found = stats.ks_2samp(reference, current, method="asymp")
        return "KS", float(found.statistic), float(found.pvalue)
    counts = _count(reference, current, categories)
    if counts.shape[1] < 2:
        return "chi2", 0.0, 1.0
    found = stats.chi2_contingency(counts)
    return "chi2", float(found.statistic), float(found.pvalue)


def measure_shift(reference: Values, current: Values, *, seed: int) -> tuple[float, float, float]:
    """Return the mean of `current` minus that of `reference`, with a 95 % interval from drawing the cases anew.

    Args:
        reference: (n,), at least two values.
        current: (m,), at least two values.
        seed: Seed of the draws.
    """

    def measure(x: Values, y: Values, axis: int) -> Values:
        return np.asarray(y.mean(axis=axis) - x.mean(axis=axis))

    shift = float(current.mean() - reference.mean())
    if not (np.ptp(reference) or np.ptp(current)):
        return shift, shift, shift
    interval = stats.bootstrap(
        (reference, current),
        measure,
        method="percentile",
        n_resamples=RESAMPLES,
        batch=100,
        vectorized=True,
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return shift, float(interval.low), float(interval.high)


def measure_mmd(reference: Values, current: Values, *, seed: int) -> tuple[float, float]:
    """Return the squared maximum mean discrepancy of two sets of vectors, and its p value by permutations.

    The kernel is exp(-d^2 / 2 s^2), where s is the median distance of all pairs (A. Gretton et al., "A Kernel
    Two-Sample Test", Journal of Machine Learning Research 13, 2012). The estimate is the biased one: never negative.

    Args:
        reference: (n, D), at least two vectors.
        current: (m, D), at least two vectors.
        seed: Seed of the permutations.
    """
    vectors = np.concatenate([reference, current]).astype(np.float64)
    total = len(vectors)
    distances = pairwise.euclidean_distances(vectors)
    median = float(np.median(distances[np.triu_indices(total, 1)]))
    kernel = pairwise.rbf_kernel(vectors, gamma=1 / (2 * median**2) if median else 1.0)

    def measure(x: Values, y: Values, axis: int) -> Values:
        """Return w K w, where the weights w are 1/n for the rows x and -1/m for the rows y."""
        weights = np.zeros((*x.shape[:-1], total))
        np.put_along_axis(weights, x.astype(np.int64), 1 / x.shape[-1], axis=-1)
        np.put_along_axis(weights, y.astype(np.int64), -1 / y.shape[-1], axis=-1)
        return np.asarray(((weights @ kernel) * weights).sum(-1))

    found = stats.permutation_test(
        (np.arange(len(reference)), np.arange(len(reference), total)),
        measure,
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=200,
        alternative="greater",
        random_state=np.random.default_rng(seed),
    )
    return max(0.0, float(found.statistic)), float(found.pvalue)
