"""The rows of the table of cases: what is written for a case, and what is read from it. See `retrieval.schema`."""

import functools
import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from retrieval.cases import CaseRecord, CaseVectors
from retrieval.schema import compute_checksum

MAX_PARAMETERS: Final = 500  # SQLite before 3.32 allows 999 in one statement


def make_row(sequence: int, fingerprint: str, case: CaseRecord, blob: bytes) -> tuple[Any, ...]:
    """Return the values of a row for `schema.INSERT`, with the checksum."""
    labels = json.dumps(case.labels)
    facts = (case.id, case.study_id, fingerprint, labels, case.report, case.image_ref, case.view, case.kind)
    values = (sequence, *facts, blob)
    return (*values, compute_checksum(values))


def make_record(row: Sequence[Any]) -> CaseRecord:
    """Return the case of a row of `schema.SELECT`. TypeError, ValueError: its labels are not a list."""
    _, case_id, study_id, _, labels, report, image_ref, view, kind, *_ = row
    return CaseRecord(case_id, study_id, tuple(json.loads(labels)), report, image_ref, view, kind)


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


def delete_rows(writer: sqlite3.Connection, ids: Iterable[str]) -> list[int]:
    """Delete cases; return their sequence numbers."""
    named, rows = sorted(set(ids)), list[int]()
    for start in range(0, len(named), MAX_PARAMETERS):
        part = named[start : start + MAX_PARAMETERS]
        statement = f"SELECT sequence FROM cases WHERE id IN ({','.join('?' * len(part))})"  # noqa: S608
        rows += [row[0] for row in writer.execute(statement, part)]
    writer.executemany("DELETE FROM cases WHERE sequence = ?", [(row,) for row in rows])
    return rows


def find_next_sequence(writer: sqlite3.Connection) -> int:
    """Return the number that SQLite would give the next row, greater than all earlier numbers."""
    (highest,) = writer.execute("SELECT COALESCE(MAX(sequence), 0) FROM cases").fetchone()
    (last,) = writer.execute("SELECT seq FROM sqlite_sequence WHERE name = 'cases'").fetchone() or (0,)
    return max(int(highest), int(last)) + 1


@functools.lru_cache(maxsize=4096)
def _parse_labels(text: str) -> tuple[str, ...]:
    """Return the labels of a row; none if they are not a list, which is reported when the case is read."""
    try:
        return tuple(map(str, json.loads(text)))
    except (TypeError, ValueError):
        return ()
