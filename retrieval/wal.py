"""Write the WAL of a store into its file, and notice when the disk fails then.

SQLite would do this by itself within a commit, and would hide an error of the disk. What was confirmed before could be
lost without a word.
"""

import logging
import sqlite3
import time
from pathlib import Path
from typing import Final

from retrieval.connection import BUSY_MS
from retrieval.syncing import GroupSync

LONGEST_BYTES: Final = 32 * 2**20  # then the WAL is written into the file
_WAIT_MS: Final = 200  # for other connections
_PAUSE_S: Final = 1.0  # between tries while another connection reads the WAL
# Nothing was lost: another connection reads, or the file cannot grow. The WAL keeps what was confirmed.
# Python 3.10 tells no code of the error; these are the texts of SQLITE_BUSY, SQLITE_LOCKED and SQLITE_FULL.
_HARMLESS: Final = ("database is locked", "database table is locked", "database or disk is full")
_logger = logging.getLogger(__name__)


class WalKeeper:
    """Keeps the WAL of one store short. The caller holds the lock of writes."""

    def __init__(self, writer: sqlite3.Connection, path: Path, sync: GroupSync) -> None:
        """Take the connection that writes, the path of the WAL, and what must know that the disk failed."""
        self._writer, self._path, self._sync = writer, path, sync
        self._holds_deleted = False
        self._tried_bytes = 0  # length of the WAL after the last try
        self._next_try = 0.0

    @property
    def holds_deleted(self) -> bool:
        """Whether the WAL may still hold a deleted report."""
        return self._holds_deleted

    def shorten(self) -> None:
        """Empty the WAL if it is long, or if it could not be emptied after a deletion."""
        is_long = self._measure() - self._tried_bytes > LONGEST_BYTES
        if is_long or (self._holds_deleted and time.monotonic() >= self._next_try):
            self._empty()

    def empty(self) -> None:
        """Empty the WAL, which holds deleted reports. While a backup reads it, this is left to `shorten`."""
        self._holds_deleted = True
        self._empty()

    def _empty(self) -> None:
        if self._sync.failed:  # what the kernel shows of the WAL may not be what was written
            return
        try:
            self._writer.execute(f"PRAGMA busy_timeout = {_WAIT_MS}")
            is_busy, *_ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            is_busy = True
            if str(error) not in _HARMLESS:
                _logger.warning("the disk failed while the WAL was written into the store (%s)", error)
                self._sync.fail()
        finally:
            self._writer.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        self._tried_bytes = self._measure() if is_busy else 0
        self._holds_deleted = self._holds_deleted and bool(is_busy)
        self._next_try = time.monotonic() + _PAUSE_S

    def _measure(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0
