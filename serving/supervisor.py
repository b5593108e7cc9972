"""Restart servers, each one separately, after it ends or its watch reports a failure, with growing pauses.

A part that ends waits for its next start, starts, and is up again when its watch reports real answers. The pause
doubles with every consecutive failure, from half a second to 30 s. The restarts never stop, because the cause
(memory, a full disk, a port in use) may go away without an operator.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from contract.errors import CxrError
from serving.ports import require_free
from serving.process import ChildProcess

_FIRST_PAUSE_S: Final = 0.5
_LAST_PAUSE_S: Final = 30.0
_MOST_DOUBLINGS: Final = (
    6  # these reach the last pause; 2.0**1024, after hours of failures, is an OverflowError
)
_STEADY_S: Final = 5.0  # after so long without failure, the pause starts again at its minimum
_START_S: Final = 180.0
_STOP_S: Final = 1.0  # for the remaining processes of a server that ended or hangs
_TOLD_FAILURES: Final = 5

Say = Callable[[str], None]


class Watch(Protocol):
    """Watches a running server; `serving.watch` has two implementations."""

    verdict: str | None

    @property
    def ready(self) -> bool:
        """Whether the server answers real requests."""

    def close(self) -> None:
        """Stop watching."""


class Part:
    """One server that is kept running."""

    def __init__(
        self,
        name: str,
        child: ChildProcess,
        *,
        build: Callable[[], ChildProcess],
        watch: Callable[[ChildProcess, bool], Watch],
        ports: Sequence[int],
        clean: Callable[[], None],
    ) -> None:
        """Take a running server.

        Args:
            name: Name in messages.
            child: Its started process.
            build: Creates the process for the next start.
            watch: Starts watching a process. The flag says whether it has answered already.
            ports: Ports that the server needs.
            clean: Removes what a dead process left.
        """
        self.name, self.child = name, child
        self.watch: Watch | None = None
        self._build, self._start_watch = build, watch
        self._ports, self._clean = tuple(ports), clean
        self._up = False
        self._failures = 0
        self._since = time.monotonic()  # up or starting
        self._next_at = 0.0

    @property
    def ready(self) -> bool:
        """Whether the server is up and answers."""
        return self.watch is not None and self.watch.ready and self.child.running

    def begin(self) -> None:
        """Start watching the running process, which has answered already."""
        self.watch, self._up, self._since = self._start_watch(self.child, True), True, time.monotonic()

    def step(self, say: Say) -> None:
        """Check the server once and act."""
        now = time.monotonic()
        if self.watch is None:
            if now >= self._next_at:
                self._start(say, now)
            return
        trouble = self._find_trouble(now)
        if trouble is not None:
            self._end(trouble, say)
        elif self._up:
            self._failures = 0 if now - self._since > _STEADY_S else self._failures
        elif self.watch.ready:
            say(f"{self.name} answers again, after {now - self._since:.1f} s.")
            self._up, self._since = True, now

    def close(self) -> None:
        """Stop watching. The process keeps running."""
        watch, self.watch = self.watch, None
        if watch is not None:
            watch.close()

    def _find_trouble(self, now: float) -> str | None:
        if not self.child.running:
            return f"{self.name} {self.child.describe_end()}"
        if self.watch is not None and self.watch.verdict is not None:
            return f"{self.name} is being stopped: {self.watch.verdict.rstrip('.')}"
        if not self._up and now - self._since > _START_S:
            return f"{self.name} did not answer {_START_S:g} s after its start"
        return None

    def _end(self, trouble: str, say: Say) -> None:
        self.close()
        self.child.stop(_STOP_S)
        self._clean()
        self._up = False
        self._retry(trouble, say)

    def _retry(self, trouble: str, say: Say) -> None:
        pause_s = min(_FIRST_PAUSE_S * 2 ** min(self._failures, _MOST_DOUBLINGS), _LAST_PAUSE_S)
        self._failures += 1
        self._next_at = time.monotonic() + pause_s
        often = (
            f" ({self._failures} failures in a row; the restarts continue)"
            if self._failures >= _TOLD_FAILURES
            else ""
        )
        log = _show(self.child.log_path)
        say(f"{trouble} (log: {log}). It restarts in {pause_s:g} s{often}.")

    def _start(self, say: Say, now: float) -> None:
        try:
            for port in self._ports:
                require_free(port)
            self.child = self._build()
            self.child.start()
        except (CxrError, OSError) as error:
            self._retry(f"{self.name} cannot be started: {str(error).rstrip('.')}", say)
            return
        self._since = now
        self.watch = self._start_watch(self.child, False)


def _show(path: Path) -> str:
    from serving.runtime import show_path

    return show_path(path)
