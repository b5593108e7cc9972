"""Turn the messages of retrieval.proto into checked values, or raise InputError.

An error names a case by its position in the request ("case 3"), never by its id.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from contract.image.view import VIEWS
from contract.labels import LABEL_INDEX
from contract.report.text import MAX_REPORT_CHARS
from contract.search_limits import MAX_K
from contract.training_data import WAYS
from retrieval.cases import CaseRecord
from retrieval.checks import LENGTH_TOLERANCE
from retrieval.diversity import MAX_DIVERSE_K
from retrieval.evidence import Asked, list_words
from retrieval.index import Query
from retrieval.rows import CaseFilter

MAX_CASES: Final = 4096  # to add or delete per request
MAX_QUERIES: Final = 256
MAX_HITS: Final = 20_000  # queries * k
MAX_EXCLUDED: Final = 1000
MAX_ID_CHARS: Final = 256
MAX_IMAGE_REF_CHARS: Final = 2048
MAX_DIMENSION: Final = 8192
MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100


@dataclass(frozen=True)
class ListRequest:
    """The cases that a caller wants listed: at most `page_size` of those after an earlier page.

    `page_token` is that page's `Page.following`; "" for the first page.
    """

    page_token: str = field(repr=False)
    page_size: int
    with_reports: bool
    filter: CaseFilter = field(repr=False)


def parse_fingerprint(text: str) -> str:
    """Return a model fingerprint. Raise InputError unless it has 64 lower-case hexadecimal digits."""
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise InputError("A model fingerprint must have 64 hexadecimal digits (0 to 9, a to f).")
    return text


def parse_cases(messages: Sequence[Any], dimension: int) -> tuple[list[CaseRecord], NDArray[np.float32]]:
    """Check cases before they are stored.

    Args:
        messages: N `PackedCase` messages.
        dimension: D of the stored cases; 0 if there are none yet.

    Returns:
        N records, and (N, D) float32 embeddings of exactly unit length.

    Raises:
        InputError: A case cannot be stored. The message says which one and why.
    """
    _require_count(messages, "cases", MAX_CASES)
    records = [_parse_record(message, number) for number, message in enumerate(messages, 1)]
    if len({record.id for record in records}) < len(records):
        raise InputError("Two cases of the request have the same id.")
    blobs = [message.embedding for message in messages]
    for number, blob in enumerate(blobs, 1):
        if len(blob) % 4:
            raise InputError(
                f"Case {number}: its embedding has {len(blob)} bytes instead of 4 for each value."
            )
    _require_dimension([len(blob) // 4 for blob in blobs], dimension, "Case")
    rows = np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(blobs), -1)
    return records, _normalize(rows.astype(np.float64), "Case")


def parse_queries(request: Any, dimension: int) -> list[Query]:
    """Check a `SearchRequest`, also against D of the stored cases (0 if there are none). May raise InputError."""
    _require_count(request.queries, "queries", MAX_QUERIES)
    if not 1 <= request.k <= MAX_K:
        raise InputError(f"k is {request.k}; it must be 1 to {MAX_K}.")
    if len(request.queries) * request.k > MAX_HITS:
        raise InputError(
            f"The request asks for more than {MAX_HITS} hits. Send fewer queries or a smaller k."
        )
    if not -1 <= request.min_score <= 1:
        raise InputError(f"The smallest score is {request.min_score:.4g}; it must be -1 to 1.")
    if not 0 <= request.diversity <= 1:
        raise InputError(f"The diversity is {request.diversity:.4g}; it must be 0 to 1.")
    if request.diversity and request.k > MAX_DIVERSE_K:
        raise InputError(f"k is {request.k}; with a diversity it must be 1 to {MAX_DIVERSE_K}.")
    wanted = _parse_filter(request)
    least = request.min_score if request.HasField("min_score") else -1.0
    embeddings = _parse_embeddings(request.queries, dimension, "Query")
    return [Query(embedding, request.k, wanted, least, request.diversity) for embedding in embeddings]


def parse_list(request: Any) -> ListRequest:
    """Check a `ListCasesRequest`. May raise InputError."""
    if request.page_size > MAX_PAGE:
        raise InputError(f"The page size is {request.page_size}; it must be 1 to {MAX_PAGE}.")
    return ListRequest(
        request.page_token,
        request.page_size or DEFAULT_PAGE,
        request.with_reports,
        _parse_filter(request),
    )


def refuse_token() -> InputError:
    """Return the error of a page token that no answer of the store had."""
    return InputError("The page token must be one of an earlier answer.")


def parse_asked(request: Any) -> list[Asked]:
    """Check what a `SearchRequest` tells of its queries beside their embeddings. May raise InputError."""
    return [
        Asked(
            _parse_labels(query.labels, f"Query {number}: its labels"),
            list_words(_parse_text(query.text, f"Query {number}: its text", MAX_REPORT_CHARS)),
        )
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


def _parse_record(message: Any, number: int) -> CaseRecord:
    if len(message.labels) > len(LABEL_INDEX):  # before a string is made of each of them
        raise InputError(
            f"Case {number}: its labels must be different keys of the {len(LABEL_INDEX)} categories."
        )
    case = CaseRecord(
        message.id,
        message.study_id,
        tuple(message.labels),
        message.report,
        message.image_ref,
        message.view,
        message.embedding_kind,
    )
    if not (
        0 < len(case.id) <= MAX_ID_CHARS
        and 0 < len(case.study_id) <= MAX_ID_CHARS
        and len(case.report) <= MAX_REPORT_CHARS
        and len(case.image_ref) <= MAX_IMAGE_REF_CHARS
        and _are_facts(case.labels, case.view, case.kind)
    ):
        _explain_record(case, f"Case {number}")
    return case


@functools.lru_cache(maxsize=4096)
def _are_facts(labels: tuple[str, ...], view: str, kind: str) -> bool:
    """Whether labels are different keys, and view and kind known ones or empty."""
    names = frozenset(labels)
    are_labels = len(names) == len(labels) and names <= LABEL_INDEX.keys()
    return are_labels and view in ("", *VIEWS) and kind in ("", *WAYS)


def _explain_record(case: CaseRecord, name: str) -> None:
    """Raise InputError with what is wrong with a case that cannot be stored."""
    _parse_text(case.id, f"{name}: its id", MAX_ID_CHARS, required=True)
    _parse_text(case.study_id, f"{name}: its study id", MAX_ID_CHARS, required=True)
    _parse_text(case.report, f"{name}: its report", MAX_REPORT_CHARS)
    _parse_text(case.image_ref, f"{name}: its image reference", MAX_IMAGE_REF_CHARS)
    _parse_names([case.view] if case.view else (), VIEWS, f"{name}: its view")
    _parse_names([case.kind] if case.kind else (), WAYS, f"{name}: its kind")
    raise InputError(f"{name}: its labels must be different keys of the {len(LABEL_INDEX)} categories.")


def _parse_filter(request: Any) -> CaseFilter:
    wanted = request.filter
    if len(request.exclude_study_ids) > MAX_EXCLUDED:
        raise InputError(f"The request excludes more than {MAX_EXCLUDED} studies.")
    if len(wanted.exclude_ids) > MAX_EXCLUDED:
        raise InputError(f"The request excludes more than {MAX_EXCLUDED} cases.")
    return CaseFilter(
        labels_any=_parse_labels(wanted.labels_any, "The labels of the filter"),
        labels_all=_parse_labels(wanted.labels_all, "The labels of the filter"),
        labels_none=_parse_labels(wanted.labels_none, "The labels of the filter"),
        views=_parse_names(wanted.views, VIEWS, "A view of the filter"),
        kinds=_parse_names(wanted.embedding_kinds, WAYS, "A kind of the filter"),
        excluded_ids=frozenset(_parse_ids(wanted.exclude_ids, "An excluded case id")),
        excluded_study_ids=frozenset(_parse_ids(request.exclude_study_ids, "An excluded study id")),
    )


def _parse_labels(labels: Iterable[str], name: str) -> frozenset[str]:
    found = frozenset(labels)
    if not found <= LABEL_INDEX.keys():
        raise InputError(f"{name} must be different keys of the {len(LABEL_INDEX)} categories.")
    return found


def _parse_names(names: Iterable[str], known: Sequence[str], name: str) -> frozenset[str]:
    found = frozenset(names)
    if not found <= set(known):
        raise InputError(f"{name} must be one of {', '.join(known)}.")
    return found


def _parse_embeddings(messages: Sequence[Any], dimension: int, name: str) -> NDArray[np.float32]:
    """Return the embeddings of messages, (N, D) float32, as `_normalize` does."""
    _require_dimension([len(message.embedding) for message in messages], dimension, name)
    return _normalize(np.array([list(message.embedding) for message in messages], dtype=np.float64), name)


def _require_dimension(counts: Sequence[int], dimension: int, name: str) -> None:
    """Raise InputError unless all embeddings have `dimension` values; 0: as many as the first one."""
    dimension = dimension or counts[0]
    for number, count in enumerate(counts, 1):
        if not 1 <= count <= MAX_DIMENSION:
            raise InputError(
                f"{name} {number}: its embedding has {count} values; 1 to {MAX_DIMENSION} are allowed."
            )
        if count != dimension:
            raise InputError(f"{name} {number}: its embedding has {count} values instead of {dimension}.")


def _normalize(embeddings: NDArray[np.float64], name: str) -> NDArray[np.float32]:
    """Return (N, D) float32, scaled to length 1 exactly, so that inner products are cosines."""
    lengths = np.linalg.norm(embeddings, axis=1)
    for number, length in enumerate(lengths.tolist(), 1):
        if not math.isfinite(length):
            raise InputError(f"{name} {number}: its embedding holds values that are not finite numbers.")
        if abs(length - 1) > LENGTH_TOLERANCE:
            raise InputError(f"{name} {number}: its embedding has length {length:.4g} instead of 1.")
    unit: NDArray[np.float32] = (embeddings / lengths[:, None]).astype(np.float32)
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
