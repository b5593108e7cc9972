"""One load: a closed or an open loop of requests, warmed up, then measured.

A closed loop has N senders. Each sends its next request after the answer to the last one. If the server stalls, the
senders stop too, so only the requests in flight show the stall. An open loop sends each request when it is due,
whether or not others are answered, and measures its latency from the due time. So all delayed requests show the
stall. (Gil Tene, "How NOT to Measure Latency", calls the error of the closed loop coordinated omission.)
"""

import gc
import itertools
import math
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.load.arrivals import Arrivals, Schedule
from bench.load.clock import Clock, SystemClock
from bench.load.sample import Sample, Times, make_sample
from bench.load.steady import Window, is_steady
from contract.errors import ConfigError, CxrError

Request = Callable[[int], None]  # argument: the number of the request; may raise an error of contract.errors

_WINDOW_REQUESTS: Final = 5  # a median of fewer requests is not reliable
_POLL_S: Final = 0.02


@dataclass(frozen=True)
class ClosedLoop:
    """`workers` senders, each of which waits for its answer."""

    workers: int

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"A closed loop needs at least 1 request in flight, not {self.workers}.")

    @property
    def senders(self) -> int:
        """Largest number of requests in flight."""
        return self.workers


@dataclass(frozen=True)
class OpenLoop:
    """`rate` requests per second. A request is sent late if `in_flight` others are waiting when it is due."""

    rate: float
    arrivals: Arrivals = "poisson"
    in_flight: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.rate < math.inf) or self.in_flight < 1:
            raise ConfigError("An open loop needs a rate above 0 and at least 1 request in flight.")

    @property
    def senders(self) -> int:
        """Largest number of requests in flight."""
        return self.in_flight


Load = ClosedLoop | OpenLoop


@dataclass(frozen=True)
class Phases:
    """The durations of warm-up and measurement of a load.

    Warm-up lasts at least `warmup_s`, then until three windows of `window_s` agree within `tolerance` (see
    `bench.load.steady`), at most `warmup_max_s`. A window grows until it holds five answers. Then requests
    are measured for `duration_s`, or until at least `count` are answered. With `at_least`, a measurement of
    `duration_s` goes on until so many of the requests that it began are answered or have failed: a short one could
    hold none.
    """

    duration_s: float = 10.0
    count: int | None = None
    at_least: int = 0
    warmup_s: float = 1.0
    warmup_max_s: float = 30.0
    window_s: float = 1.0
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        if min(self.duration_s, self.window_s) <= 0 or min(self.warmup_s, self.tolerance) < 0:
            raise ConfigError(
                "Durations and windows must be above 0 seconds. Tolerances and warm-up must not be negative."
            )
        if self.count is not None and self.count < 1:
            raise ConfigError(f"At least 1 request must be measured, not {self.count}.")
        if self.at_least < 0:
            raise ConfigError(f"at_least must not be negative, but is {self.at_least}.")

    def shorten(self) -> "Phases":
        """Return the phases for a load that is still warm: one short window, without waiting for a steady state."""
        return replace(self, warmup_s=min(self.warmup_s, self.window_s), warmup_max_s=0.0)


class Observer(Protocol):
    """Observes the server at the start and the end of the measurement."""

    def begin(self) -> None:
        """Handle the start of the measurement."""

    def end(self) -> dict[str, Any]:
        """Handle the end of the measurement; return JSON-ready observations."""


def run_load(
    request: Request,
    load: Load,
    phases: Phases,
    *,
    clock: Clock | None = None,
    observer: Observer | None = None,
) -> Sample:
    """Send requests, wait for a steady state, and measure.

    Args:
        request: Sends one request and waits for its answer. Errors of `contract.errors` are counted by type;
            any other error ends the load.
        load: The closed or open loop.
        phases: Durations.
        clock: Clock and threads of the load. None: those of the machine.
        observer: Observes the server during the measurement.

    Raises:
        Exception: An error of `request` or `observer` that is not an error of a single request.
    """
    with _keep_collector_short():
        return _Run(request, load, phases, clock or SystemClock(), observer).run()


