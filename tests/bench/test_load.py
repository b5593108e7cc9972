"""Closed and open loops in simulated time, and once in real time."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest

from bench.load.arrivals import draw_offsets
from bench.load.clock import SystemClock
from bench.load.generator import ClosedLoop, OpenLoop, Phases, run_load
from contract.errors import ConfigError, DeadlineError, InputError, ServerError

PHASES = Phases(duration_s=10, warmup_s=1, warmup_max_s=5, window_s=1)


def test_closed_loop_hides_a_stall_and_open_loop_shows_it(clock, make_server):
    """One stall of 1 s in 10 s of answers within 10 ms."""
    closed = run_load(make_server(0.01, stall=(8, 1.0)), ClosedLoop(1), PHASES, clock=clock)
    assert closed.latency.p99_ms == pytest.approx(10, rel=0.01)
    assert closed.latency.max_ms == pytest.approx(1010, rel=0.01)

    opened = run_load(make_server(0.01, stall=(8, 1.0)), OpenLoop(50, "constant", 500), PHASES, clock=clock)
    assert opened.latency.p50_ms == pytest.approx(10, rel=0.01)
    assert opened.latency.p99_ms > 900  # a tenth of the requests was due during the stall
    assert opened.latency.p90_ms > 100
    assert opened.kept_schedule


def test_stall_counts_from_the_due_time_even_when_the_senders_ran_out(clock, make_server):
    """A single sender can send nothing while it waits: the requests it is late with still saw the stall."""
    sample = run_load(make_server(0.01, stall=(8, 1.0)), OpenLoop(50, "constant", 1), PHASES, clock=clock)
    assert sample.latency.p99_ms > 900
    assert not sample.kept_schedule
    assert sample.late > 0.1
    assert sample.lag_p99_ms > 900


def test_closed_loop_reaches_the_capacity(clock, make_server):
    for workers, expected in ((1, 20), (2, 40), (8, 40)):
        sample = run_load(make_server(0.05, parallel=2), ClosedLoop(workers), PHASES, clock=clock)
        assert sample.throughput == pytest.approx(expected, rel=0.01)
        assert sample.latency.p50_ms == pytest.approx(1e3 * workers / expected, rel=0.02)
        assert sample.steady


def test_throughput_counts_a_request_across_an_end_by_its_part(clock, make_server):
    """Eight at once answered every 0.8 s: whole answers would be wrong by up to 8 in 20."""
    phases = Phases(duration_s=2, warmup_s=1, warmup_max_s=4)
    sample = run_load(make_server(0.8, parallel=8), ClosedLoop(8), phases, clock=clock)
    assert sample.throughput == pytest.approx(10, rel=0.001)


def test_rate_above_the_capacity_is_told(clock, make_server):
    sample = run_load(make_server(0.1), OpenLoop(30, "constant", 16), PHASES, clock=clock)
    assert sample.throughput == pytest.approx(10, rel=0.02)
    assert sample.unsent > 150
    assert not sample.kept_schedule
    assert sample.get_percentile(99) == float("inf")


@pytest.mark.parametrize("arrivals", ["constant", "poisson"])
def test_open_loop_keeps_its_rate(clock, make_server, arrivals):
    sample = run_load(make_server(0.001, parallel=9), OpenLoop(100, arrivals), PHASES, clock=clock)
    assert sample.throughput == pytest.approx(100, rel=0.1)
    assert sample.unsent == 0
    assert sample.late == 0


def test_gaps():
    constant = list(itertools.islice(draw_offsets(8, "constant", 0), 5))
    assert constant == [0, 0.125, 0.25, 0.375, 0.5]
    drawn = list(itertools.islice(draw_offsets(8, "poisson", 1), 20_000))
    gaps = np.diff(drawn)
    assert gaps.mean() == pytest.approx(1 / 8, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 8, rel=0.03)  # exponential: as large as the mean
    assert (gaps > 0).all()
    assert drawn == list(itertools.islice(draw_offsets(8, "poisson", 1), 20_000))
    assert drawn != list(itertools.islice(draw_offsets(8, "poisson", 2), 20_000))


def test_errors_are_counted_by_type_and_are_in_no_percentile(clock, make_server):
    server = make_server(0.01)

    def request(number: int) -> None:
        server(number)
        if number % 4 == 0:
            raise DeadlineError("late")
        if number % 4 == 1:
            raise ServerError("broken")

    sample = run_load(request, ClosedLoop(1), PHASES, clock=clock)
    assert set(sample.failed) == {"DeadlineError", "ServerError"}
    assert sample.failed["DeadlineError"] == pytest.approx(250, abs=2)
    assert sample.requests == pytest.approx(500, abs=2)
    assert sample.throughput == pytest.approx(50, rel=0.02)
    assert sample.get_percentile(40) < 20
    assert sample.get_percentile(90) == float("inf")


def test_an_error_that_is_no_answer_ends_the_load(clock, make_server):
    server = make_server(0.01)

    def request(number: int) -> None:
        server(number)
        if number == 30:
            raise ZeroDivisionError("a mistake in the program")

    with pytest.raises(ZeroDivisionError):
        run_load(request, ClosedLoop(3), PHASES, clock=clock)


def test_count_ends_the_measurement(clock, make_server):
    phases = Phases(count=40, warmup_s=1, warmup_max_s=2)
    sample = run_load(make_server(0.1), ClosedLoop(1), phases, clock=clock)
    assert 40 <= sample.requests <= 42
    assert sample.duration_s == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("workers", [1, 8])
def test_a_short_turn_of_slow_requests_holds_some(clock, make_server, workers):
    """A turn of half a second and requests of 0.7 s and more: `cxr bench table` printed NaN."""
    short = Phases(duration_s=0.5, warmup_s=9, warmup_max_s=9, window_s=0.1)
    server = make_server(0.7, parallel=2)
    assert run_load(server, ClosedLoop(workers), short, clock=clock).requests < 5
    sample = run_load(server, ClosedLoop(workers), replace(short, at_least=5), clock=clock)
    assert sample.requests >= 5
    assert sample.latency.p50_ms >= 0.99 * 700
    assert sample.throughput == pytest.approx(min(workers, 2) / 0.7, rel=0.05)


def test_slow_start_is_waited_for(clock, make_server):
    """Answers get faster for 6 s; only then is measured."""
    begin, fast = clock.now(), make_server(0.01)

    def request(number: int) -> None:
        clock.sleep(max(0.0, 0.6 - 0.1 * (clock.now() - begin)))
        fast(number)

    sample = run_load(request, ClosedLoop(1), Phases(duration_s=5, warmup_max_s=30), clock=clock)
    assert sample.steady
    assert sample.warmup_s > 6
    assert sample.latency.max_ms < 15


def test_server_that_never_settles_is_told(clock, make_server):
    begin, fast = clock.now(), make_server(0.01)

    def request(number: int) -> None:
        clock.sleep(0.02 * (clock.now() - begin))
        fast(number)

    sample = run_load(request, ClosedLoop(1), PHASES, clock=clock)
    assert not sample.steady


def test_observer_sees_the_measured_time_only(clock, make_server):
    class Observer:
        def begin(self) -> None:
            self.began = clock.now()

        def end(self) -> dict[str, float]:
            return {"seconds": clock.now() - self.began}

    sample = run_load(make_server(0.01), ClosedLoop(1), PHASES, clock=clock, observer=Observer())
    assert sample.observed == {"seconds": pytest.approx(10)}


@pytest.mark.alone
def test_real_time():
    """What the system's clock, threads and waits add: a request of 5 ms, 40 times a second."""
    load = OpenLoop(40, "constant", 8)
    sample = run_load(
        lambda _: time.sleep(0.005), load, Phases(duration_s=0.5, warmup_s=0, warmup_max_s=0, window_s=0.1)
    )
    assert sample.requests == pytest.approx(20, abs=1)
    assert 5 <= sample.latency.p50_ms < 9
    assert sample.generator_cores < 0.9


def test_error_in_real_time_ends_all_threads():
    def request(number: int) -> None:
        if number == 3:
            raise ZeroDivisionError
        time.sleep(0.001)

    with pytest.raises(ZeroDivisionError):
        run_load(request, OpenLoop(0.5 * 1000, "poisson", 4), Phases(), clock=SystemClock())


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClosedLoop(0),
        lambda: OpenLoop(0),
        lambda: OpenLoop(float("nan")),
        lambda: OpenLoop(5, in_flight=0),
        lambda: Phases(duration_s=0),
        lambda: Phases(count=0),
        lambda: Phases(warmup_s=-1),
    ],
)
def test_impossible_settings(make):
    with pytest.raises(ConfigError):
        make()


def test_input_errors_are_counted_too(clock, make_server):
    server = make_server(0.01)

    def request(number: int) -> None:
        server(number)
        raise InputError("no image")

    sample = run_load(request, OpenLoop(20, "constant", 4), PHASES, clock=clock)
    assert sample.requests == 0
    assert sample.failed == {"InputError": 200}
    assert np.isnan(sample.latency.p50_ms)
