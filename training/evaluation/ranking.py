"""Evaluate a search: metrics of ranked cases, and of finding a study's report by its image.

There are Q query studies and G gallery studies. The similarity of labels is a gain (Q, G): 0 for a case without a
common label, up to 1 for a case with exactly the query's labels. A gallery study that is the query itself, or of the
same patient, is excluded: it takes no rank and is neither a hit nor a miss. The same holds if it is unknown whether the
case is similar to the query.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from training.evaluation.bootstrap import (
    RESAMPLES,
    Difference,
    Floats,
    Interval,
    draw_weights,
    summarise,
    summarise_difference,
)
from training.evaluation.plan import Studies

CUTOFFS: Final = (1, 5, 10)
RECALLS: Final = (1, 5, 10)  # of cross-modal search
CURVE: Final = 50  # ranks of the precision curve
_RANDOM_DRAWS: Final = 10


@dataclass(frozen=True)
class RankingMetrics:
    """Results over the queries that have at least one similar case in the gallery.

    Attributes:
        queries: Number of these queries.
        gallery: G.
        values: Metric name -> mean over the queries.
        curve: Precision at 1, 2, ... places, at most `CURVE`.
    """

    queries: int
    gallery: int
    values: dict[str, Interval]
    curve: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the content for evaluation.json."""
        return {
            "queries": self.queries,
            "gallery": self.gallery,
            "values": {name: interval.to_dict() for name, interval in self.values.items()},
            "curve": [round(value, 4) for value in self.curve],
        }


Known = tuple[NDArray[np.bool_], NDArray[np.bool_]]  # whether targets are known: (Q, K) and (G, K)


def compute_gains(
    queries: NDArray[np.bool_],
    gallery: NDArray[np.bool_],
    *,
    known: Known | None = None,
    without: Sequence[int] = (),
) -> Floats:
    """Return the similarity of labels: the Jaccard index, shared labels / all labels of both.

    Args:
        queries: (Q, K).
        gallery: (G, K).
        known: Whether labels are known. A label counts if it is known for both studies. Default: all.
        without: Indices of labels to ignore, such as `normal`.

    Returns:
        (Q, G), 0 to 1; 0 if neither study has a label.
    """
    ours, theirs, our_known, their_known = _select_labels(queries, gallery, known, without)
    shared = ours @ theirs.T
    either = ours @ their_known.T + our_known @ theirs.T - shared
    return np.divide(shared, either, out=np.zeros_like(shared), where=either > 0)


def find_unknown(
    queries: NDArray[np.bool_], gallery: NDArray[np.bool_], known: Known, *, without: Sequence[int] = ()
) -> NDArray[np.bool_]:
    """Return (Q, G), whether it is unknown if a pair is similar; for the arguments see `compute_gains`.

    Such a pair shares no label, but one study has a label that is unknown for the other.
    """
    ours, theirs, our_known, their_known = _select_labels(queries, gallery, known, without)
    open_labels = ours @ (1 - their_known).T + (1 - our_known) @ theirs.T
    return np.asarray((ours @ theirs.T == 0) & (open_labels > 0))


