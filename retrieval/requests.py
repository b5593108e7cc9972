"""Turn the messages of retrieval.proto into checked values, or raise InputError.

An error names a case by its position in the request ("case 3"), never by its id.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from contract.labels import LABEL_INDEX
from contract.report.text import MAX_REPORT_CHARS
from retrieval.index import Query
from retrieval.store import LENGTH_TOLERANCE, CaseRecord

MAX_CASES: Final = 4096  # to add or delete per request
MAX_QUERIES: Final = 256
MAX_K: Final = 1000
MAX_HITS: Final = 20_000  # queries * k
MAX_EXCLUDED: Final = 1000
MAX_ID_CHARS: Final = 256
MAX_IMAGE_REF_CHARS: Final = 2048
MAX_DIMENSION: Final = 8192


def parse_fingerprint(text: str) -> str:
    """Return a model fingerprint. Raise InputError unless it has 64 lower-case hexadecimal digits."""
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise InputError("A model fingerprint must have 64 hexadecimal digits (0 to 9, a to f).")
    return text


def parse_cases(messages: Sequence[Any], dimension: int) -> tuple[list[CaseRecord], NDArray[np.float32]]:
    """Check cases before they are stored.

    Args:
        messages: N `Case` messages.
        dimension: D of the stored cases; 0 if there are none yet.

    Returns:
        N records, and (N, D) float32 embeddings of exactly unit length.

    Raises:
        InputError: A case cannot be stored. The message says which one and why.
    """
    _require_count(messages, "cases", MAX_CASES)
    records = [_parse_record(message, f"Case {number}") for number, message in enumerate(messages, 1)]
    if len({record.id for record in records}) < len(records):
        raise InputError("Two cases of the request have the same id.")
    dimension = dimension or len(messages[0].embedding)
    rows = [
        _parse_embedding(message.embedding, dimension, f"Case {number}")
        for number, message in enumerate(messages, 1)
    ]
    return records, np.stack(rows)


def parse_queries(request: Any, dimension: int) -> list[Query]:
    """Check a `SearchRequest`, also against D of the stored cases (0 if there are none). May raise InputError."""
    _require_count(request.queries, "queries", MAX_QUERIES)
    if not 1 <= request.k <= MAX_K:
        raise InputError(f"k is {request.k}; it must be 1 to {MAX_K}.")
    if len(request.queries) * request.k > MAX_HITS:
        raise InputError(
            f"The request asks for more than {MAX_HITS} hits. Send fewer queries or a smaller k."
        )
    if len(request.exclude_study_ids) > MAX_EXCLUDED:
        raise InputError(f"The request excludes more than {MAX_EXCLUDED} studies.")
    excluded = frozenset(_parse_ids(request.exclude_study_ids, "An excluded study id"))
    dimension = dimension or len(request.queries[0].embedding)
    return [
        Query(_parse_embedding(query.embedding, dimension, f"Query {number}"), request.k, excluded)
        for number, query in enumerate(request.queries, 1)
    ]


def parse_ids(ids: Sequence[str]) -> list[str]:
    """Check the ids of cases to delete. May raise InputError."""
    _require_count(ids, "ids", MAX_CASES)
    return list(_parse_ids(ids, "A case id"))


def parse_id(case_id: str) -> str:
    """Check the id of a case. May raise InputError."""
    return _parse_text(case_id, "The case id", MAX_ID_CHARS, required=True)


def require_dimension(dimension: int, stored: int) -> None:
    """Raise InputError unless new embeddings have the same number of values as the stored ones (0: none stored)."""
    if stored and dimension != stored:
        raise InputError(f"The embeddings have {dimension} values instead of {stored}.")


def _parse_record(message: Any, name: str) -> CaseRecord:
    labels = tuple(message.labels)
    if any(label not in LABEL_INDEX for label in labels) or len(set(labels)) < len(labels):
        raise InputError(f"{name}: its labels must be different keys of the {len(LABEL_INDEX)} categories.")
    return CaseRecord(
        id=_parse_text(message.id, f"{name}: its id", MAX_ID_CHARS, required=True),
        study_id=_parse_text(message.study_id, f"{name}: its study id", MAX_ID_CHARS, required=True),
        labels=labels,
        report=_parse_text(message.report, f"{name}: its report", MAX_REPORT_CHARS),
        image_ref=_parse_text(message.image_ref, f"{name}: its image reference", MAX_IMAGE_REF_CHARS),
    )


def _parse_embedding(values: Sequence[float], dimension: int, name: str) -> NDArray[np.float32]:
    """Return (D,) float32, scaled to length 1 exactly, so that inner products are cosines."""
    if not 1 <= len(values) <= MAX_DIMENSION:
        raise InputError(f"{name}: its embedding has {len(values)} values; 1 to {MAX_DIMENSION} are allowed.")
    if len(values) != dimension:
        raise InputError(f"{name}: its embedding has {len(values)} values instead of {dimension}.")
    embedding = np.array(values, dtype=np.float64)
    length = float(np.linalg.norm(embedding))
    if not np.isfinite(length):
        raise InputError(f"{name}: its embedding holds values that are not finite numbers.")
    if abs(length - 1) > LENGTH_TOLERANCE:
        raise InputError(f"{name}: its embedding has length {length:.4g} instead of 1.")
    unit: NDArray[np.float32] = (embedding / length).astype(np.float32)
    return unit


def _parse_ids(ids: Iterable[str], name: str) -> Iterable[str]:
    return [_parse_text(text, name, MAX_ID_CHARS, required=True) for text in ids]


def _parse_text(text: str, name: str, limit: int, *, required: bool = False) -> str:
    if required and not text:
        raise InputError(f"{name} is empty.")
    if len(text) > limit:
        raise InputError(f"{name} has {len(text)} characters; at most {limit} are allowed.")
    return text


def _require_count(items: Sequence[Any], name: str, limit: int) -> None:
    if not 1 <= len(items) <= limit:
        raise InputError(f"The request holds {len(items)} {name}; 1 to {limit} are allowed.")
