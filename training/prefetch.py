"""Batches made ready in the background while the device computes, and what that gains."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_END: Final = object()


def prefetch(items: Iterable[T], prepare: Callable[[T], R], depth: int = 2) -> Generator[R, None, None]:
    """Yield `prepare(item)` of every item, in order, computed ahead in one background thread.

    The thread starts when the first result is asked for, and takes the items too. It ends with the last result,
    with an error, or when the generator is closed or forgotten; this waits for the one item in work.

    Grad mode, autocast and the current CUDA device belong to a thread: `prepare` does not find those of the caller.

    Args:
        items: Taken by the thread, up to depth + 1 ahead; nothing else may use what they draw from meanwhile.
        prepare: Called in the thread.
        depth: Results that may wait while the caller works with an earlier one; at least 1.

    Raises:
        ValueError: `depth` is below 1. Else whatever `items` or `prepare` raise, after all results before it.
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
    """Tells what holds up one epoch of training: making batches ready (loader), or computing with them (device).

        meter = Meter(torch.cuda.synchronize)
        for batch in meter.watch(prefetch(draws, meter.time(prepare))):
            train(batch)
            meter.count(len(batch))
        meter.finish()

    A GPU works behind the program, which hands it work and goes on. Only `finish` waits for it: a wait after each
    step would cost what it measures. So the wall time, and "both", hold all of the work; but while the loop waits
    for the loader the GPU may still be busy with what it was handed before. "waiting_share" is then the most it can
    have been starved, and "device" the most it can do. On a CPU both are exact.
    """

    def __init__(
        self,
        synchronize: Callable[[], None] | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begin a new epoch.

        Args:
            synchronize: Waits until the device has done all its work (`torch.cuda.synchronize`); None on a CPU.
            clock: Returns seconds, never less than before.
        """
        self.studies = 0
        self._synchronize, self._clock = synchronize, clock
        self._loader_s = self._waiting_s = 0.0
        self._loads: deque[float] = deque()  # seconds of each result that was not handed over yet
        self._started_s: float | None = None
        self._ended_s: float | None = None

    def time(self, prepare: Callable[[T], R]) -> Callable[[T], R]:
        """Return `prepare`, measured; its results must reach `watch` one for one and in order."""

        def measured(item: T) -> R:
            start_s = self._clock()
            result = prepare(item)
            self._loads.append(self._clock() - start_s)
            return result

        return measured

    def watch(self, batches: Iterable[R]) -> Iterator[R]:
        """Yield the batches; the time until each of them is there is waiting, all other time is the device's."""
        iterator = iter(batches)
        self._started_s = self._clock()
        while True:
            start_s = self._clock()
            batch = next(iterator, None)
            self._waiting_s += self._clock() - start_s
            if batch is None:
                return
            if self._loads:  # of this batch: those prepared ahead of it do not count yet
                self._loader_s += self._loads.popleft()
            yield batch

    def count(self, studies: int) -> None:
        """Add the studies of a batch."""
        self.studies += studies

    def finish(self) -> None:
        """End the epoch: wait for the device, and stop the clock."""
        if self._synchronize is not None:
            self._synchronize()
        self._ended_s = self._clock()

    def rates(self) -> dict[str, float]:
        """Return what was reached; before `finish`, until now and without the wait for the device.

        Returns:
            "loader": studies/s that the loader would make ready if nothing else were to be done. "device": studies/s
            that the loop would compute if batches were there at once. "both": studies/s as it was. "waiting_share":
            share of the time in which the loop waited for the loader, 0 to 1. Each is 0.0 where nothing was measured.
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
