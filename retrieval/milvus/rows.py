"""The rows of a collection: its fields, what is written for a case, and what is read from it."""

import itertools
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from contract.labels import LABEL_INDEX
from retrieval.cases import CaseRecord
from retrieval.checks import compute_case_checksum
from retrieval.requests import MAX_ID_CHARS, MAX_IMAGE_REF_CHARS

FIELDS: Final = (
    "id",
    "study_id",
    "labels",
    "report",
    "image_ref",
    "view",
    "kind",
    "date",
    "sequence",
    "checksum",
    "embedding",
)
_UTF8: Final = 4  # bytes of a character, at most
_MAX_VARCHAR: Final = 65_535  # bytes of a string in Milvus
_NAME_BYTES: Final = 64  # of a label, a view, a kind, a date, a checksum
_LENGTHS: Final = {
    "study_id": _UTF8 * MAX_ID_CHARS,
    "report": _MAX_VARCHAR,
    "image_ref": _UTF8 * MAX_IMAGE_REF_CHARS,
    "view": _NAME_BYTES,
    "kind": _NAME_BYTES,
    "date": _NAME_BYTES,
    "checksum": _NAME_BYTES,
}
_WRITER_BITS: Final = 12


@dataclass(frozen=True)
class StoredRow:
    """A case as it was read, whose checksum is right.

    Attributes:
        record: The case.
        embedding: (D,) float32 of unit length.
        sequence: Number of this version of the case.
        checksum: Of the case, without the number.
    """

    record: CaseRecord = field(repr=False)
    embedding: NDArray[np.float32] = field(repr=False)
    sequence: int
    checksum: str


class Sequences:
    """Numbers for versions of cases, increasing in time. Two writers do not give the same number.

    A number is the time in microseconds, and 12 random bits of the writer. It fits into 63 bits until 2041.
    """

    def __init__(self) -> None:
        """Draw the bits of this writer."""
        self._writer = secrets.randbits(_WRITER_BITS)
        self._last = 0

    def take(self, count: int) -> list[int]:
        """Return the next numbers. Only one thread at a time may call it."""
        first = max(self._last + 1, time.time_ns() // 1000)
        self._last = first + count - 1
        return [(number << _WRITER_BITS) | self._writer for number in range(first, first + count)]


def make_schema(pymilvus: Any, dimension: int, description: str) -> Any:
    """Return the schema of a collection for embeddings of a dimension."""
    kinds = pymilvus.DataType
    schema = pymilvus.MilvusClient.create_schema(
        auto_id=False, enable_dynamic_field=False, description=description
    )
    schema.add_field("id", kinds.VARCHAR, is_primary=True, max_length=_UTF8 * MAX_ID_CHARS)
    schema.add_field(
        "labels",
        kinds.ARRAY,
        element_type=kinds.VARCHAR,
        max_capacity=len(LABEL_INDEX),
        max_length=_NAME_BYTES,
    )
    for name, length in _LENGTHS.items():
        schema.add_field(name, kinds.VARCHAR, max_length=length)
    schema.add_field("sequence", kinds.INT64)
    schema.add_field("embedding", kinds.FLOAT_VECTOR, dim=dimension)
    return schema


def require_storable(cases: Sequence[CaseRecord]) -> None:
    """Raise InputError if Milvus cannot hold the report of a case."""
    for number, case in enumerate(cases, 1):
        if len(case.report) * _UTF8 > _MAX_VARCHAR and (size := len(case.report.encode())) > _MAX_VARCHAR:
            raise InputError(
                f"Case {number}: its report has {size} bytes; a Milvus store holds at most {_MAX_VARCHAR}."
            )


def write_rows(
    fingerprint: str, cases: Sequence[CaseRecord], embeddings: NDArray[np.float32], sequences: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the rows of N cases with (N, D) float32 embeddings."""
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return [
        {
            "id": case.id,
            "study_id": case.study_id,
            "labels": list(case.labels),
            "report": case.report,
            "image_ref": case.image_ref,
            "view": case.view,
            "kind": case.kind,
            "date": date,
            "sequence": sequence,
            "checksum": compute_case_checksum(fingerprint, case, embedding),
            "embedding": embedding,
        }
        for case, embedding, sequence in zip(cases, embeddings, sequences, strict=True)
    ]


def read_row(fingerprint: str, row: dict[str, Any]) -> StoredRow | None:
    """Return the case of a row with all `FIELDS`; None if it differs from what was written."""
    record = CaseRecord(
        row["id"],
        row["study_id"],
        tuple(row["labels"]),
        row["report"],
        row["image_ref"],
        row["view"],
        row["kind"],
    )
    embedding = np.array(row["embedding"], dtype=np.float32)
    if compute_case_checksum(fingerprint, record, embedding) != row["checksum"]:
        return None
    return StoredRow(record, embedding, int(row["sequence"]), row["checksum"])


def cut_rows(rows: Sequence[dict[str, Any]], most_bytes: int) -> list[list[dict[str, Any]]]:
    """Return rows in parts of at most so many bytes each, at least one row in a part."""
    sizes = [4 * len(row["embedding"]) + _UTF8 * len(row["report"]) + 1024 for row in rows]
    parts = [end // most_bytes for end in itertools.accumulate(sizes)]
    return [
        [row for row, _ in group]
        for _, group in itertools.groupby(zip(rows, parts, strict=True), key=lambda pair: pair[1])
    ]
