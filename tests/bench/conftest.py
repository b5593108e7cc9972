"""Simulated time: loads of minutes run in milliseconds and give the same figures every time."""

import gc
import heapq
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest

from bench.load.clock import guard


class SimulatedStop:
    """A `Stop` whose waits pass in simulated time."""

    def __init__(self, clock: "SimulatedClock") -> None:
        self._clock = clock
        self._set = False

    def set(self) -> None:
        self._set = True
        self._clock.wake_waiting()

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float) -> bool:
        if not self._set:
            self._clock.sleep(timeout, waits_for_stop=True)
        return self._set


@dataclass(order=True)
class Sleeper:
    """A thread that sleeps until `wakes`; equal times in the order of going to sleep."""

    wakes: float
    order: int
    waits_for_stop: bool = field(compare=False)
    awake: threading.Event = field(compare=False, default_factory=threading.Event)


class SimulatedClock:
    """Time goes on only when all threads of a load sleep, and then straight to the first that wakes."""

    def __init__(self) -> None:
        self._now = 100.0
        self._awake = 0
        self._lock = threading.Lock()
        self._sleepers: list[Sleeper] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self._now

    def make_stop(self) -> SimulatedStop:
        return SimulatedStop(self)

    def sleep(self, seconds: float, *, waits_for_stop: bool = False) -> None:
        with self._lock:
            mine = Sleeper(self._now + max(0.0, seconds), next(self._order), waits_for_stop)
            heapq.heappush(self._sleepers, mine)
            self._awake -= 1
            self._advance()
        mine.awake.wait()

    def wake_waiting(self) -> None:
        """Let all that wait for the end wake now; what a server works on goes on."""
        with self._lock:
            for sleeper in self._sleepers:
                if sleeper.waits_for_stop:
                    sleeper.wakes = min(sleeper.wakes, self._now)
            heapq.heapify(self._sleepers)

    def _advance(self) -> None:
        if self._awake == 0 and self._sleepers:
            first = heapq.heappop(self._sleepers)
            self._now = max(self._now, first.wakes)
            self._awake += 1
            first.awake.set()

    def run(self, tasks: Sequence[Callable[[], None]], stop: SimulatedStop) -> None:
        errors: list[BaseException] = []
        self._awake = len(tasks)

        def leave(task: Callable[[], None]) -> None:
            guard(task, stop, errors)()
            with self._lock:
                self._awake -= 1
                self._advance()

        threads = [threading.Thread(target=leave, args=[task], daemon=True) for task in tasks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "a simulated load hangs"
        if errors:
            raise errors[0]


class SimulatedServer:
    """Answers in `service_s`, `parallel` requests at once, the rest in a queue; from `stall_at` on it stalls once."""

    def __init__(
        self,
        clock: SimulatedClock,
        service_s: float,
        parallel: int = 1,
        stall: tuple[float, float] | None = None,
    ) -> None:
        self._clock, self._service_s = clock, service_s
        self._free = [clock.now()] * parallel
        self._lock = threading.Lock()
        self._stall = None if stall is None else (clock.now() + stall[0], stall[1])
        self.calls = 0

    def __call__(self, _number: int) -> None:
        with self._lock:
            self.calls += 1
            self._free.sort()
            begin = max(self._clock.now(), self._free[0])
            if self._stall and begin >= self._stall[0]:
                begin, self._stall = begin + self._stall[1], None
            self._free[0] = done = begin + self._service_s
        self._clock.sleep(done - self._clock.now())


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> Iterator[None]:
    """Python's collector looks once at what the whole run has loaded, not at each load."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def _simulate() -> tuple[SimulatedClock, Callable[..., SimulatedServer]]:
    clock = SimulatedClock()
    return clock, partial(SimulatedServer, clock)


@pytest.fixture(scope="session")
def simulate() -> Callable[[], tuple[SimulatedClock, Callable[..., SimulatedServer]]]:
    """A function that returns a new clock and what makes servers on it."""
    return _simulate


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture
def make_server(clock: SimulatedClock) -> Callable[..., SimulatedServer]:
    return partial(SimulatedServer, clock)
