"""What a case store says of itself in its table `meta`: version, model, dimension, number of rows, and a checksum."""

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from retrieval.damage import report_damage
from retrieval.schema import COUNT_ROWS, SCHEMA_VERSION, hash_meta


def read_meta(connection: sqlite3.Connection) -> dict[str, str]:
    """Return all names and values."""
    return dict(connection.execute("SELECT key, value FROM meta"))


def write_meta(
    writer: sqlite3.Connection, fingerprint: str, dimension: int, rows: tuple[int, int] | None
) -> None:
    """Write `meta` at the end of a transaction that changes rows.

    Args:
        writer: The connection.
        fingerprint: Fingerprint of the model.
        dimension: Number of values of an embedding.
        rows: Number of the rows and sum of their sequence numbers. None: they are counted.
    """
    count, total = rows or writer.execute(COUNT_ROWS).fetchone()
    values = {
        "schema_version": str(SCHEMA_VERSION),
        "fingerprint": fingerprint,
        "dimension": str(dimension),
        "rows": f"{count} {total}",
    }
    values["checksum"] = hash_meta(values)
    writer.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())


def add_rows(
    connection: sqlite3.Connection, added: Sequence[int], removed: Sequence[int]
) -> tuple[int, int] | None:
    """Return the stated number of rows and sum of their numbers after a change; None if nothing is stated."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'rows'").fetchone()
    if row is None:
        return None
    count, total = map(int, row[0].split())
    return count + len(added) - len(removed), total + sum(added) - sum(removed)


def has_checksum(meta: Mapping[str, str]) -> bool:
    """Whether the values are as they were written."""
    values = {name: value for name, value in meta.items() if name != "checksum"}
    return hash_meta(values) == meta.get("checksum", "")


def require_checksum(path: Path, meta: Mapping[str, str]) -> None:
    """Raise ArtifactError if the values of a file are not as they were written."""
    if not has_checksum(meta):
        raise report_damage(path, "its metadata differs from what was written")


def read_model(meta: Mapping[str, str]) -> tuple[str, int] | None:
    """Return the fingerprint of the model ("": none yet) and the dimension (0: none yet); None if they do not fit."""
    fingerprint, dimension = meta.get("fingerprint", ""), str(meta.get("dimension", "0"))
    if not dimension.isdigit() or bool(fingerprint) != (int(dimension) > 0):
        return None
    return fingerprint, int(dimension)


def states_rows(stated: str, count: int, total: int, *, damaged: bool) -> bool:
    """Whether the stated rows are those that were counted. A damaged row may have another number than it had."""
    return stated.split()[:1] == [str(count)] if damaged else stated == f"{count} {total}"
