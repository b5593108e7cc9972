"""Metrics are held against scikit-learn, thresholds against trying them all, intervals against theory."""

import json
import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score
from torchmetrics.functional.classification import binary_calibration_error

from contract.labels import LABEL_KEYS, LABELS
from training.evaluation import labels
from training.evaluation.bootstrap import summarise
from training.evaluation.labels import (
    METRICS,
    MIN_POSITIVES,
    compare_labels,
    compute_ap,
    compute_auroc,
    compute_brier,
    compute_ece,
    compute_f1,
    evaluate_labels,
    fit_thresholds,
)

K = len(LABELS)
HALVES = np.full(K, 0.5)


def make_cases(count=300, seed=0, rate=0.3):
    """Scores that say something about the targets, and some ties."""
    generator = np.random.default_rng(seed)
    targets = generator.random((count, K)) < rate
    probabilities = np.round(np.clip(generator.normal(0.4 + 0.2 * targets, 0.2), 0, 1), 2)
    return probabilities, targets


def name_patients(count) -> list[str]:
    return [str(number) for number in range(count)]


# --- one label -------------------------------------------------------------------------------------------------

cases = st.lists(
    st.tuples(
        st.integers(0, 8).map(lambda value: value / 8), st.booleans(), st.integers(0, 3), st.floats(0.1, 5.0)
    ),
    min_size=2,
    max_size=40,
)


@settings(deadline=None, max_examples=100)
@given(cases)
def test_metrics_equal_those_of_scikit_learn(rows):
    scores, targets, counts, floats = (np.array(column) for column in zip(*rows, strict=True))
    weights = np.stack([np.ones(len(rows)), counts, floats]).astype(np.float64)
    predicted = scores >= 0.5
    found = (
        compute_auroc(scores, targets, weights),
        compute_ap(scores, targets, weights),
        compute_f1(predicted, targets, weights),
    )
    for row, weight in enumerate(weights):
        auroc, ap, f1 = (float(values[row]) for values in found)
        positive, negative = weight[targets].sum(), weight[~targets].sum()
        assert math.isnan(auroc) == (positive == 0 or negative == 0)
        assert math.isnan(ap) == math.isnan(f1) == (positive == 0)
        if positive and negative:
            assert auroc == pytest.approx(roc_auc_score(targets, scores, sample_weight=weight), abs=1e-9)
        if positive:
            assert ap == pytest.approx(
                average_precision_score(targets, scores, sample_weight=weight), abs=1e-9
            )
            assert f1 == pytest.approx(f1_score(targets, predicted, sample_weight=weight), abs=1e-9)


def test_metrics_of_large_weights_and_scores():
    generator = np.random.default_rng(1)
    scores, targets = generator.normal(size=5000).astype(np.float32), generator.random(5000) < 0.02
    weights = generator.integers(0, 5, (4, 5000)).astype(np.float64)
    for row, weight in enumerate(weights):
        assert compute_auroc(scores, targets, weights)[row] == pytest.approx(
            roc_auc_score(targets, scores, sample_weight=weight), abs=1e-9
        )
        assert compute_ap(scores, targets, weights)[row] == pytest.approx(
            average_precision_score(targets, scores, sample_weight=weight), abs=1e-9
        )


def test_metrics_by_hand():
    scores, ones = np.array([0.9, 0.5, 0.5, 0.1]), np.ones((1, 4))
    targets = np.array([True, True, False, False])
    assert compute_auroc(scores, targets, ones) == pytest.approx([(2 + 1.5) / 4])
    assert compute_ap(scores, targets, ones) == pytest.approx([(1 + 2 / 3) / 2])
    assert compute_f1(scores >= 0.9, targets, ones) == pytest.approx([2 * 1 / (2 + 1)])


# --- thresholds ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 16), st.booleans()), min_size=1, max_size=40))
def test_no_threshold_has_a_higher_f1(rows):
    probabilities = np.array([[value / 16] for value, _ in rows] * MIN_POSITIVES, np.float32)
    targets = np.array([[target] for _, target in rows] * MIN_POSITIVES)
    (threshold,) = fit_thresholds(probabilities, targets)
    if not targets.any():
        assert threshold == 0.5
        return

    def measure(point):
        return f1_score(targets[:, 0], probabilities[:, 0] >= point)

    values = np.unique(probabilities)
    best = max(measure(value) for value in values)
    assert measure(threshold) == pytest.approx(best)
    # Midway between two neighbours, or the smallest value: then every study is positive.
    middles = (values[1:] + values[:-1]) / 2
    assert threshold == values[0] or np.isclose(middles, threshold).any()


