"""Calibration is held against the line that made the data, and against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from training.evaluation.calibrate import SMALLEST_SCALE, apply_platt, fit_platt


def draw(count, scale, bias, *, spread=1.0, centre=0.0, seed=0):
    """Logits (count, K) and targets that follow sigmoid(scale * logit + bias); scale and bias have K values."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(centre, spread, (count, len(scale))).astype(np.float32)
    return logits, generator.random(logits.shape) < apply_platt(logits, np.float32(scale), np.float32(bias))


def measure_loss(logits, targets, scale, bias) -> float:
    """Cross-entropy with the targets of Platt 1999, section 2.2."""
    positives, negatives = targets.sum(), (~targets).sum()
    wanted = np.where(targets, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    values = logits.astype(np.float64) * scale + bias
    return float((np.logaddexp(0, values) - wanted * values).sum())


# --- right -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_line_that_made_the_targets_is_found(seed):
    scale, bias = [2.0, 0.5, 1.0, 0.2], [-1.0, 0.3, -3.0, 0.0]
    found = fit_platt(*draw(20_000, scale, bias, seed=seed))
    np.testing.assert_allclose(found[0], scale, atol=0.12)
    np.testing.assert_allclose(found[1], bias, atol=0.12)


@pytest.mark.parametrize(("spread", "centre"), [(1.0, 0.0), (2.0, -3.0), (6.0, 4.0), (0.3, 1.0)])
def test_scikit_learn_finds_the_same(spread, centre):
    logits, targets = draw(20_000, [0.8], [0.5], spread=spread, centre=centre)
    model = LogisticRegression(C=np.inf, tol=1e-8).fit(logits, targets[:, 0])
    scale, bias = fit_platt(logits, targets)
    # The smoothed targets and the pull towards 1 move the line by less than this on so many cases.
    assert scale[0] == pytest.approx(model.coef_[0, 0], abs=0.005)
    assert bias[0] == pytest.approx(model.intercept_[0], abs=0.005)
    np.testing.assert_allclose(
        apply_platt(logits, scale, bias)[:, 0], model.predict_proba(logits)[:, 1], atol=2e-3
    )


@pytest.mark.parametrize(
    ("spread", "centre", "scale", "bias"),
    [
        (2.0, -3.0, 0.25, -0.5),  # overconfident, as of a label that is rare
        (2.0, 3.0, 0.9, -2.0),
        (8.0, 6.0, 0.1, -1.0),
        (20.0, 0.0, 0.2, 0.0),
        (300.0, 50.0, 0.1, -3.0),
        (0.05, 6.0, 1.5, -9.0),
    ],
)
def test_no_other_line_fits_better(spread, centre, scale, bias):
    for seed in range(10):
        logits, targets = draw(250, [scale], [bias], spread=spread, centre=centre, seed=seed)
        found = fit_platt(logits, targets)
        loss = measure_loss(logits, targets, found[0], found[1])
        assert loss < measure_loss(logits, targets, scale, bias) + 5
        assert loss <= measure_loss(logits, targets, 1.0, 0.0)


def test_each_label_is_fitted_alone():
    logits, targets = draw(500, [2.0, 0.5, 1.0], [-1.0, 0.3, 2.0])
    scale, bias = fit_platt(logits, targets)
    for label in range(3):
        alone = fit_platt(logits[:, [label]], targets[:, [label]])
        assert (alone[0][0], alone[1][0]) == (scale[label], bias[label])


def test_calibrated_logits_stay_as_they_are():
    logits, targets = draw(20_000, [1.0], [0.0])
    scale, bias = fit_platt(logits, targets)
    assert scale[0] == pytest.approx(1.0, abs=0.05)
    assert bias[0] == pytest.approx(0.0, abs=0.05)


def test_probabilities():
    logits = np.float32([[0, 0], [1, 1], [-1000, 1000]])
    found = apply_platt(logits, np.float32([1, 2]), np.float32([0, -1]))
    expected = 1 / (1 + np.exp(-np.array([[0, -1], [1, 1], [-700, 700]], dtype=np.float64)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


# --- finite, and in order --------------------------------------------------------------------------------------

rows = st.lists(st.tuples(st.floats(-200, 200, width=32), st.booleans()), min_size=1, max_size=40)


@settings(deadline=None, max_examples=200)
@given(rows)
def test_the_order_of_the_cases_is_kept(rows):
    logits = np.array([[value] for value, _ in rows], np.float32)
    targets = np.array([[target] for _, target in rows])
    scale, bias = fit_platt(logits, targets)
    assert scale.dtype == bias.dtype == np.float32
    assert np.isfinite(scale).all()
    assert np.isfinite(bias).all()
    assert scale[0] >= np.float32(SMALLEST_SCALE)
    probabilities = apply_platt(np.sort(logits, axis=0), scale, bias)[:, 0]
    assert (np.diff(probabilities) >= -1e-6).all()  # rounding of float32


def test_misordered_cases_get_the_smallest_scale_and_their_share():
    logits, targets = draw(2000, [-1.0], [1.0])
    scale, bias = fit_platt(logits, targets)
    assert scale[0] == np.float32(SMALLEST_SCALE)
    assert apply_platt(logits, scale, bias).mean() == pytest.approx(targets.mean(), abs=0.005)


@pytest.mark.parametrize("count", [1, 40, 4000])
@pytest.mark.parametrize("value", [False, True])
def test_one_class_alone(count, value):
    logits = np.random.default_rng(0).normal(-2, 3, (count, 1)).astype(np.float32)
    scale, bias = fit_platt(logits, np.full((count, 1), value))
    assert np.isfinite([scale, bias]).all()
    # As the smoothed targets say: near the class, never certain.
    mean = apply_platt(logits, scale, bias).mean()
    wanted = (count + 1) / (count + 2)
    assert mean == pytest.approx(wanted if value else 1 - wanted, abs=0.35 / np.sqrt(count))
    assert 0 < mean < 1


@pytest.mark.parametrize("factor", [1.0, 30.0])
def test_separable_classes_stay_finite(factor):
    logits = np.linspace(-3, 3, 60, dtype=np.float32)[:, None] * np.float32(factor)
    scale, bias = fit_platt(logits, logits > 0)
    assert np.isfinite([scale, bias]).all()
    probabilities = apply_platt(logits, scale, bias)[:, 0]
    assert ((probabilities > 0.5) == (logits[:, 0] > 0)).all()
    assert scale[0] < 100


def test_no_cases_change_nothing():
    scale, bias = fit_platt(np.zeros((0, 22), np.float32), np.zeros((0, 22), bool))
    assert (scale.shape, bias.shape) == ((22,), (22,))
    assert (scale == 1).all()
    assert (bias == 0).all()