def _select_labels(
    queries: NDArray[np.bool_], gallery: NDArray[np.bool_], known: Known | None, without: Sequence[int]
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return the labels of queries and gallery without ignored ones, 0 if unknown, and whether they are known."""
    columns = np.setdiff1d(np.arange(queries.shape[1]), np.asarray(without, dtype=np.int64))
    ours, theirs = known or (np.ones_like(queries), np.ones_like(gallery))
    tables = (queries & ours, gallery & theirs, ours, theirs)
    return tuple(table[:, columns].astype(np.float64) for table in tables)  # type: ignore[return-value]


def find_same(queries: Sequence[str], gallery: Sequence[str]) -> NDArray[np.bool_]:
    """Return (Q, G), whether the names (of patients, for example) are equal."""
    return np.asarray(np.asarray(queries, np.str_)[:, None] == np.asarray(gallery, np.str_)[None])


def judge_gallery(
    test: Studies, gallery: Studies, *, without: Sequence[int] = ()
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the gains (Q, G) of gallery studies for test studies, and which of them are excluded (Q, G).

    Excluded are the query's patient, and studies of which it is unknown whether they are similar to the query.
    """
    known = (test.known, gallery.known)
    gains = compute_gains(test.targets, gallery.targets, known=known, without=without)
    unknown = find_unknown(test.targets, gallery.targets, known, without=without)
    return gains, find_same(test.patient_ids, gallery.patient_ids) | unknown


def rank_cases(
    similarity: NDArray[np.floating[Any]], excluded: NDArray[np.bool_], seed: int
) -> NDArray[np.int64]:
    """Return (Q, G), the gallery indices from most to least similar, with the excluded ones last.

    Equal similarities are in random order by `seed`, because the order of a file would favour its first studies.
    """
    shuffled = np.random.default_rng(seed).permutation(similarity.shape[1])
    masked = np.where(excluded, -np.inf, similarity)[:, shuffled]
    return np.asarray(shuffled[np.argsort(-masked, axis=1, kind="stable")], dtype=np.int64)


def evaluate_ranking(
    order: NDArray[np.int64],
    gains: Floats,
    excluded: NDArray[np.bool_],
    *,
    groups: Sequence[str],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> RankingMetrics:
    """Measure a ranking.

    p@k     share of similar cases (gain above 0) among the first k
    r@k     share of all similar cases that are among the first k
    map     mean over all similar cases of the precision at their rank (full average precision)
    mrr     1 / rank of the first similar case
    ndcg@k  gain discounted by log2(1 + rank), over that of the best possible order of the whole gallery
            (Jarvelin and Kekalainen 2002, with linear gain)

    Args:
        order: (Q, G) from `rank_cases`.
        gains: (Q, G).
        excluded: (Q, G).
        groups: Q patient ids, for the bootstrap.
        seed: Of the bootstrap.
        resamples: How many times patients are drawn.
    """
    return _evaluate([order], gains, excluded, groups, seed, resamples)


def evaluate_random(
    gains: Floats,
    excluded: NDArray[np.bool_],
    *,
    groups: Sequence[str],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> RankingMetrics:
    """Measure random rankings, with the mean of `_RANDOM_DRAWS` for each query; see `evaluate_ranking`."""
    noises = (np.random.default_rng((seed, draw)).random(gains.shape) for draw in range(_RANDOM_DRAWS))
    orders = (rank_cases(noise, excluded, seed) for noise in noises)
    return _evaluate(orders, gains, excluded, groups, seed, resamples)


def compare_rankings(
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    gains: Floats,
    excluded: NDArray[np.bool_],
    *,
    groups: Sequence[str],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Difference]:
    """Return metric name -> difference of two orders (Q, G), first minus second; see `evaluate_ranking`."""
    gains = np.where(excluded, 0.0, gains)
    rows = np.flatnonzero((gains > 0).any(1))
    if not len(rows):
        return {}
    (ours, _), (theirs, _) = (_measure(order[rows], gains[rows]) for order in (first, second))
    weights = draw_weights([groups[row] for row in rows], seed, resamples)
    return {
        name: summarise_difference(_average_drawn(ours[name], weights), _average_drawn(theirs[name], weights))
        for name in ours
    }


def evaluate_pairs(
    similarity: NDArray[np.floating[Any]],
    matches: NDArray[np.bool_],
    *,
    groups: Sequence[str],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """Measure how well each query finds its counterpart, such as an image its report.

    Args:
        similarity: (Q, G).
        matches: (Q, G), the counterpart, and cases equal to it (reports with the same text).
        groups: Q patient ids, for the bootstrap.
        seed: Of the bootstrap.
        resamples: How many times patients are drawn.

    Returns:
        "r@1", "r@5", "r@10" (share of queries with a counterpart among the first k) and "median_rank"; of
        equally similar cases, half are counted before the counterpart.
    """
    best = np.where(matches, similarity, -np.inf).max(1)  # (Q,)
    other_similarity = np.where(matches, -np.inf, similarity)
    ranks = 1 + (other_similarity > best[:, None]).sum(1) + (other_similarity == best[:, None]).sum(1) / 2
    weights = draw_weights(groups, seed, resamples)
    recalls = {f"r@{k}": _average((ranks <= k).astype(np.float64), weights) for k in RECALLS}
    medians = [np.median(np.repeat(ranks, row.astype(np.int64))) for row in weights]
    low, high = np.percentile(medians, [2.5, 97.5]) if medians else (np.median(ranks),) * 2
    return recalls | {"median_rank": Interval(float(np.median(ranks)), float(low), float(high))}


def compute_chance(matches: NDArray[np.bool_]) -> dict[str, float]:
    """Return the recalls and the median rank of `evaluate_pairs` that random orders have in expectation.

    Of m counterparts among G cases none is among the first k with the probability C(G - m, k) / C(G, k).

    Args:
        matches: (Q, G), see `evaluate_pairs`; every query has a counterpart.
    """
    gallery = matches.shape[1]
    counterparts, queries = np.unique(matches.sum(1), return_counts=True)  # (U,), (U,)
    left = gallery - np.arange(gallery)  # cases that are left before each place
    others = np.clip(
        left - counterparts[:, None], 0, None
    )  # (U, G), those among them that are no counterpart
    missed = np.cumprod(
        others / left, axis=1
    )  # (U, G), probability of no counterpart among the first 1, 2, ...
    reached = 1 - queries @ missed / queries.sum()  # (G,)
    recalls = {f"r@{k}": float(reached[min(k, gallery) - 1]) for k in RECALLS}
    return recalls | {"median_rank": float(np.argmax(reached >= 0.5 - 1e-9) + 1)}


def _evaluate(
    orders: Iterable[NDArray[np.int64]],
    gains: Floats,
    excluded: NDArray[np.bool_],
    groups: Sequence[str],
    seed: int,
    resamples: int,
) -> RankingMetrics:
    """Average over the orders for each query, and then over the queries that have a similar case."""
    gains = np.where(excluded, 0.0, gains)
    rows = np.flatnonzero((gains > 0).any(1))
    if not len(rows):
        return RankingMetrics(0, gains.shape[1], {}, ())
    drawn = [_measure(order[rows], gains[rows]) for order in orders]
    tables = {name: np.mean([table[name] for table, _ in drawn], axis=0) for name in drawn[0][0]}
    weights = draw_weights([groups[row] for row in rows], seed, resamples)
    values = {name: _average(row, weights) for name, row in tables.items()}
    curve = np.mean([curve for _, curve in drawn], axis=0)
    return RankingMetrics(len(rows), gains.shape[1], values, tuple(curve))


def _measure(order: NDArray[np.int64], gains: Floats) -> tuple[dict[str, Floats], Floats]:
    """Return metric name -> (Q,), and the mean precision at each rank."""
    ranked = np.take_along_axis(gains, order, axis=1)  # (Q, G) gains in the ranked order
    ideal = -np.sort(-gains, axis=1)  # (Q, G) gains in the ideal order
    hits = ranked > 0
    ranks = np.arange(1, gains.shape[1] + 1)
    hits_so_far, total = hits.cumsum(1), hits.sum(1)  # (Q, G), (Q,)
    discounts = 1 / np.log2(ranks + 1)
    table: dict[str, Floats] = {}
    for k in (k for k in CUTOFFS if k <= len(ranks)):
        table[f"p@{k}"] = hits_so_far[:, k - 1] / k
        table[f"r@{k}"] = hits_so_far[:, k - 1] / total
        best = (ideal[:, :k] * discounts[:k]).sum(1)
        table[f"ndcg@{k}"] = (ranked[:, :k] * discounts[:k]).sum(1) / best
    precision = hits_so_far / ranks
    table["map"] = (precision * hits).sum(1) / total
    table["mrr"] = 1 / (hits.argmax(1) + 1)
    return table, precision[:, :CURVE].mean(0)


def _average(values: Floats, weights: Floats) -> Interval:
    """Return the mean of Q values with its interval; `weights` is (R, Q)."""
    return summarise(_average_drawn(values, weights))


def _average_drawn(values: Floats, weights: Floats) -> Floats:
    """Return (1, 1 + R): the mean of Q values, and the mean in each resample (R, Q) that is not empty."""
    totals = weights.sum(1)
    drawn = (weights @ values)[totals > 0] / totals[totals > 0]
    return np.concatenate([[values.mean()], drawn])[None]
