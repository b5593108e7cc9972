"""Give the rows of an older case store what later versions added."""

import sqlite3
from typing import Final

from retrieval.checks import is_plausible
from retrieval.schema import (
    ADD_CHECKSUM,
    ADD_FACTS,
    FILL_CHECKSUM,
    FIRST_ROW,
    PAGE,
    SELECT_SECOND,
    compute_checksum,
)

_PAGE_ROWS: Final = 1024


def migrate(writer: sqlite3.Connection, version: str, fingerprint: str, dimension: int) -> bool:
    """Bring the table of cases from version 1 or 2 to the present one. The caller has begun a transaction.

    Args:
        writer: The connection.
        version: "1" or "2".
        fingerprint: Fingerprint of the model of the cases.
        dimension: Number of values of their embeddings.

    Returns:
        False if no row of version 1 is plausible although there are some: `meta` names another model.
    """
    if version == "1" and not _add_checksums(writer, fingerprint, dimension):
        return False
    for statement in ADD_FACTS:
        writer.execute(statement)
    _renew_checksums(writer)
    return True


def _add_checksums(writer: sqlite3.Connection, fingerprint: str, dimension: int) -> bool:
    """Give each row a checksum; an invalid, empty one if the row is obviously damaged."""
    writer.create_function(
        "cxr_checksum",
        8,
        lambda *values: compute_checksum(values) if is_plausible(values, fingerprint, dimension) else b"",
        deterministic=True,
    )
    writer.execute(ADD_CHECKSUM)
    writer.execute(FILL_CHECKSUM)
    rows, intact = writer.execute("SELECT COUNT(*), COUNT(NULLIF(checksum, x'')) FROM cases").fetchone()
    return not rows or bool(intact)


def _renew_checksums(writer: sqlite3.Connection) -> None:
    """Write the checksums over the columns of version 3. A damaged row keeps one that does not fit it."""
    last = FIRST_ROW
    while rows := writer.execute(SELECT_SECOND + PAGE, (last, _PAGE_ROWS)).fetchall():
        renewed = [
            (compute_checksum((*values[:7], "", "", values[7])), values[0])
            for *values, checksum in rows
            if compute_checksum(values) == checksum
        ]
        writer.executemany("UPDATE cases SET checksum = ? WHERE sequence = ?", renewed)
        last = rows[-1][0]
