"""The limits of the relay: how many inferences run in Triton, and how many wait."""

import threading
from collections import deque
from typing import Any, Final

MOST_RUNNING: Final = 64  # inferences in Triton at once, if it has no queue policy: two full batches
QUEUED_BY_TRITON: Final = 1280  # with a queue policy (`throughput`): the capacity of its queues
MOST_WAITING: Final = 256
MOST_BYTES: Final = 2**30  # of running and waiting inferences


class Turns:
    """Limits the running and waiting inferences, in the order of arrival. Thread-safe."""

    def __init__(
        self, *, running: int = MOST_RUNNING, waiting: int = MOST_WAITING, held_bytes: int = MOST_BYTES
    ) -> None:
        """Set the limits."""
        self._lock = threading.Lock()
        self._line: deque[threading.Event] = deque()  # one for each call that waits
        self._most_running, self._most, self._most_bytes = running, running + waiting, held_bytes
        self.calls = 0
        self.running = 0
        self.held_bytes = 0

    @property
    def waiting(self) -> int:
        """Number of calls that wait for a turn."""
        return len(self._line)

    def admit(self, size: int) -> bool:
        """Return whether there is room for a call, and count it. An admitted call must `leave`."""
        with self._lock:
            if self.calls >= self._most or (self.calls and self.held_bytes + size > self._most_bytes):
                return False
            self.calls += 1
            self.held_bytes += size
            return True

    def leave(self, size: int) -> None:
        """Stop counting a call."""
        with self._lock:
            self.calls -= 1
            self.held_bytes -= size

    def begin(self, context: Any) -> bool:
        """Wait for a turn, which must `end`. Return False, without a turn, if the client gave up.

        Args:
            context: The `grpc.ServicerContext` of the call.
        """
        waiter = self._join_line()
        if waiter is not None:
            if not context.add_callback(waiter.set):  # the client gave up before
                waiter.set()
            waiter.wait()
            if self._left_line(waiter):
                return False
        if context.is_active():
            return True
        self.end()
        return False

    def end(self) -> None:
        """Pass the turn to the next call."""
        with self._lock:
            if self._line:
                self._line.popleft().set()
            else:
                self.running -= 1

    def _join_line(self) -> threading.Event | None:
        """Take a free turn and return None, or join the line and return what wakes the call."""
        with self._lock:
            if self.running < self._most_running:
                self.running += 1
                return None
            waiter = threading.Event()
            self._line.append(waiter)
            return waiter

    def _left_line(self, waiter: threading.Event) -> bool:
        """Leave the line. Return False if a call that ended had passed its turn on already."""
        with self._lock:
            if waiter in self._line:
                self._line.remove(waiter)
                return True
            return False