def test_each_label_has_its_own_threshold():
    probabilities = np.array([[0.1, 0.9, 0.3], [0.3, 0.8, 0.4], [0.9, 0.2, 0.5]] * MIN_POSITIVES)
    targets = np.array([[False, True, False], [True, True, False], [True, False, False]] * MIN_POSITIVES)
    assert fit_thresholds(probabilities, targets) == pytest.approx([0.2, 0.5, 0.5])


@pytest.mark.parametrize("positives", [0, 1, MIN_POSITIVES - 1, MIN_POSITIVES])
def test_a_label_with_few_positives_keeps_one_half(positives):
    probabilities = np.linspace(0.3, 0.01, 40)[:, None]
    targets = (np.arange(40) < positives)[:, None]
    (threshold,) = fit_thresholds(probabilities, targets)
    assert (threshold == 0.5) == (positives < MIN_POSITIVES)


def test_a_threshold_holds_between_two_neighbouring_float32():
    below = np.float32(0.3)
    above = np.nextafter(below, np.float32(1))
    probabilities = np.tile([[below], [above]], (10, K)).astype(np.float32)
    targets = probabilities == above
    thresholds = fit_thresholds(probabilities, targets)
    metrics = evaluate_labels(probabilities, targets, thresholds, groups=name_patients(20), resamples=20)
    assert metrics.macro["f1"].value == 1.0


def test_a_label_counts_as_present_from_its_threshold_on():
    targets = np.tile([[True], [False]], (10, K))
    probabilities = np.where(targets, 0.5, 0.4)
    metrics = evaluate_labels(probabilities, targets, HALVES, groups=name_patients(20), resamples=20)
    assert metrics.macro["f1"].value == 1.0


# --- all labels ------------------------------------------------------------------------------------------------


def test_macro_is_the_mean_of_the_labels():
    probabilities, targets = make_cases()
    metrics = evaluate_labels(probabilities, targets, HALVES, groups=name_patients(300), resamples=50)
    assert metrics.studies == 300
    assert metrics.averaged == LABEL_KEYS
    for place, key in enumerate(LABEL_KEYS):
        row = metrics.labels[key]
        assert row["auroc"].value == pytest.approx(
            roc_auc_score(targets[:, place], probabilities[:, place]), abs=1e-9
        )
        assert metrics.positives[key] == targets[:, place].sum()
        assert all(interval.low < interval.value < interval.high for interval in row.values())
    for name in METRICS:
        mean = np.mean([row[name].value for row in metrics.labels.values()])
        assert metrics.macro[name].value == pytest.approx(mean, abs=1e-9)


def test_micro_takes_all_answers_of_the_averaged_labels_as_one():
    probabilities, targets = make_cases()
    targets[:, 2] = False  # left out, here too
    metrics = evaluate_labels(probabilities, targets, HALVES, groups=name_patients(300), resamples=20)
    kept = np.delete(np.arange(K), 2)
    truth, scores = targets[:, kept].ravel(), probabilities[:, kept].ravel()
    assert metrics.micro["auroc"].value == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    assert metrics.micro["ap"].value == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
    assert metrics.micro["f1"].value == pytest.approx(f1_score(truth, scores >= 0.5), abs=1e-9)
    assert metrics.micro["brier"].value == pytest.approx(brier_score_loss(truth, scores), abs=1e-9)


def test_large_tables_are_measured_in_blocks(monkeypatch):
    probabilities, targets = make_cases(60)
    whole = evaluate_labels(probabilities, targets, HALVES, groups=name_patients(60), resamples=30)
    monkeypatch.setattr(labels, "_BLOCK", 130)
    blocks = evaluate_labels(probabilities, targets, HALVES, groups=name_patients(60), resamples=30)
    assert blocks.to_dict() == whole.to_dict()


