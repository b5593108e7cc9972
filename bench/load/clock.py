"""An interface for time, waiting and threads, so that a test can run a load in simulated time."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol


class Stop(Protocol):
    """The stop signal of a load. A load waits only with its `wait`. `threading.Event` implements it."""

    def set(self) -> None:
        """End the load and wake all waiting threads."""

    def is_set(self) -> bool:
        """Whether the load should end."""

    def wait(self, timeout: float) -> bool:
        """Wait `timeout` seconds or until the load ends; return whether it ends."""


class Clock(Protocol):
    """The time and threads of a load."""

    def now(self) -> float:
        """Monotonic time in seconds."""

    def make_stop(self) -> Stop:
        """Return a new `Stop`."""

    def run(self, tasks: Sequence[Callable[[], None]], stop: Stop) -> None:
        """Run the tasks in parallel, each in its thread, and wait for all. The first error ends all and is raised."""


class SystemClock:
    """The clock of the machine."""

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return time.perf_counter()

    def make_stop(self) -> Stop:
        """Return an event."""
        return threading.Event()

    def run(self, tasks: Sequence[Callable[[], None]], stop: Stop) -> None:
        """Run the tasks. Ctrl-C ends them before it is raised."""
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
    """Return the task with error handling: an error is put into `errors`, and the load ends."""

    def run() -> None:
        try:
            task()
        except BaseException as error:  # a thread cannot raise it in the caller
            errors.append(error)
            stop.set()

    return run
