"""Copy a database while it is written to, with SQLite's online backup."""

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from contract.errors import ArtifactError, CancelledError

_PATTERN: Final = ".copy-*.partial"
_PAGES_AT_ONCE: Final = 1024


def copy_database(source: sqlite3.Connection, directory: Path, is_wanted: Callable[[], bool]) -> BinaryIO:
    """Return a file with the content of the database at one moment.

    The file has no name, so nothing is left of it, however the process ends. While it is copied, it has one.

    Args:
        source: A connection for this copy alone.
        directory: Where the file lies.
        is_wanted: Whether to go on. It is asked again and again.

    Raises:
        ArtifactError: The file cannot be written.
        sqlite3.Error: The database cannot be read, or the copy cannot be written.
        CancelledError: The copy is not wanted any more.
    """
    path = directory / _PATTERN.replace("*", secrets.token_hex(6))

    def ask(_status: int, _remaining: int, _total: int) -> None:
        if not is_wanted():
            raise CancelledError("The copy was cancelled.")

    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as target:
            target.execute("PRAGMA journal_mode = OFF")
            target.execute("PRAGMA synchronous = OFF")  # whoever keeps the copy makes it durable
            # This transaction holds one moment of the database, whatever other connections write meanwhile.
            source.execute("BEGIN")
            source.execute("SELECT COUNT(*) FROM sqlite_master")
            source.backup(target, pages=_PAGES_AT_ONCE, progress=ask, sleep=0)
        return open(path, "rb")
    except OSError as error:
        raise ArtifactError(f"{directory} takes no copy of the case store: {error.strerror}.") from error
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def remove_copies(directory: Path) -> None:
    """Remove what a copy left that was interrupted by the end of its process."""
    for path in directory.glob(_PATTERN):
        path.unlink(missing_ok=True)
