"""Bands and conformal sets: by hand, against MAPIE, and on simulated data whose error is known."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from contract.decisions import ServedLabel, check_numbers
from contract.errors import ConfigError
from contract.labels import LABELS
from training.evaluation.selective import fit_bands, fit_include, fit_selection

SEEN = np.repeat([True, False], [20, 40])[:, None]  # 20 studies with the finding, 40 without


def spread(positives, negatives) -> np.ndarray:
    return np.concatenate([positives, negatives]).astype(np.float32)[:, None]


def draw_scores(generator, studies, *, shift):
    return 1 / (1 + np.exp(-generator.normal(shift, 1, studies)))


def test_the_edges_are_the_order_statistics_of_the_classes():
    probabilities = spread(np.arange(1, 21) / 25, np.arange(1, 41) / 50)  # 0.04 to 0.8, 0.02 to 0.8
    low, high = fit_bands(probabilities, SEEN, np.array([0.5]), missed=0.1, false_alarms=0.05)[0]
    assert low == pytest.approx(2 / 25)  # of 20 positives 0.1 * 21 - 1 = 1.1 may lie below: one
    assert high == pytest.approx(39 / 50, abs=1e-6)  # of 40 negatives 0.05 * 41 - 1 = 1.05 may lie above: one
    label = ServedLabel("x", "X", 0.5, uncertain_low=low, uncertain_high=high)
    decisions = np.array([label.decide(value) for value in probabilities[:, 0].tolist()])
    assert (decisions[:20] == "absent").sum() == (decisions[20:] == "present").sum() == 1


def test_a_model_that_tells_the_classes_apart_is_never_uncertain():
    probabilities = spread(np.linspace(0.7, 0.9, 20), np.linspace(0.1, 0.3, 40))
    assert fit_bands(probabilities, SEEN, np.array([0.5])).tolist() == [[0.5, 0.5]]


def test_a_model_that_tells_nothing_is_uncertain_about_nearly_everything():
    generator = np.random.default_rng(0)
    probabilities = generator.random((1000, 1)).astype(np.float32)
    targets = generator.random((1000, 1)) < 0.3
    low, high = fit_bands(probabilities, targets, np.array([0.5]))[0]
    assert low == pytest.approx(0.1, abs=0.03)
    assert high == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(("positives", "stated"), [(9, False), (10, True), (11, True)])
def test_too_few_cases_state_nothing(positives, stated):
    targets = np.arange(100)[:, None] < positives
    probabilities = np.where(targets, 0.2, 0.7).astype(np.float32)
    low, high = fit_bands(probabilities, targets, np.array([0.5]))[0]
    assert low == (pytest.approx(0.2) if stated else 0.5)
    assert high == pytest.approx(0.7)
    selection = fit_selection(probabilities, targets, np.array([0.5]))
    assert np.isnan(selection.missed[0]) != stated
    assert selection.false_alarms[0] == 0.05


@pytest.mark.parametrize("studies", [20, 37])
def test_the_edge_is_that_of_mapie(studies):
    """Conformal risk control of the recall of one label, among those that have it, is the lower edge."""
    from mapie.risk_control import MultiLabelClassificationController

    scores = draw_scores(np.random.default_rng(1), (studies, 1), shift=0.5)
    targets = np.ones_like(scores, bool)
    low = fit_bands(scores, targets, np.array([1.0]), missed=0.22)[0, 0]
    grid = np.linspace(0, 1, 801)
    controller = MultiLabelClassificationController(lambda rows: rows, target_level=0.78, predict_params=grid)
    theirs = controller.calibrate(scores, targets.astype(int)).best_predict_param[0]
    assert 0 <= low - theirs <= grid[1] + 1e-12


@pytest.mark.parametrize(("studies", "limit"), [(12, 0.1), (30, 0.1), (80, 0.05)])
def test_simulated_limits_hold_on_average(studies, limit):
    generator = np.random.default_rng(2)
    targets = np.repeat([True, False], studies)[:, None]
    missed, alarms = [], []
    for _ in range(400):
        scores = [draw_scores(generator, studies, shift=shift) for shift in (0.3, -0.3)]
        bands = fit_bands(
            np.concatenate(scores)[:, None], targets, np.array([0.5]), missed=limit, false_alarms=limit
        )
        low, high = bands[0]
        missed.append((draw_scores(generator, 300, shift=0.3) < low).mean())
        alarms.append((draw_scores(generator, 300, shift=-0.3) >= high).mean())
    for shares in (missed, alarms):
        error = np.std(shares) / np.sqrt(len(shares))
        assert np.mean(shares) <= limit + 2.5 * error
        assert np.mean(shares) >= limit - 1 / studies - 2.5 * error  # nor more uncertain than it has to be


def test_simulated_sets_hold_the_stated_share_of_labels():
    generator = np.random.default_rng(3)

    def draw(studies):
        targets = generator.random((studies, 6)) < [0.4, 0.3, 0.2, 0.1, 0.05, 0.02]
        scores = 2 * targets - 2 + generator.normal(0, 1, targets.shape)
        return 1 / (1 + np.exp(-scores)), targets

    recalls, sizes = [], []
    for _ in range(40):
        include = fit_include(*draw(60), recall=0.9)
        probabilities, targets = draw(400)
        some = targets.any(1)
        included = probabilities[some] >= include
        recalls.append(((included & targets[some]).sum(1) / targets[some].sum(1)).mean())
        sizes.append(included.sum(1).mean())
    assert np.mean(recalls) >= 0.9 - 2.5 * np.std(recalls) / np.sqrt(len(recalls))
    assert np.mean(recalls) <= 0.95
    assert np.mean(sizes) < 4  # a set of all labels would be no answer


def test_labels_of_probability_zero_are_included_where_they_must_be():
    probabilities, targets = np.zeros((30, 2)), np.ones((30, 2), bool)
    assert fit_include(probabilities, targets) == 0


def test_studies_without_a_label_and_too_few_studies_state_no_recall():
    probabilities = np.full((40, 2), 0.5)
    targets = np.zeros((40, 2), bool)
    targets[:9, 0] = True
    assert fit_include(probabilities, targets) is None
    targets[9, 1] = True
    assert fit_include(probabilities, targets) == pytest.approx(0.5, abs=0.06)
    assert fit_include(probabilities[:0], targets[:0]) is None


def make_labels(threshold: float) -> tuple[ServedLabel, ...]:
    return tuple(ServedLabel(label.key, label.name, threshold, 1.5, -0.5) for label in LABELS[:3])


def test_labels_carry_what_is_stated():
    generator = np.random.default_rng(4)
    targets = np.zeros((120, 3), bool)
    targets[:60, 0] = targets[:5, 1] = True  # the second has no limit on what is missed
    probabilities = generator.random((120, 3)).astype(np.float32)
    selection = fit_selection(probabilities, targets, np.full(3, 0.5))
    served = selection.add_to(make_labels(0.5))
    for label in served:
        check_numbers(label, source="here")
        assert (label.scale, label.bias, label.threshold) == (1.5, -0.5, 0.5)
        assert (label.include, label.stated_recall) == (selection.include, 0.9)
    assert (served[0].stated_missed, served[0].stated_false_alarms) == (0.1, 0.05)
    assert (served[1].stated_missed, served[1].uncertain_low) == (None, 0.5)
    assert served[1].uncertain_high > 0.9
    nothing = fit_selection(probabilities[:8], targets[:8], np.full(3, 0.5)).add_to(make_labels(0.5))
    assert nothing == make_labels(0.5)
    assert replace(served[0], uncertain_low=None).decide(0.1) == "absent"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"missed": 0}, "between 0 and 1, not at 0"),
        ({"false_alarms": 1}, "between 0 and 1, not at 1"),
        ({"recall": 1.0}, "between 0 and 1, not at 0"),
        ({"targets": np.ones((4, 2), bool)}, r"targets \(4, 2\)"),
        ({"thresholds": np.ones(2)}, "1 labels need as many thresholds"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    given = {"probabilities": np.ones((4, 1)), "targets": np.ones((4, 1), bool), "thresholds": np.ones(1)}
    with pytest.raises(ConfigError, match=words):
        fit_selection(**{**given, **changes})


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mapie.risk_control", None)
    with pytest.raises(ConfigError, match=r"Conformal sets need MAPIE: pip install 'cxr-serving\[train\]'"):
        fit_include(np.full((30, 1), 0.5), np.ones((30, 1), bool))