def test_the_weights_of_all_answers_are_never_in_memory_at_a_time(monkeypatch):
    """500 studies have 11,000 answers, whose weights of 100 resamples are 8.9 MB."""
    probabilities, targets = make_cases(500)
    monkeypatch.setattr(labels, "_BLOCK", 20_000)
    tracemalloc.start()
    evaluate_labels(probabilities, targets, HALVES, groups=name_patients(500), resamples=100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6e6


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 999), st.booleans()), min_size=1, max_size=60))
def test_brier_and_calibration_error_equal_those_of_other_libraries(rows):
    numbers, targets = (np.array(column) for column in zip(*rows, strict=True))
    probabilities = (numbers + 0.5) / 1000  # on no edge: torchmetrics gives 1.0 a bin of its own
    ones = np.ones((1, len(rows)))
    expected = brier_score_loss(targets, probabilities, labels=[False, True])
    assert compute_brier(probabilities, targets, ones)[0] == pytest.approx(expected, abs=1e-6)
    expected = binary_calibration_error(
        torch.tensor(probabilities), torch.tensor(targets).int(), n_bins=labels.CALIBRATION_BINS, norm="l1"
    )
    assert compute_ece(probabilities, targets, ones)[0] == pytest.approx(float(expected), abs=1e-5)


def test_weights_of_brier_and_calibration_error_count_studies():
    probabilities, targets = (rows[:, 0] for rows in make_cases(40))
    counts = np.random.default_rng(3).integers(0, 4, 40)
    weights, ones = counts[None].astype(np.float64), np.ones((1, int(counts.sum())))
    for measure in (compute_brier, compute_ece):
        repeated = measure(np.repeat(probabilities, counts), np.repeat(targets, counts), ones)
        assert measure(probabilities, targets, weights) == pytest.approx(repeated, abs=1e-12)
    assert np.isnan(compute_brier(probabilities, targets, weights * 0)).all()


@pytest.mark.parametrize("negatives", [False, True])
def test_labels_with_too_few_studies_of_a_class_are_left_out(negatives):
    probabilities, targets = make_cases()
    targets[:, [3, 7]] = False
    targets[: MIN_POSITIVES - 1, 3] = True
    targets[:MIN_POSITIVES, 7] = True
    if negatives:
        targets[:, [3, 7]] = ~targets[:, [3, 7]]
    metrics = evaluate_labels(probabilities, targets, HALVES, groups=name_patients(300), resamples=20)
    assert metrics.averaged == (*LABEL_KEYS[:3], *LABEL_KEYS[4:])
    assert list(metrics.labels) == list(metrics.averaged)
    assert metrics.positives[LABEL_KEYS[7]] == (295 if negatives else 5)
    assert metrics.macro["ap"].value == pytest.approx(
        np.mean([row["ap"].value for row in metrics.labels.values()]), abs=1e-9
    )


@pytest.mark.parametrize("count", [0, 1, 50])
def test_no_label_to_average_gives_an_empty_macro(count):
    probabilities, targets = make_cases(count, rate=0.0)
    metrics = evaluate_labels(probabilities, targets, HALVES, groups=name_patients(count))
    assert metrics.to_dict() == {"studies": count, "averaged": [], "macro": {}, "micro": {}, "labels": {}}


def test_metrics_are_written_as_json():
    probabilities, targets = make_cases(50)
    metrics = evaluate_labels(probabilities, targets, HALVES, groups=name_patients(50), resamples=20)
    written = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert written["averaged"] == list(metrics.averaged)
    assert written["macro"]["auroc"]["low"] == round(metrics.macro["auroc"].low, 4)
    assert set(written["labels"][LABEL_KEYS[0]]) == {*METRICS, "positives", "known"}


# --- intervals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_interval_contains_the_value(seed):
    probabilities, targets = make_cases(seed=seed)
    metrics = evaluate_labels(probabilities, targets, HALVES, groups=name_patients(300), seed=seed)
    for interval in metrics.macro.values():
        assert 0 < interval.low < interval.value < interval.high < 1


def test_interval_has_the_width_that_theory_gives():
    generator = np.random.default_rng(0)
    targets = np.zeros((600, K), dtype=bool)
    targets[:150, 0] = True
    scores = generator.normal(targets * 1.0)
    metrics = evaluate_labels(scores, targets, HALVES, groups=name_patients(600), resamples=2000)
    assert metrics.averaged == LABEL_KEYS[:1]
    area = metrics.macro["auroc"]
    # Hanley and McNeil 1982, table and formula for the standard error of the area under a ROC curve.
    first, second = area.value / (2 - area.value), 2 * area.value**2 / (1 + area.value)
    variance = area.value * (1 - area.value) + 149 * (first - area.value**2) + 449 * (second - area.value**2)
    assert area.high - area.low == pytest.approx(2 * 1.96 * math.sqrt(variance / (150 * 450)), rel=0.15)


