"""Make committed writes durable: one fsync serves all writes that were committed before it began.

SQLite with `synchronous = NORMAL` writes a commit to the WAL without an fsync, and keeps the order of commits. So the
next write may begin while the fsync of this one runs. A caller is answered after its fsync.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from contract.errors import ArtifactError


class GroupSync:
    """Syncs the WAL of one store. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Open the WAL. OSError: it cannot be opened.

        It stays open: the kernel tells a descriptor only of errors that came after it was opened. SQLite keeps the same
        file as long as a connection is open, and only changes its length.
        """
        self._path = path
        self._file = os.open(path, os.O_RDONLY)
        self.observe: Callable[[float], object] = lambda _: None  # receives the seconds of each fsync
        self._condition = threading.Condition()
        self._written = self._synced = 0  # numbers of writes
        self._running = self._failed = False

    def close(self) -> None:
        """Close the WAL. Nothing may be synced any more."""
        os.close(self._file)

    @property
    def failed(self) -> bool:
        """Whether the disk failed, so that nothing is confirmed any more."""
        return self._failed

    def fail(self) -> None:
        """Confirm nothing any more, because the disk failed elsewhere."""
        with self._condition:
            self._failed = True
            self._condition.notify_all()

    def note(self) -> None:
        """Count a write that was committed just now."""
        with self._condition:
            self._written += 1

    def wait(self) -> None:
        """Return when all writes that were noted before are durable.

        Raises:
            ArtifactError: The disk failed, now or before. The kernel may report a lost page only once, and what lies
                behind it in the WAL would be lost with it. So nothing is confirmed any more.
        """
        with self._condition:
            number = self._written
            while self._synced < number and not self._failed:
                if self._running:
                    self._condition.wait()
                else:
                    self._sync()
            if self._failed:
                raise ArtifactError(
                    f"The disk did not confirm a write to {self._path}, which may be lost. Check the disk, restart the "
                    "sidecar, and send the cases again."
                )

    def _sync(self) -> None:
        """Sync while others may note and wait. The caller holds the lock."""
        self._running, reached, began = True, self._written, time.monotonic()
        self._condition.release()
        try:
            is_durable = _sync_file(self._file)
        finally:
            self._condition.acquire()
            self._running = False
            self._condition.notify_all()
        self.observe(time.monotonic() - began)
        if is_durable:
            self._synced = reached
        else:
            self._failed = True


def _sync_file(descriptor: int) -> bool:
    """Return whether a file is on the disk, with a name."""
    try:
        os.fsync(descriptor)
    except OSError:
        return False
    return os.fstat(descriptor).st_nlink > 0
