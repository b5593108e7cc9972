"""The search for the highest rate within a budget, on a simulated server whose capacity is known."""

import pytest

from bench.load.budget import Budget, find_rate
from bench.load.generator import OpenLoop, Phases, run_load
from contract.errors import ConfigError, ServerError

PHASES = Phases(duration_s=10, warmup_s=1, warmup_max_s=1)


def search(clock, make_server, budget: str, *, start: float, resolution: float = 0.05, **server):
    target = make_server(**server)

    def try_rate(rate):
        return run_load(target, OpenLoop(rate, "constant", 64), PHASES, clock=clock)

    return find_rate(try_rate, Budget.parse(budget), start=start, resolution=resolution)


@pytest.mark.parametrize("start", [3.0, 40.0, 400.0])
def test_rate_is_the_capacity_for_equal_gaps(clock, make_server, start):
    """20 ms a request, two at once: 100 a second wait for nothing, more of them wait ever longer."""
    found = search(clock, make_server, "p99=30ms", start=start, service_s=0.02, parallel=2)
    assert 95 <= found.rate <= 101
    assert max(trial.rate for trial in found.trials if trial.met) == found.rate
    assert found.trials[-1].rate == found.rate  # it was tried once more
    assert found.trials[-1].met


def test_finer_resolution_comes_closer(clock, make_server):
    found = search(clock, make_server, "p99=30ms", start=30, resolution=0.005, service_s=0.02, parallel=2)
    assert 99 <= found.rate <= 100.6


def test_budget_below_the_service_time_is_never_met(clock, make_server):
    found = search(clock, make_server, "p50=10ms", start=1, service_s=0.02)
    assert found.rate is None
    assert not any(trial.met for trial in found.trials)


def test_failed_requests_meet_no_budget():
    def refuse(_number):
        raise ServerError("broken")

    phases = Phases(duration_s=0.05, warmup_s=0, warmup_max_s=0, window_s=0.01)
    found = find_rate(
        lambda rate: run_load(refuse, OpenLoop(rate, "constant", 4), phases), Budget(50, 1e6), start=100
    )
    assert found.rate is None
    assert found.trials[0].percentile_ms is None


def test_rate_that_fails_when_tried_again_is_lowered(clock, make_server):
    """A server that is slower from the tenth trial on."""
    trials = []

    def try_rate(rate):
        trials.append(rate)
        service_s = 0.02 if len(trials) < 6 else 0.025
        return run_load(make_server(service_s), OpenLoop(rate, "constant", 64), PHASES, clock=clock)

    found = find_rate(try_rate, Budget.parse("p99=35ms"), start=30, resolution=0.1)
    assert 33 <= found.rate <= 41
    assert [trial.met for trial in found.trials][-2:] == [False, True]


@pytest.mark.parametrize(
    ("text", "percentile", "limit_ms"),
    [("p99=50ms", 99, 50), ("P99.9 < 0.2s", 99.9, 200), ("p50=800us", 50, 0.8), ("p5=1s", 5, 1000)],
)
def test_budgets_that_can_be_read(text, percentile, limit_ms):
    budget = Budget.parse(text)
    assert (budget.percentile, budget.limit_ms) == (percentile, pytest.approx(limit_ms))


@pytest.mark.parametrize(
    "text", ["", "50ms", "p99", "p99=50", "p100=5ms", "p99=0ms", "p0=5ms", "p99=-1ms", "99=5ms"]
)
def test_budgets_that_cannot(text):
    with pytest.raises(ConfigError, match="p99=50ms"):
        Budget.parse(text)


def test_requests_that_a_trial_needs():
    assert Budget.parse("p50=1ms").least_requests == 2
    assert Budget.parse("p99=1ms").least_requests == pytest.approx(100, abs=1)
    assert Budget.parse("p99.9=1ms").least_requests == pytest.approx(1000, abs=1)


def test_impossible_search():
    with pytest.raises(ConfigError):
        find_rate(lambda _: None, Budget(99, 1), start=0)
