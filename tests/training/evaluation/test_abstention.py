"""Risk by coverage: by hand, against MAPIE, against draws; decisions, bands and sets of known models."""

from dataclasses import replace

import numpy as np
import pytest

from contract.decisions import ServedLabel
from contract.labels import LABELS
from training.evaluation.abstention import (
    compute_aurc,
    measure_confidence,
    measure_decisions,
    risk_coverage,
)

SERVED = tuple(ServedLabel(label.key, label.name, 0.5) for label in LABELS)


def make_decisions(seed: int, count: int, ties: bool = False):
    generator = np.random.default_rng(seed)
    confidence = generator.integers(0, 5, count) / 5 if ties else generator.random(count)
    return confidence, generator.random(count) > confidence


def test_confidence_is_the_probability_of_being_right():
    probabilities = np.array([[0.9, 0.1], [0.3, 0.25], [0.2, 0.6]])
    found = measure_confidence(probabilities, np.array([0.3, 0.25]))
    assert found.tolist() == [[0.9, 0.9], [0.3, 0.25], [0.8, 0.6]]


def test_a_curve_by_hand():
    curve = risk_coverage(np.array([0.9, 0.6, 0.8, 0.7]), np.array([False, True, False, True]))
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert curve.risk.tolist() == [0, 0, pytest.approx(1 / 3), 0.5]
    assert curve.area == pytest.approx((1 / 3 + 0.5) / 4)


def test_equal_confidence_is_a_random_order():
    wrong = np.array([True, False, False, True, False])
    assert risk_coverage(np.ones(5), wrong).risk == pytest.approx([0.4] * 5)
    confidence = np.array([0.9, 0.5, 0.5, 0.5, 0.2])
    generator = np.random.default_rng(0)
    orders = [risk_coverage(confidence + 1e-6 * generator.random(5), wrong).risk for _ in range(4000)]
    assert risk_coverage(confidence, wrong).risk == pytest.approx(np.mean(orders, axis=0), abs=0.02)


def test_the_area_is_that_of_mapie():
    from mapie.metrics.uncertainty import auarc

    confidence, wrong = make_decisions(1, 200)
    assert risk_coverage(confidence, wrong).area == pytest.approx(1 - auarc(~wrong, confidence), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_areas_of_draws_are_those_of_repeated_decisions(ties):
    confidence, wrong = make_decisions(2, 40, ties)
    weights = np.random.default_rng(3).multinomial(40, np.full(40, 1 / 40), size=6).astype(float)
    weights = np.concatenate([np.ones((1, 40)), weights, np.zeros((1, 40))])
    found = compute_aurc(confidence, wrong, weights)
    assert np.isnan(found[-1])
    for area, row in zip(found[:-1], weights, strict=False):
        drawn = np.repeat(np.arange(40), row.astype(int))
        assert area == pytest.approx(risk_coverage(confidence[drawn], wrong[drawn]).area, abs=1e-12)


def test_the_oracle_is_the_one_in_the_paper():
    wrong = np.arange(20_000) < 4000
    area = compute_aurc((~wrong).astype(float), wrong, np.ones((1, len(wrong))))[0]
    assert area == pytest.approx(0.2 + 0.8 * np.log(0.8), abs=1e-3)  # Geifman et al. 2019, section 3


def make_case():
    """40 studies: 20 with the first label, at 0.1, 0.4, 0.6 and 0.9; its negatives at the same places."""
    targets = np.zeros((40, len(LABELS)), bool)
    targets[:20, 0] = True
    targets[20:, 1] = True
    probabilities = np.zeros((40, len(LABELS)), np.float32)
    probabilities[:, 0] = np.concatenate(
        [np.repeat([0.1, 0.4, 0.6, 0.9], part) for part in ((1, 4, 5, 10), (8, 6, 4, 2))]
    )
    probabilities[:, 1] = 1 - probabilities[:, 0]
    return probabilities, targets


def test_decisions_inside_and_outside_a_band():
    probabilities, targets = make_case()
    banded = replace(SERVED[0], uncertain_low=0.3, uncertain_high=0.7, stated_missed=0.1)
    found = measure_decisions(probabilities, targets, (banded, *SERVED[1:]), np.ones((1, 40)))
    assert found["averaged"] == [SERVED[0].key, SERVED[1].key]
    first, second = found["labels"].values()
    expected = {
        "coverage": 21 / 40,
        "error": 3 / 21,
        "error_all": 11 / 40,
        "missed": 1 / 20,
        "false_alarms": 2 / 20,
    }
    assert {name: first[name]["value"] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert first["band"] == [0.3, 0.7]
    assert (first["stated_missed"], first["stated_false_alarms"], first["positives"]) == (0.1, None, 20)
    assert second["coverage"]["value"] == 1
    assert second["error"] == second["error_all"]
    assert second["band"] is None
    assert found["macro"]["coverage"]["value"] == pytest.approx((21 / 40 + 1) / 2, abs=1e-4)
    assert found["set"] is None
    curve = found["curve"]
    assert curve["risk"][-1] == curve["oracle"][-1] == pytest.approx(11 / 40, abs=1e-4)
    assert all(risk >= oracle for risk, oracle in zip(curve["risk"], curve["oracle"], strict=True))
    excess = first["aurc"]["value"] - first["aurc_oracle"]["value"]
    assert excess > 0
    assert first["aurc_excess"]["value"] == pytest.approx(excess, abs=2e-4)


def test_where_nothing_is_decided_there_is_no_error():
    probabilities, targets = make_case()
    labels = tuple(replace(label, uncertain_low=0.0, uncertain_high=1.0) for label in SERVED)
    found = measure_decisions(probabilities, targets, labels, np.ones((1, 40)))
    assert "error" not in found["macro"]
    assert found["macro"]["coverage"]["value"] == found["macro"]["missed"]["value"] == 0


def test_sets_reach_a_recall_and_have_a_size():
    probabilities, targets = make_case()
    targets[39] = False  # a study without a label has no recall
    labels = tuple(replace(label, include=0.39, stated_recall=0.9) for label in SERVED)
    weights = np.concatenate([np.ones((1, 40)), np.eye(40)[:1] * 40])
    found = measure_decisions(probabilities, targets, labels, weights)["set"]
    assert found["stated_recall"] == 0.9
    reached = 19 + 8 + 6 + 4  # of 20 with the first label, one lies below 0.4; of 19 with the second, one
    assert found["recall"]["value"] == pytest.approx(reached / 39, abs=1e-4)
    assert found["recall"]["high"] == 0  # the one draw is of the study whose label lies below
    assert found["labels"]["value"] == 1
    both = 4 + 5 + 6 + 4  # 0.4 and 0.6 put both labels in the set
    assert found["size"]["value"] == pytest.approx(1 + both / 39, abs=1e-4)


def test_nobody_has_enough_cases():
    probabilities, targets = make_case()
    found = measure_decisions(probabilities[18:22], targets[18:22], SERVED, np.ones((1, 4)))
    assert found["macro"] == found["labels"] == {}
    assert found["curve"]["risk"] == []
