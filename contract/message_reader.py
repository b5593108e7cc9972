"""Bound how many calls of a gRPC server wait for their message, and how long.

A server gives each call a thread, which waits until the message has come. Without bounds, a caller that opens calls and
sends nothing would hold all threads, and nobody would be answered.
"""

import threading
import time
from collections.abc import Iterator
from typing import Any, Final

MESSAGE_S: Final = 60.0  # for a whole message: a file of 256 MiB over a network of 5 MB/s
_LOOK_S: Final = 1.0


class MessageReader:
    """Reads the one message of each call. Thread-safe."""

    def __init__(self, most: int, seconds: float = MESSAGE_S) -> None:
        """Set the bounds.

        Args:
            most: Largest number of calls that wait for their message. It must be below the number of threads.
            seconds: Longest wait. A call whose message has not come by then is cancelled.
        """
        self._most, self._seconds = most, seconds
        self._lock = threading.Lock()
        self._waiting: dict[
            int, tuple[float, Any]
        ] = {}  # number of the call -> deadline, context; oldest first
        self._count = 0
        self._watch: threading.Thread | None = None

    def read(self, messages: Iterator[Any], context: Any) -> Any:
        """Return the message of a call, or end the call with a status.

        Args:
            messages: Messages of the call, as a stream_unary handler gets them.
            context: The `grpc.ServicerContext` of the call.
        """
        import grpc

        number = self._enter(context)
        if number is None:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many calls are sending their messages.")
        try:
            return next(messages)
        except StopIteration:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The call has no message.")
            raise
        finally:
            with self._lock:
                self._waiting.pop(number or 0, None)

    def _enter(self, context: Any) -> int | None:
        """Count a call that waits, and return its number; None if there are too many."""
        with self._lock:
            if len(self._waiting) >= self._most:
                return None
            self._count += 1
            self._waiting[self._count] = time.monotonic() + self._seconds, context
            if self._watch is None:
                self._watch = threading.Thread(target=self._cancel_late, name="messages", daemon=True)
                self._watch.start()
            return self._count

    def _cancel_late(self) -> None:
        """Cancel calls whose message is late, and end when no call waits."""
        while True:
            time.sleep(_LOOK_S)
            with self._lock:
                if not self._waiting:
                    self._watch = None
                    return
                now = time.monotonic()
                late = [context for deadline, context in self._waiting.values() if deadline < now]
            for context in late:
                context.cancel()
