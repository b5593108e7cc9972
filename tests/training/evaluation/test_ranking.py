"""Ranking metrics are held against torchmetrics and scikit-learn, and by hand where those have none."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_normalized_dcg,
    retrieval_precision,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from training.evaluation.published import evaluate_as_published
from training.evaluation.ranking import (
    compare_rankings,
    compute_chance,
    compute_gains,
    evaluate_pairs,
    evaluate_random,
    evaluate_ranking,
    find_same,
    rank_cases,
)


def make_search(queries=20, gallery=60, seed=0, labels=6):
    """Labels, gains, and similarities that know a little of the gains."""
    generator = np.random.default_rng(seed)
    ours, theirs = generator.random((queries, labels)) < 0.3, generator.random((gallery, labels)) < 0.3
    gains = compute_gains(ours, theirs)
    return gains, gains + generator.normal(scale=0.5, size=gains.shape)


def measure(similarity, gains, excluded=None, **options):
    excluded = np.zeros(gains.shape, bool) if excluded is None else excluded
    groups = [str(row) for row in range(len(gains))]
    return evaluate_ranking(
        rank_cases(similarity, excluded, 0), gains, excluded, groups=groups, resamples=50, **options
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(10, 40))
def test_metrics_equal_those_of_other_libraries(seed, gallery):
    gains, similarity = make_search(8, gallery, seed)
    similarity -= (
        similarity.min() - 1
    )  # torchmetrics takes a score of 0 or less for a case that was not returned
    found = measure(similarity, gains)
    rows = [row for row in range(8) if gains[row].any()]
    assert found.queries == len(rows)
    if not rows:
        assert found.values == {}
        return

    def mean(function, relevance, **options):
        return np.mean(
            [
                float(function(torch.tensor(similarity[q]), torch.tensor(relevance[q]), **options))
                for q in rows
            ]
        )

    hits = gains > 0
    expected = {
        "map": mean(retrieval_average_precision, hits),
        "mrr": mean(retrieval_reciprocal_rank, hits),
        **{f"p@{k}": mean(retrieval_precision, hits, top_k=k) for k in (1, 5, 10)},
        **{f"r@{k}": mean(retrieval_recall, hits, top_k=k) for k in (1, 5, 10)},
        **{f"ndcg@{k}": mean(retrieval_normalized_dcg, gains, top_k=k) for k in (1, 5, 10)},
    }
    assert {name: interval.value for name, interval in found.values.items()} == pytest.approx(
        expected, abs=1e-5
    )
    for k in (5, 10):
        graded = ndcg_score(gains[rows], similarity[rows], k=k)
        assert found.values[f"ndcg@{k}"].value == pytest.approx(graded, abs=1e-9)


def test_excluded_cases_neither_fill_a_place_nor_count():
    gains, similarity = make_search(10, 40)
    excluded = np.random.default_rng(1).random(gains.shape) < 0.3
    excluded[:, :5] = True  # of every query: as if the gallery did not hold them
    whole = measure(similarity, gains, excluded)
    for row in range(10):
        kept = ~excluded[row]
        alone = measure(similarity[row : row + 1, kept], gains[row : row + 1, kept])
        one = measure(similarity[row : row + 1], gains[row : row + 1], excluded[row : row + 1])
        assert {name: x.value for name, x in one.values.items()} == pytest.approx(
            {name: x.value for name, x in alone.values.items()}
        )
    gains[excluded] = 1.0  # what an excluded case is worth does not matter
    assert measure(similarity, gains, excluded) == whole


def test_a_perfect_and_the_worst_order():
    gains, _ = make_search()
    best, worst = measure(gains, gains), measure(-gains, gains)
    assert all(best.values[name].value == 1 for name in ("map", "mrr", "p@1", "ndcg@5", "ndcg@10"))
    assert worst.values["p@1"].value == worst.values["ndcg@5"].value == 0
    assert worst.values["map"].value < 0.6
    assert best.curve[0] == 1 > worst.curve[0]


def test_gains_are_the_jaccard_index():
    queries = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0]], bool)
    gallery = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]], bool)
    expected = [[1 / 2, 1, 1 / 3], [0, 0, 1 / 2], [0, 0, 0]]
    assert compute_gains(queries, gallery) == pytest.approx(np.array(expected))
    without = compute_gains(queries, gallery, without=[2])
    assert without == pytest.approx(np.array([[1 / 2, 1, 1 / 2], [0, 0, 0], [0, 0, 0]]))


def test_equal_similarities_are_ordered_by_the_seed_and_excluded_ones_come_last():
    similarity = np.zeros((1, 100))
    excluded = np.zeros((1, 100), bool)
    excluded[0, :50] = True
    orders = [rank_cases(similarity, excluded, seed)[0] for seed in (0, 0, 1)]
    assert (orders[0] == orders[1]).all()
    assert (orders[0] != orders[2]).any()
    for order in orders:
        assert sorted(order) == list(range(100))
        assert set(order[:50]) == set(range(50, 100))
        assert list(order[:50]) != sorted(order[:50])


def test_random_order_has_the_precision_of_the_gallery():
    gains, _ = make_search(50, 400, labels=4)
    excluded = find_same([str(row) for row in range(50)], [str(row) for row in range(400)])
    found = evaluate_random(gains, excluded, groups=[str(row) for row in range(50)], resamples=50)
    rows = gains.any(1)
    share = ((gains > 0) & ~excluded)[rows].sum(1) / 399
    for name in ("p@5", "p@10", "map"):
        assert found.values[name].value == pytest.approx(share.mean(), abs=0.03)
    assert found.queries == rows.sum()


def test_intervals_draw_patients():
    gains, similarity = make_search(40, 100)
    own = measure(similarity, gains).values["map"]
    assert own.low < own.value < own.high
    excluded = np.zeros(gains.shape, bool)
    one = evaluate_ranking(rank_cases(similarity, excluded, 0), gains, excluded, groups=["a"] * 40)
    assert one.values["map"].low == one.values["map"].high


def test_no_query_with_a_similar_case_gives_no_values():
    gains, similarity = make_search(5, 20)
    found = measure(similarity, gains * 0)
    assert (found.queries, found.values, found.curve) == (0, {}, ())
    assert evaluate_random(gains * 0, gains > 2, groups=["a"] * 5).values == {}


def test_a_gallery_smaller_than_a_cutoff_has_no_such_metric():
    gains, similarity = make_search(5, 7)
    assert set(measure(similarity, gains).values) == {
        "p@1",
        "r@1",
        "ndcg@1",
        "p@5",
        "r@5",
        "ndcg@5",
        "map",
        "mrr",
    }


def test_pairs_by_hand():
    similarity = np.array([[0.9, 0.1, 0.2, 0.3], [0.5, 0.4, 0.6, 0.7], [0.1, 0.1, 0.1, 0.1]])
    matches = np.eye(3, 4, dtype=bool)
    found = evaluate_pairs(similarity, matches, groups=list("abc"), resamples=20)
    # ranks: 1; 4 (all others are more similar); 1 + 3 / 2 among equals
    assert found["r@1"].value == pytest.approx(1 / 3)
    assert found["r@5"].value == 1
    assert found["median_rank"].value == 2.5
    matches[1, 3] = True  # a report with the same text
    assert evaluate_pairs(similarity, matches, groups=list("abc"))["r@1"].value == pytest.approx(2 / 3)


def test_published_definitions_by_hand():
    order = np.array([[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0]])
    relevant = np.zeros((2, 7), bool)
    relevant[0, [1, 3]] = True  # found second and fourth
    relevant[1, [0]] = True  # found last: five cases are returned, so it is not found
    found = evaluate_as_published(order, relevant)
    assert found["p@5"] == pytest.approx((2 / 5 + 0) / 2)
    assert found["map"] == pytest.approx(((1 / 2 + 2 / 4) / 2 + 0) / 2)
    assert found["mrr"] == pytest.approx((1 / 2 + 0) / 2)
    gained, ideal = 1 / np.log2(3) + 1 / np.log2(5), 1 + 1 / np.log2(3)
    assert found["ndcg@5"] == pytest.approx((gained / ideal + 0) / 2)


def test_published_precision_divides_by_five_also_in_a_small_gallery():
    assert evaluate_as_published(np.array([[1, 0]]), np.array([[False, True]]))["p@5"] == 1 / 5


def test_published_ndcg_rewards_poor_cases():
    """One similar case of a hundred, returned first among four others, is a perfect score."""
    order, relevant = np.arange(100)[None], np.zeros((1, 100), bool)
    relevant[0, [0, *range(50, 100)]] = True
    assert evaluate_as_published(order, relevant)["ndcg@5"] == 1


def test_a_difference_is_that_of_the_metrics_and_its_interval_is_paired():
    gains, similarity = make_search(200, 100)
    better = similarity + 0.05 * gains  # a little, for every query
    excluded, groups = np.zeros(gains.shape, bool), [str(row) for row in range(200)]
    ours, theirs = (rank_cases(values, excluded, 0) for values in (better, similarity))
    found = compare_rankings(ours, theirs, gains, excluded, groups=groups, resamples=400)
    alone = [
        evaluate_ranking(order, gains, excluded, groups=groups, resamples=400) for order in (ours, theirs)
    ]
    for name, difference in found.items():
        first, second = (metrics.values[name] for metrics in alone)
        assert difference.value == pytest.approx(first.value - second.value)
        assert difference.low <= difference.value <= difference.high
    first, second = (metrics.values["map"] for metrics in alone)
    assert second.high > first.low, "the two intervals overlap, and yet it is ahead"
    assert found["map"].low > 0
    assert found["map"].p == pytest.approx(2 / 401)
    same = compare_rankings(theirs, theirs, gains, excluded, groups=groups, resamples=50)["map"]
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert compare_rankings(ours, theirs, gains * 0, excluded, groups=groups) == {}


def test_chance_is_what_random_orders_reach_also_with_several_counterparts():
    """10 queries have 1 counterpart, and 30 have 30: many normal studies have one report."""
    names = np.array([*range(10), *[99] * 30])
    matches = names[:, None] == names[None]
    chance = compute_chance(matches)
    ranks = []
    for seed in range(200):
        order = np.random.default_rng(seed).permuted(np.broadcast_to(np.arange(40), (40, 40)), axis=1)
        hits = np.take_along_axis(matches, order, axis=1)
        ranks.append(1 + (~hits).cumprod(1).sum(1))  # cases before the first counterpart, and 1
    drawn = np.concatenate(ranks)
    for k in (1, 5, 10):
        assert chance[f"r@{k}"] == pytest.approx((drawn <= k).mean(), abs=0.01)
    assert chance["median_rank"] == np.median(drawn) == 1
    assert compute_chance(np.eye(20, dtype=bool)) == pytest.approx(
        {"r@1": 0.05, "r@5": 0.25, "r@10": 0.5, "median_rank": 10}
    )
    assert compute_chance(np.ones((3, 3), bool)) == {"r@1": 1, "r@5": 1, "r@10": 1, "median_rank": 1}
