"""When the requests of an open loop are due."""

import itertools
import threading
from collections.abc import Iterator
from typing import Final, Literal

import numpy as np

Arrivals = Literal["constant", "poisson"]
_BLOCK: Final = 1024


def draw_offsets(rate: float, arrivals: Arrivals, seed: int) -> Iterator[float]:
    """Yield the seconds from the start at which requests are due, without end.

    Args:
        rate: Requests per second.
        arrivals: Equal gaps, or the gaps of a Poisson process: exponential with mean 1 / rate.
        seed: Of the gaps.
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
    """Deals out the requests of an open loop, each to one sender."""

    def __init__(self, rate: float, arrivals: Arrivals, seed: int) -> None:
        """See `draw_offsets`."""
        self._numbered = enumerate(draw_offsets(rate, arrivals, seed))
        self._lock = threading.Lock()  # a generator may not be entered by two threads

    def take(self) -> tuple[int, float]:
        """Return number and due time of the next request, in seconds from the start."""
        with self._lock:
            return next(self._numbered)

    def count_left(self, begin: float, end: float) -> int:
        """Take all requests that are due before `end`; return how many of them are due from `begin` on."""
        due = itertools.takewhile(lambda offset: offset < end, (offset for _, offset in self._numbered))
        return sum(offset >= begin for offset in due)
