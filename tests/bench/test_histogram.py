"""Histograms: accuracy, merging, text form; steadiness."""

import math

import numpy as np
import pytest

from bench.load.histogram import Histogram
from bench.load.steady import Window, is_steady
from contract.errors import ArtifactError


def test_percentiles_agree_with_numpy():
    drawn = np.random.default_rng(0).lognormal(-3, 1, 20_000)
    latency = Histogram(drawn.tolist()).summarise()
    for name, percentile in (("p50_ms", 50), ("p90_ms", 90), ("p99_ms", 99), ("p999_ms", 99.9)):
        assert getattr(latency, name) == pytest.approx(1e3 * np.percentile(drawn, percentile), rel=0.005)
    assert latency.min_ms == pytest.approx(1e3 * drawn.min(), rel=0.002)
    assert latency.max_ms == pytest.approx(1e3 * drawn.max(), rel=0.002)
    assert latency.mean_ms == pytest.approx(1e3 * drawn.mean(), rel=0.002)


def test_merged_is_as_counted_at_once():
    drawn = np.random.default_rng(1).exponential(0.05, 3000).tolist()
    merged = Histogram(drawn[:1000])
    for part in (Histogram(drawn[1000:]), Histogram()):
        merged.add(part)
    assert len(merged) == 3000
    assert merged.summarise() == Histogram(drawn).summarise()


def test_text_form_gives_it_back():
    histogram = Histogram([0.001, 0.002, 0.5])
    again = Histogram.decode(histogram.encode())
    assert again.summarise() == histogram.summarise()
    assert len(Histogram.decode(Histogram().encode())) == 0
    with pytest.raises(ArtifactError):
        Histogram.decode("no histogram")


def test_empty_and_extreme():
    assert math.isnan(Histogram().summarise().p50_ms)
    assert math.isnan(Histogram().get_percentile(99))
    assert Histogram([0.0]).get_percentile(50) == 0.001  # a microsecond is the least
    assert Histogram([1e9]).get_percentile(50) == pytest.approx(3.6e6, rel=0.001)


def test_points_for_the_plot_end_at_the_last_nine():
    points = Histogram([0.001] * 900 + [0.1] * 100).list_percentiles()
    fractions = [fraction for fraction, _ in points]
    assert fractions[0] == 0
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(0.999)
    assert points[-1][1] == pytest.approx(100, rel=0.001)


def windows(medians, throughputs=None):
    return [Window(a, b) for a, b in zip(medians, throughputs or [10.0] * len(medians), strict=True)]


@pytest.mark.parametrize(
    ("medians", "throughputs", "steady"),
    [
        ([1.0, 1.05, 1.09], None, True),
        ([1.0, 1.05, 1.11], None, False),  # largest / smallest, not neighbours
        ([9.0, 1.0, 1.0, 1.0], None, True),  # the last three count
        ([1.0, 1.0], None, False),
        ([1.0, float("nan"), 1.0], None, False),
        ([1.0, 1.0, 1.0], [10, 10, 12], False),
    ],
)
def test_steady(medians, throughputs, steady):
    assert is_steady(windows(medians, throughputs), 0.1) is steady


def test_random_arrivals_need_no_equal_throughput():
    assert is_steady(windows([1.0, 1.0, 1.0], [10, 10, 12]), 0.1, throughput=False)
