"""Which rows of a case store are as they were written."""

import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from retrieval.cases import CaseRecord
from retrieval.schema import compute_checksum

LENGTH_TOLERANCE: Final = 1e-3  # allowed difference of an embedding's length from 1


def select_intact(rows: Sequence[tuple[Any, ...]], fingerprint: str, dimension: int) -> list[tuple[Any, ...]]:
    """Return the rows of `schema.SELECT` that have their checksum and belong into a store of this kind."""
    # Only a row that was written like this has its checksum, so the embeddings can be read together.
    right = [
        row
        for row in rows
        if compute_checksum(row[:-1]) == row[-1]
        and row[3] == fingerprint
        and isinstance(row[-2], bytes)
        and len(row[-2]) == 4 * dimension
    ]
    if not right:
        return []
    embeddings = np.frombuffer(b"".join(row[-2] for row in right), dtype="<f4").reshape(len(right), -1)
    errors = np.abs(np.linalg.norm(embeddings, axis=1) - 1)
    return [row for row, error in zip(right, errors.tolist(), strict=True) if error <= LENGTH_TOLERANCE]


def is_plausible(values: Sequence[Any], fingerprint: str, dimension: int) -> bool:
    """Whether values of a row, the embedding last, belong into a store of this model and dimension."""
    blob = values[-1]
    if values[3] != fingerprint or not isinstance(blob, bytes) or len(blob) != 4 * dimension:
        return False
    length = np.linalg.norm(np.frombuffer(blob, dtype="<f4"))
    return bool(abs(length - 1) <= LENGTH_TOLERANCE)  # also false if a value is NaN


def compute_case_checksum(fingerprint: str, case: CaseRecord, embedding: NDArray[np.float32]) -> str:
    """Return 8 bytes of a SHA-256 over all that is stored of a case, as hexadecimal digits.

    It is the same in every store, because no number of a row is in it.
    """
    labels = json.dumps(case.labels)
    facts = (case.id, case.study_id, fingerprint, labels, case.report, case.image_ref, case.view, case.kind)
    return compute_checksum((*facts, np.ascontiguousarray(embedding, dtype="<f4").tobytes())).hex()
