"""Locks of the blocking and the asyncio client that are waited for until a deadline only."""

import asyncio
import threading
from collections.abc import Awaitable
from typing import Protocol


class Lock(Protocol):
    """A `BlockingLock` or an `AsyncLock`."""

    def acquire(self, timeout_s: float) -> bool | Awaitable[bool]:
        """Wait for the lock, at most so many seconds. Return whether the caller holds it now."""

    def release(self) -> None:
        """Let the next one in."""


class BlockingLock:
    """A lock between threads."""

    def __init__(self) -> None:
        """Start unlocked."""
        self._lock = threading.Lock()

    def acquire(self, timeout_s: float) -> bool:
        """See `Lock.acquire`."""
        return self._lock.acquire(timeout=timeout_s)

    def release(self) -> None:
        """See `Lock.release`."""
        self._lock.release()


class AsyncLock:
    """A lock between the tasks of an event loop."""

    def __init__(self) -> None:
        """Start unlocked."""
        self._lock = asyncio.Lock()

    async def acquire(self, timeout_s: float) -> bool:
        """See `Lock.acquire`. A cancelled task never holds the lock.

        `asyncio.wait_for` would lose a cancellation that comes together with the lock (before Python 3.12).
        """
        waiting = asyncio.ensure_future(self._lock.acquire())
        try:
            await asyncio.wait((waiting,), timeout=timeout_s)
        except asyncio.CancelledError:
            if not waiting.cancel():  # it holds the lock already
                self._lock.release()
            raise
        if not waiting.cancel():
            return waiting.result()
        await asyncio.wait((waiting,))  # leave no task behind
        return False

    def release(self) -> None:
        """See `Lock.release`."""
        self._lock.release()
