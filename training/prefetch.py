"""Prepare batches in the background while the device computes, and measure both speeds."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_END: Final = object()


def prefetch(items: Iterable[T], prepare: Callable[[T], R], depth: int = 2) -> Generator[R, None, None]:
    """Yield `prepare(item)` for every item, in order, computed ahead in one background thread.

    The thread starts with the first request and also iterates over `items`. It ends after the last result, after an
    error, or when the generator is closed or deleted. Closing waits for the item in progress.

    Grad mode, autocast and the current CUDA device are per thread, so `prepare` does not have those of the caller.

    Args:
        items: Read in the thread, up to depth + 1 ahead. The caller must not use their source (a random generator, for
            example) meanwhile.
        prepare: Called in the thread.
        depth: Largest number of waiting results, at least 1.

    Raises:
        ValueError: `depth` is below 1. Errors of `items` and `prepare` are raised after all earlier results.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, not {depth}.")
    return _prefetch(iter(items), prepare, depth)


def _prefetch(items: Iterator[T], prepare: Callable[[T], R], depth: int) -> Generator[R, None, None]:
    def advance() -> Any:
        try:
            item = next(items)
        except StopIteration:
            return _END
        return prepare(item)

    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        ahead: deque[Future[Any]] = deque(pool.submit(advance) for _ in range(depth))
        while True:
            ahead.append(pool.submit(advance))
            result = ahead.popleft().result()
            if result is _END:
                return
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Meter:
    """Measures what limits one epoch of training: preparing batches (loader) or computing with them (device).

        meter = Meter(torch.cuda.synchronize)
        for batch in meter.watch(prefetch(draws, meter.time(prepare))):
            train(batch)
            meter.count(len(batch))
        meter.finish()

    A GPU works asynchronously. Only `finish` waits for it, because waiting after each step would cost time itself. So
    the wall time and "both" include all work. But while the loop waits for the loader, the GPU may still be busy with
    earlier steps. So on a GPU "waiting_share" and "device" are upper bounds. On a CPU both are exact.
    """

    def __init__(
        self,
        synchronize: Callable[[], None] | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start measuring an epoch.

        Args:
            synchronize: Waits until the device has done all its work (`torch.cuda.synchronize`); None on a CPU.
            clock: Returns seconds, never less than before.
        """
        self.studies = 0
        self._synchronize, self._clock = synchronize, clock
        self._loader_s = self._waiting_s = 0.0
        self._loads: deque[float] = deque()  # seconds of each result that `watch` has not yielded yet
        self._started_s: float | None = None
        self._ended_s: float | None = None

    def time(self, prepare: Callable[[T], R]) -> Callable[[T], R]:
        """Return `prepare` with time measurement. Its results must reach `watch` one by one and in order."""

        def measured(item: T) -> R:
            start_s = self._clock()
            result = prepare(item)
            self._loads.append(self._clock() - start_s)
            return result

        return measured

    def watch(self, batches: Iterable[R]) -> Iterator[R]:
        """Yield the batches. The time until each one is ready counts as waiting, all other time as the device's."""
        iterator = iter(batches)
        self._started_s = self._clock()
        while True:
            start_s = self._clock()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._waiting_s += self._clock() - start_s
            if self._loads:  # the time of this batch; batches prepared ahead do not count yet
                self._loader_s += self._loads.popleft()
            yield batch

    def count(self, studies: int) -> None:
        """Add the studies of a batch."""
        self.studies += studies

    def finish(self) -> None:
        """End the measurement: wait for the device and stop the clock."""
        if self._synchronize is not None:
            self._synchronize()
        self._ended_s = self._clock()

    def rates(self) -> dict[str, float]:
        """Return the rates. Before `finish` they cover the time until now, without waiting for the device.

        Returns:
            "loader": studies/s of the loader alone. "device": studies/s of the loop if batches were always ready.
            "both": actual studies/s. "waiting_share": share of the time in which the loop waited for the loader, 0 to
            1. Each is 0.0 if nothing was measured.
        """
        ended_s = self._clock() if self._ended_s is None else self._ended_s
        wall_s = 0.0 if self._started_s is None else ended_s - self._started_s
        return {
            "loader": _divide(self.studies, self._loader_s),
            "device": _divide(self.studies, wall_s - self._waiting_s),
            "both": _divide(self.studies, wall_s),
            "waiting_share": _divide(self._waiting_s, wall_s),
        }


def _divide(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
