"""The due times of the requests of an open loop."""

import itertools
import threading
from collections.abc import Iterator
from typing import Final, Literal

import numpy as np

Arrivals = Literal["constant", "poisson"]
_BLOCK: Final = 1024


def draw_offsets(rate: float, arrivals: Arrivals, seed: int) -> Iterator[float]:
    """Yield the due times of requests, in seconds from the start, without end.

    Args:
        rate: Requests per second.
        arrivals: Equal gaps, or the gaps of a Poisson process: exponential with mean 1 / rate.
        seed: Seed for the gaps.
    """
    if arrivals == "constant":
        for index in itertools.count():
            yield index / rate
    generator, due = np.random.default_rng(seed), 0.0
    while True:
        for gap in generator.exponential(1 / rate, _BLOCK).tolist():
            due += gap
            yield due


class Schedule:
    """Assigns each request of an open loop to one sender."""

    def __init__(self, rate: float, arrivals: Arrivals, seed: int) -> None:
        """See `draw_offsets`."""
        self._numbered = enumerate(draw_offsets(rate, arrivals, seed))
        self._lock = threading.Lock()  # two threads must not use the generator at once

    def take(self) -> tuple[int, float]:
        """Return the number of the next request, and its due time in seconds from the start."""
        with self._lock:
            return next(self._numbered)

    def count_left(self, begin: float, end: float) -> int:
        """Take all requests that are due before `end`; return how many of them are due at or after `begin`."""
        due = itertools.takewhile(lambda offset: offset < end, (offset for _, offset in self._numbered))
        return sum(offset >= begin for offset in due)
