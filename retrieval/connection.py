"""Connections to the file of a case store, and transactions on them."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from retrieval.schema import decode_text

# Of a new store: three rows with 512 values, where a page of 4096 bytes holds one. An older store keeps its pages.
PAGE_BYTES: Final = 8192
BUSY_MS: Final = 5000  # that a statement waits for other connections


def connect(path: Path) -> sqlite3.Connection:
    """Open a connection whose owner begins and ends its transactions. sqlite3.Error: the file cannot be used."""
    connection = sqlite3.connect(path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
    # Damaged text marks its row as damaged instead of raising an error.
    connection.text_factory = decode_text
    connection.execute("PRAGMA synchronous = NORMAL")  # `retrieval.syncing` makes commits durable
    connection.execute("PRAGMA secure_delete = ON")  # deleted content is overwritten with zeros
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # `retrieval.wal` does it, and notices errors
    return connection


@contextlib.contextmanager
def begin(writer: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Begin a transaction; commit it in the end, or take it back after an error."""
    writer.execute("BEGIN IMMEDIATE")
    try:
        yield writer
        writer.execute("COMMIT")
    except BaseException:
        if writer.in_transaction:  # a full disk may have ended the transaction already
            writer.execute("ROLLBACK")
        raise
