"""The tables of a case store, the SQL statements for them, and their checksums."""

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable
from typing import Any, Final

SCHEMA_VERSION: Final = 3
APPLICATION_ID: Final = 0x63787273  # "cxrs", in the file's header (SQLite: PRAGMA application_id)
SCHEMA: Final = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE cases (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        study_id TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        labels TEXT NOT NULL,
        report TEXT NOT NULL,
        image_ref TEXT NOT NULL,
        embedding BLOB NOT NULL
    )""",
)
# The column that version 2 added, and the two of version 3. A new store is created in the same steps, so that all
# schemas are identical.
ADD_CHECKSUM: Final = "ALTER TABLE cases ADD COLUMN checksum BLOB NOT NULL DEFAULT x''"
ADD_FACTS: Final = (
    "ALTER TABLE cases ADD COLUMN view TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE cases ADD COLUMN kind TEXT NOT NULL DEFAULT ''",
)
STEPS: Final = (*SCHEMA, ADD_CHECKSUM, *ADD_FACTS)
_FIRST_COLUMNS: Final = "sequence, id, study_id, fingerprint, labels, report, image_ref"
_COLUMNS: Final = f"{_FIRST_COLUMNS}, view, kind, embedding, checksum"
COLUMN_COUNT: Final = 11
INSERT: Final = f"INSERT INTO cases ({_COLUMNS}) VALUES "  # noqa: S608 - no value in it
ROW: Final = f"({', '.join('?' * COLUMN_COUNT)})"
SELECT: Final = f"SELECT {_COLUMNS} FROM cases WHERE "  # noqa: S608
# The rows of version 2.
SELECT_SECOND: Final = f"SELECT {_FIRST_COLUMNS}, embedding, checksum FROM cases WHERE "  # noqa: S608
FILL_CHECKSUM: Final = f"UPDATE cases SET checksum = cxr_checksum({_FIRST_COLUMNS}, embedding)"  # noqa: S608
PAGE: Final = "sequence > ? ORDER BY sequence LIMIT ?"
COUNT_ROWS: Final = "SELECT COUNT(*), COALESCE(SUM(sequence), 0) FROM cases"
FIRST_ROW: Final = -(2**63)  # the smallest number a row can have, even after a flipped bit
_CHECKSUM_BYTES: Final = 8


def compute_checksum(values: Iterable[Any]) -> bytes:
    """Return 8 bytes of the SHA-256 over values, each with its type and length before it."""
    parts = []
    for value in values:
        if type(value) is str:
            data = value.encode("utf-8", "surrogateescape")
            parts.append(b"str %d %b" % (len(data), data))
        elif type(value) is bytes:
            parts += (b"bytes %d " % len(value), value)
        else:
            data = str(value).encode("utf-8", "surrogateescape")
            parts.append(f"{type(value).__name__} {len(data)} ".encode() + data)
    return hashlib.sha256(b"".join(parts)).digest()[:_CHECKSUM_BYTES]


def hash_meta(values: dict[str, str]) -> str:
    """Return the checksum of the rows of `meta`, as hexadecimal digits."""
    return compute_checksum(text for item in sorted(values.items()) for text in item).hex()


def decode_text(data: bytes) -> str:
    """Decode a text column, also one that is not UTF-8 after a flipped bit. Its checksum then fails."""
    return data.decode("utf-8", "surrogateescape")


def read_schema(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    """Return type, name, table and SQL statement of every entry of a database's schema, in order."""
    rows = connection.execute("SELECT type, name, tbl_name, COALESCE(sql, '') FROM sqlite_master").fetchall()
    return sorted((kind, name, table, " ".join(sql.split())) for kind, name, table, sql in rows)


def make_schema() -> list[tuple[str, ...]]:
    """Return the schema of a new store, to detect flipped bits: one in a column's type changes how ids compare."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for statement in STEPS:
            connection.execute(statement)
        return read_schema(connection)
