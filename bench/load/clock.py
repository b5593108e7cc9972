"""Time, waiting and threads behind one seam, so that a test can run a load in simulated time."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol


class Stop(Protocol):
    """What ends a load; its `wait` is the only way in which a load waits. `threading.Event` is one."""

    def set(self) -> None:
        """End the load and wake all that wait."""

    def is_set(self) -> bool:
        """Whether the load is to end."""

    def wait(self, timeout: float) -> bool:
        """Wait `timeout` seconds or until the end; return whether it is the end."""


class Clock(Protocol):
    """Where a load runs."""

    def now(self) -> float:
        """Seconds since some moment; never goes back."""

    def make_stop(self) -> Stop:
        """Return a new `Stop`."""

    def run(self, tasks: Sequence[Callable[[], None]], stop: Stop) -> None:
        """Run the tasks at once, each in its thread, and wait for all; the first error ends all and is raised."""


class SystemClock:
    """The clock of the machine."""

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return time.perf_counter()

    def make_stop(self) -> Stop:
        """Return an event."""
        return threading.Event()

    def run(self, tasks: Sequence[Callable[[], None]], stop: Stop) -> None:
        """Run the tasks; Ctrl-C ends them before it is raised."""
        errors: list[BaseException] = []
        threads = [threading.Thread(target=guard(task, stop, errors), daemon=True) for task in tasks]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            stop.set()
        if errors:
            raise errors[0]


def guard(task: Callable[[], None], stop: Stop, errors: list[BaseException]) -> Callable[[], None]:
    """Return the task as one that puts its error into `errors`, and then ends the load."""

    def run() -> None:
        try:
            task()
        except BaseException as error:  # a thread has nobody else to tell
            errors.append(error)
            stop.set()

    return run
