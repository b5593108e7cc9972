"""Bootstrap patients: weights of studies, and values with their 95 % intervals.

A resample draws patients with replacement. It is a weight for each study: how often it was drawn. Efron and Tibshirani
1993, An Introduction to the Bootstrap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 1000

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
class Difference:
    """The difference of two results on the same studies, with its 95 % interval.

    Attributes:
        value: First minus second.
        low: 2.5th percentile of the differences; each resample of patients is used for both.
        high: 97.5th percentile.
        p: Two-sided p value of the paired bootstrap: twice the share of resamples on the other side of 0, at least
            2 / (resamples + 1) and at most 1; 1 without resamples.
    """

    value: float
    low: float
    high: float
    p: float

    def to_dict(self) -> dict[str, float]:
        """Return the fields, rounded to 4 digits."""
        return {name: round(value, 4) for name, value in vars(self).items()}


def weigh_studies(groups: Sequence[str], seed: int, resamples: int) -> Floats:
    """Return (1 + R, M) weights: first ones, then the number of times each study was drawn."""
    return np.concatenate([np.ones((1, len(groups))), draw_weights(groups, seed, resamples)])


def draw_weights(groups: Sequence[str], seed: int, resamples: int) -> Floats:
    """Draw patients with replacement; return (resamples, M), the number of times each of M studies was drawn."""
    if not len(groups):
        return np.zeros((resamples, 0))
    names, members = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return np.asarray(drawn[:, members], dtype=np.float64)


def summarise(table: Floats, *, centred: bool = False) -> Interval:
    """Return the mean over labels, with its interval, of (labels, 1 + R) values; the first column is not resampled.

    Without resamples the interval is only the value. With `centred`, for values from 0 to 1, the interval is shifted so
    that the mean of the resamples equals the value. Resampling biases some metrics upwards: it adds noise to each bin
    of a calibration error, and repeats positive studies next to each other in an average precision.
    """
    value, means = float(np.mean(table[:, 0])), _average_draws(table)
    if not means.size:
        return Interval(value, value, value)
    low, high = np.percentile(means, [2.5, 97.5])
    if centred:
        low, high = (bound - (means.mean() - value) for bound in (low, high))
        high = min(high, 1.0)
    return Interval(value, float(max(low, 0.0)), float(high))


def summarise_difference(first: Floats, second: Floats) -> Difference:
    """Return the difference of the means over labels of two tables (labels, 1 + R), first minus second.

    Each column of both has the same resample of patients. The resamples are shifted so that their mean is the value,
    as in a centred `summarise`.
    """
    table = first - second
    value, means = float(np.mean(table[:, 0])), _average_draws(table)
    if not means.size:
        return Difference(value, value, value, 1.0)
    drawn = means - (means.mean() - value)
    low, high = np.percentile(drawn, [2.5, 97.5])
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Difference(value, float(low), float(high), min(1.0, 2 * (beyond + 1) / (len(drawn) + 1)))


def _average_draws(table: Floats) -> Floats:
    """Return the mean over labels of each resample with at least one defined value."""
    resampled = table[:, 1:]
    # A resample without a positive (or negative) study of every label has no value.
    resampled = resampled[:, ~np.isnan(resampled).all(0)]
    return np.asarray(np.nanmean(resampled, axis=0)) if resampled.size else np.empty(0)