class _Track:
    """The records of one sender: three times per request (due, sent, answered), and the failures."""

    def __init__(self) -> None:
        self.times = array("d")
        self.failures: list[tuple[float, str]] = []

    def read(self, start: int = 0) -> NDArray[np.float64]:
        """Return (n, 3) times from the request `start` on. Other threads may add records meanwhile."""
        times = self.times[3 * start :]
        return np.array(times[: len(times) // 3 * 3], dtype=np.float64).reshape(-1, 3)


class _Run:
    def __init__(
        self, request: Request, load: Load, phases: Phases, clock: Clock, observer: Observer | None
    ) -> None:
        self._request, self._load, self._phases = request, load, phases
        self._clock, self._observer = clock, observer
        self._stop = clock.make_stop()
        self._tracks = [_Track() for _ in range(load.senders)]
        self._numbers = itertools.count()
        self._schedule = Schedule(load.rate, load.arrivals, load.seed) if isinstance(load, OpenLoop) else None
        self._start = self._begin = self._end = math.inf
        self._steady = False
        self._observed: dict[str, Any] = {}
        self._cores = 0.0

    def run(self) -> Sample:
        self._start = self._clock.now()
        send = self._send_closed if self._schedule is None else self._send_open
        senders = [lambda track=track: send(track) for track in self._tracks]
        self._clock.run([self._direct, *senders], self._stop)
        times = Times(np.concatenate([track.read() for track in self._tracks]), self._begin, self._end)
        failures = [failure for track in self._tracks for failure in track.failures]
        failed = Counter(name for due, name in failures if self._begin <= due < self._end)
        unsent = 0
        if self._schedule is not None:
            unsent = self._schedule.count_left(self._begin - self._start, self._end - self._start)
        return make_sample(
            times,
            failed=dict(failed),
            unsent=unsent,
            steady=self._steady,
            warmup_s=self._begin - self._start,
            generator_cores=self._cores,
            observed=self._observed,
        )

    def _send_closed(self, track: _Track) -> None:
        while not self._stop.is_set():
            now = self._clock.now()
            self._call(next(self._numbers), now, now, track)

    def _send_open(self, track: _Track) -> None:
        assert self._schedule is not None
        while not self._stop.is_set():
            number, offset = self._schedule.take()
            due = self._start + offset
            if (early := due - self._clock.now()) > 0:
                self._stop.wait(early)
            if self._stop.is_set() and due >= self._end:
                return
            self._call(number, due, self._clock.now(), track)

    def _call(self, number: int, due: float, sent: float, track: _Track) -> None:
        try:
            self._request(number)
        except CxrError as error:
            track.failures.append((due, type(error).__name__))
            return
        track.times.extend((due, sent, self._clock.now()))

    def _direct(self) -> None:
        """Warm up, measure, stop."""
        self._steady = self._warm_up()
        if self._observer:
            self._observer.begin()
        used = time.process_time()
        self._begin = self._clock.now()
        self._wait_measured()
        self._end = self._clock.now()
        self._cores = (time.process_time() - used) / max(self._end - self._begin, 1e-9)
        if self._observer:
            self._observed = self._observer.end()
        self._stop.set()

    def _warm_up(self) -> bool:
        windows: list[Window] = []
        counts = [0] * len(self._tracks)
        while not self._stop.is_set():
            windows.append(self._watch_window(counts))
            lasted = self._clock.now() - self._start
            steady = is_steady(windows, self._phases.tolerance, throughput=self._schedule is None)
            if lasted >= self._phases.warmup_s and (steady or lasted >= self._phases.warmup_max_s):
                return steady
        return False

    def _watch_window(self, counts: list[int]) -> Window:
        """Wait one window and return it. `counts` holds the earlier answers of each track and is updated."""
        began = self._clock.now()
        limit = max(self._phases.warmup_max_s, self._phases.window_s)
        while True:
            self._stop.wait(self._phases.window_s)
            new = [track.read(start) for track, start in zip(self._tracks, counts, strict=True)]
            answers = sum(map(len, new))
            lasted = self._clock.now() - began
            if answers >= _WINDOW_REQUESTS or lasted >= limit or self._stop.is_set():
                break
        counts[:] = [start + len(part) for start, part in zip(counts, new, strict=True)]
        times = np.concatenate(new)
        median = float(np.median(times[:, 2] - times[:, 0])) if answers else math.nan
        return Window(median, answers / max(lasted, 1e-9))

    def _wait_measured(self) -> None:
        count = self._phases.count
        before = self._count_done()
        if count is None:
            self._stop.wait(self._phases.duration_s)
            if self._phases.at_least == 0:
                return
            # Each sender of a closed loop waits for an earlier request when the measurement starts.
            count = self._phases.at_least + (len(self._tracks) if self._schedule is None else 0)
        while not self._stop.is_set() and self._count_done() - before < count:
            self._stop.wait(_POLL_S)

    def _count_done(self) -> int:
        return sum(len(track.times) // 3 + len(track.failures) for track in self._tracks)


@contextmanager
def _keep_collector_short() -> Iterator[None]:
    """Exclude all existing objects from garbage collection: with torch loaded, a collection takes 0.1 s.

    Do nothing if objects are excluded already.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
