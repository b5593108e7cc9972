"""The rows of the table of cases: what is written for a case, and what is read from it. See `retrieval.schema`."""

import functools
import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from retrieval.cases import CaseRecord, CaseVectors
from retrieval.schema import COLUMN_COUNT, INSERT, ROW, compute_checksum

MAX_PARAMETERS: Final = 500  # SQLite before 3.32 allows 999 in one statement
_ROWS_AT_ONCE: Final = MAX_PARAMETERS // COLUMN_COUNT


def make_row(sequence: int, fingerprint: str, case: CaseRecord, blob: bytes) -> tuple[Any, ...]:
    """Return the values of `schema.ROW`, with the checksum."""
    labels = _write_labels(case.labels)
    facts = (case.id, case.study_id, fingerprint, labels, case.report, case.image_ref, case.view, case.kind)
    values = (sequence, *facts, blob)
    return (*values, compute_checksum(values))


def make_record(row: Sequence[Any]) -> CaseRecord:
    """Return the case of a row of `schema.SELECT`. TypeError, ValueError: its labels are not a list."""
    _, case_id, study_id, _, labels, report, image_ref, view, kind, *_ = row
    return CaseRecord(case_id, study_id, tuple(json.loads(labels)), report, image_ref, view, kind)


def read_record(row: Sequence[Any]) -> CaseRecord | None:
    """Return the case of a row of `schema.SELECT`; None if the row differs from what was written."""
    *values, checksum = row
    if compute_checksum(values) != checksum:
        return None
    try:
        return make_record(row)
    except (TypeError, ValueError):
        return None


def make_vectors(rows: Sequence[tuple[Any, ...]]) -> CaseVectors:
    """Return the data for the index of rows of `schema.SELECT`, at least one, whose checksums are right."""
    sequences, ids, study_ids, _, labels, _, _, views, kinds, blobs, _ = zip(*rows, strict=True)
    embeddings = np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(rows), -1).astype(np.float32)
    parsed = [_parse_labels(text) for text in labels]
    return CaseVectors(sequences, ids, study_ids, embeddings, parsed, views, kinds)


def join_cases(
    sequences: Sequence[int], cases: Sequence[CaseRecord], embeddings: NDArray[np.float32]
) -> CaseVectors:
    """Return the data for the index of cases that were just written."""
    return CaseVectors(
        sequences,
        [case.id for case in cases],
        [case.study_id for case in cases],
        embeddings,
        [case.labels for case in cases],
        [case.view for case in cases],
        [case.kind for case in cases],
    )


def insert_rows(
    writer: sqlite3.Connection,
    fingerprint: str,
    sequences: Sequence[int],
    cases: Sequence[CaseRecord],
    blobs: Sequence[bytes],
) -> None:
    """Insert N rows, many with each statement.

    Python lets other threads run at each step of SQLite and then waits for them, so a step for each row would be slow
    while other requests are read.
    """
    for start in range(0, len(cases), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        rows = zip(sequences[part], cases[part], blobs[part], strict=True)
        values = [value for row in rows for value in make_row(row[0], fingerprint, *row[1:])]
        count = len(values) // COLUMN_COUNT
        writer.execute(INSERT + ", ".join([ROW] * count), values)


def delete_rows(writer: sqlite3.Connection, ids: Iterable[str]) -> list[int]:
    """Delete cases; return their sequence numbers."""
    named, rows = sorted(set(ids)), list[int]()
    for start in range(0, len(named), MAX_PARAMETERS):
        part = named[start : start + MAX_PARAMETERS]
        statement = f"SELECT sequence FROM cases WHERE id IN ({','.join('?' * len(part))})"  # noqa: S608
        rows += [row[0] for row in writer.execute(statement, part)]
    for start in range(0, len(rows), MAX_PARAMETERS):
        numbers = rows[start : start + MAX_PARAMETERS]
        writer.execute(f"DELETE FROM cases WHERE sequence IN ({','.join('?' * len(numbers))})", numbers)  # noqa: S608
    return rows


def find_next_sequence(writer: sqlite3.Connection) -> int:
    """Return the number that SQLite would give the next row, greater than all earlier numbers."""
    (highest,) = writer.execute("SELECT COALESCE(MAX(sequence), 0) FROM cases").fetchone()
    (last,) = writer.execute("SELECT seq FROM sqlite_sequence WHERE name = 'cases'").fetchone() or (0,)
    return max(int(highest), int(last)) + 1


@functools.lru_cache(maxsize=4096)
def _write_labels(labels: tuple[str, ...]) -> str:
    return json.dumps(labels)


@functools.lru_cache(maxsize=4096)
def _parse_labels(text: str) -> tuple[str, ...]:
    """Return the labels of a row; none if they are not a list, which is reported when the case is read."""
    try:
        return tuple(map(str, json.loads(text)))
    except (TypeError, ValueError):
        return ()
