"""The sidecar, which kills itself at a point: CRASH_AT="after COMMIT:7" is just after its seventh commit.

The points are before and after each statement that changes the store, each fsync of the WAL, and each change of the
index.
Without CRASH_AT the sidecar runs as it is.
"""

import os
import signal
import sqlite3
import sys
import threading
from typing import Any

from retrieval.server import main
from retrieval.worker import IndexThread

POINTS = [
    f"{side} {what}"
    for what in ("BEGIN", "INSERT", "DELETE", "COMMIT", "wal_checkpoint", "index", "fsync")
    for side in ("before", "after")
]


class Fuse:
    """Kills this process when a point is passed for the given time."""

    def __init__(self, text: str) -> None:
        self._point, _, count = text.partition(":")
        self._left = int(count or 0)
        self._lock = threading.Lock()

    def burn(self, point: str) -> None:
        with self._lock:
            self._left -= point == self._point
            if point == self._point and not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


FUSE = Fuse(os.environ.get("CRASH_AT", ""))


class CrashingConnection(sqlite3.Connection):
    """A connection whose statements are points."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return self._run(sql, super().execute, *values)

    def executemany(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return self._run(sql, super().executemany, *values)

    def _run(self, sql: str, method: Any, *values: Any) -> sqlite3.Cursor:
        word = "wal_checkpoint" if "wal_checkpoint(" in sql else sql.split(maxsplit=1)[0]
        FUSE.burn(f"before {word}")
        cursor = method(sql, *values)
        FUSE.burn(f"after {word}")
        return cursor


def connect(*arguments: Any, open_connection: Any = sqlite3.connect, **options: Any) -> sqlite3.Connection:
    """Open a connection of the class above."""
    return open_connection(*arguments, **{"factory": CrashingConnection, **options})


def submit(index: IndexThread, *, submit_change: Any = IndexThread.submit, **change: Any) -> Any:
    """Give a change to the index."""
    FUSE.burn("before index")
    future = submit_change(index, **change)
    FUSE.burn("after index")
    return future


def fsync(descriptor: int, *, sync: Any = os.fsync) -> None:
    """Make a file durable."""
    FUSE.burn("before fsync")
    sync(descriptor)
    FUSE.burn("after fsync")


if __name__ == "__main__":
    os.fsync = fsync
    sqlite3.connect = connect
    IndexThread.submit = submit
    sys.exit(main())