def test_the_bootstrap_draws_patients_not_studies():
    probabilities, targets = make_cases(100)
    groups = name_patients(100)
    once = evaluate_labels(probabilities, targets, HALVES, groups=groups, seed=1)
    # Every study three times, of the same patient: nothing new is known.
    again = evaluate_labels(
        *(np.tile(rows, (3, 1)) for rows in (probabilities, targets)), HALVES, groups=groups * 3, seed=1
    )
    for name in METRICS:
        assert vars(again.macro[name]) == pytest.approx(vars(once.macro[name]), abs=1e-9)
    alone = evaluate_labels(
        *(np.tile(rows, (3, 1)) for rows in (probabilities, targets)),
        HALVES,
        groups=name_patients(300),
        seed=1,
    )
    assert width(alone) < 0.75 * width(once)
    together = evaluate_labels(probabilities, targets, HALVES, groups=["a"] * 100)
    assert width(together) == 0


def width(metrics) -> float:
    return metrics.macro["auroc"].high - metrics.macro["auroc"].low


@pytest.mark.parametrize("name", ["ap", "ece"])
def test_intervals_of_what_resampling_makes_larger_are_centred(name):
    """The mean of the draws lies above the value; the interval does not."""
    probabilities, targets = make_cases(120, rate=0.06)
    metrics = evaluate_labels(probabilities, targets, HALVES, groups=name_patients(120))
    interval = metrics.macro[name]
    assert interval.low < interval.value < interval.high
    above, below = interval.high - interval.value, interval.value - interval.low
    assert above == pytest.approx(below, rel=0.25)
    table = np.concatenate([[[0.5]], np.random.default_rng(0).normal(0.7, 0.01, (1, 999))], axis=1)
    assert summarise(table).low > 0.6
    centred = summarise(table, centred=True)
    assert centred.low == pytest.approx(0.48, abs=0.005)
    assert centred.high == pytest.approx(0.52, abs=0.005)
    assert summarise(table + 0.49, centred=True).high <= 1


def test_a_difference_is_paired():
    probabilities, targets = make_cases(300)
    better = np.clip(probabilities + 0.02 * targets, 0, 1)
    chosen = {"groups": name_patients(300), "resamples": 300}
    found = compare_labels((better, HALVES), (probabilities, HALVES), targets, **chosen)
    alone = [evaluate_labels(values, targets, HALVES, **chosen).macro for values in (better, probabilities)]
    assert set(found) == set(METRICS)
    for name, difference in found.items():
        first, second = (macro[name] for macro in alone)
        assert difference.value == pytest.approx(first.value - second.value)
        assert difference.low <= difference.value <= difference.high
    assert alone[1]["auroc"].high > alone[0]["auroc"].low, "the two intervals overlap, and yet it is ahead"
    assert found["auroc"].low > 0
    assert found["auroc"].p == pytest.approx(2 / 301)
    assert found["brier"].high < 0
    same = compare_labels((better, HALVES), (better, HALVES), targets, **chosen)["ap"]
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    swapped = compare_labels((probabilities, HALVES), (better, HALVES), targets, **chosen)["auroc"]
    assert swapped.value == -found["auroc"].value
    assert swapped.p == found["auroc"].p
    assert compare_labels((better, HALVES), (better, HALVES), targets & False, **chosen) == {}


def test_p_values_of_no_difference_are_spread_evenly():
    generator, small = np.random.default_rng(0), 0
    for seed in range(60):
        targets = np.zeros((100, K), dtype=bool)
        targets[:30, 0] = True
        first, second = (generator.normal(size=(100, K)) for _ in range(2))
        found = compare_labels(
            (first, HALVES), (second, HALVES), targets, groups=name_patients(100), seed=seed, resamples=100
        )
        small += found["auroc"].p < 0.1
    assert 1 <= small <= 13  # 6 expected


def test_seed_decides_the_resamples():
    probabilities, targets = make_cases(100)
    first, same, other = (
        evaluate_labels(probabilities, targets, HALVES, groups=name_patients(100), seed=seed, resamples=50)
        for seed in (1, 1, 2)
    )
    assert first == same
    assert first.macro["ap"] != other.macro["ap"]
    assert first.macro["ap"].value == other.macro["ap"].value


def test_resamples_without_a_positive_study_are_left_out():
    probabilities, targets = make_cases(40, rate=0.0)
    targets[:MIN_POSITIVES, 0] = True  # of one patient: a third of all resamples lacks it
    groups = ["one"] * MIN_POSITIVES + name_patients(40 - MIN_POSITIVES)
    metrics = evaluate_labels(probabilities, targets, HALVES, groups=groups)
    for interval in metrics.macro.values():
        assert 0 <= interval.low <= interval.value <= interval.high <= 1
