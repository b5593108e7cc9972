"""Statistics of constructed samples have the values that can be computed by hand."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from training.monitoring.statistics import compare_values, measure_mmd, measure_psi, measure_shift


def test_psi_of_codes_is_the_sum_of_its_bins():
    reference, current = np.repeat([0, 1], [750, 250]), np.repeat([0, 1], [500, 500])
    psi, _ = measure_psi(reference, current, categories=2)
    p, q = np.array([750.5, 250.5]) / 1001, np.array([500.5, 500.5]) / 1001
    assert psi == pytest.approx(((q - p) * np.log(q / p)).sum())
    assert psi == pytest.approx(0.25 * np.log(0.5 / 0.75) * -1 + 0.25 * np.log(0.5 / 0.25), abs=2e-3)


def test_psi_of_a_shifted_normal_is_near_that_of_the_densities():
    """Between N(0, 1) and N(d, 1) both Kullback-Leibler divergences are d^2 / 2; bins lose a little."""
    rng = np.random.default_rng(0)
    psi, by_chance = measure_psi(rng.normal(0, 1, 100_000), rng.normal(0.5, 1, 100_000))
    assert 0.22 < psi < 0.25
    assert by_chance < 0.001


def test_the_psi_of_equal_distributions_exceeds_its_limit_once_in_20():
    rng = np.random.default_rng(1)
    found = [measure_psi(rng.random(200), rng.random(150)) for _ in range(600)]
    share = np.mean([psi > limit for psi, limit in found])
    assert 0.025 < share < 0.075
    assert found[0][1] == pytest.approx(16.919 * (1 / 200 + 1 / 150), rel=1e-3)  # chi-squared, 9 degrees


def test_a_constant_value_that_stays_and_one_that_moves():
    same, other = np.full(80, 0.5), np.full(80, 0.75)
    assert measure_psi(same, same)[0] == 0
    assert measure_psi(same, other)[0] > 1
    assert compare_values(same, same) == ("KS", 0.0, 1.0)
    assert measure_shift(same, other, seed=0) == (0.25, 0.25, 0.25)


def test_the_test_finds_a_known_gap():
    values = np.linspace(0, 1, 1001)
    name, statistic, p = compare_values(values, values + 0.2)
    assert (name, round(statistic, 2)) == ("KS", 0.2)
    assert p < 1e-10
    name, _, p = compare_values(np.repeat([0, 1], [90, 10]), np.repeat([0, 1], [50, 50]), categories=5)
    assert name == "chi2"
    assert p < 1e-6
    assert compare_values(np.zeros(60), np.zeros(60), categories=5) == ("chi2", 0.0, 1.0)


def test_the_shift_is_in_its_interval_which_is_as_wide_as_theory_says():
    rng = np.random.default_rng(2)
    shift, low, high = measure_shift(rng.normal(0, 1, 400), rng.normal(0.3, 1, 400), seed=0)
    assert low < shift < high
    assert low < 0.3 < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(2 / 400), rel=0.15)


def test_the_discrepancy_is_that_of_the_formula_and_small_p_needs_a_change():
    rng = np.random.default_rng(3)
    x, same, moved = rng.normal(0, 1, (60, 8)), rng.normal(0, 1, (70, 8)), rng.normal(0.8, 1, (70, 8))
    found, p = measure_mmd(x, moved, seed=0)
    pooled = np.concatenate([x, moved])
    distances = np.linalg.norm(pooled[:, None] - pooled[None], axis=-1)
    kernel = np.exp(-((distances / np.median(distances[np.triu_indices(130, 1)])) ** 2) / 2)
    expected = kernel[:60, :60].mean() + kernel[60:, 60:].mean() - 2 * kernel[:60, 60:].mean()
    assert found == pytest.approx(expected)
    assert p == pytest.approx(1 / 2000)
    assert measure_mmd(x, same, seed=0)[1] > 0.05
