"""The gRPC methods of retrieval.proto. Each request uses the cases of the model that it names.

A method checks the request, asks the backend (`retrieval.backend`), and writes the answer.
"""

import functools
import logging
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc

from contract.errors import (
    BusyError,
    CancelledError,
    CxrError,
    DeadlineError,
    FingerprintError,
    InputError,
    UnavailableError,
)
from contract.proto import retrieval_pb2
from contract.search_limits import MAX_MESSAGE_BYTES
from retrieval.backend import CaseBackend, FoundCases
from retrieval.cases import CaseRecord, UnknownCaseError
from retrieval.evidence import MAX_EXCERPT_CHARS, MAX_EXCERPTS, Asked
from retrieval.requests import (
    parse_asked,
    parse_cases,
    parse_fingerprint,
    parse_id,
    parse_ids,
    parse_list,
    parse_queries,
)

SERVICE_NAME: Final = "cxr.retrieval.v1.Retrieval"
MAX_SEARCH_S: Final = 30.0  # for callers without a deadline
_HIT_BYTES: Final = 32 + 22 * 24 + 4 * MAX_EXCERPT_CHARS  # at most, around each case in an answer

# Errors -> status codes. The most specific class counts; every other error is INTERNAL.
STATUS_CODES: Final[dict[type[BaseException], Any]] = {
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownCaseError: grpc.StatusCode.NOT_FOUND,
    FingerprintError: grpc.StatusCode.FAILED_PRECONDITION,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    BusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    CancelledError: grpc.StatusCode.CANCELLED,
}
_logger = logging.getLogger(__name__)
_Method = TypeVar("_Method", bound=Callable[..., Any])


def find_status_code(error: BaseException) -> Any:
    """Return the grpc.StatusCode for an error."""
    for kind in type(error).__mro__:
        if kind in STATUS_CODES:
            return STATUS_CODES[kind]
    return grpc.StatusCode.INTERNAL


def _locate(error: BaseException) -> str:
    *_, frame = traceback.extract_tb(error.__traceback__)
    return f" At {Path(frame.filename).name}:{frame.lineno}."


def _end_with_status(method: _Method) -> _Method:
    """Turn an error of the method into a gRPC status and a log line without case data."""

    @functools.wraps(method)
    def answer(self: "RetrievalService", request: Any, context: Any) -> Any:
        try:
            return method(self, request, context)
        except Exception as error:  # also a bug or no memory
            return _abort(method.__name__, error, context)

    return answer  # type: ignore[return-value]


def _end_stream_with_status(method: _Method) -> _Method:
    """Do the same for a method that yields its answers."""

    @functools.wraps(method)
    def answer(self: "RetrievalService", request: Any, context: Any) -> Iterator[Any]:
        try:
            yield from method(self, request, context)
        except Exception as error:  # also a bug or no memory
            _abort(method.__name__, error, context)

    return answer  # type: ignore[return-value]


def _abort(name: str, error: Exception, context: Any) -> Any:
    """End a call with the status of an error. Other errors than our own may hold a report, so their text stays here."""
    message, place = str(error), ""
    if not isinstance(error, CxrError):
        message, place = f"The sidecar failed ({type(error).__name__}).", _locate(error)
    code = find_status_code(error)
    _logger.warning("%s: %s: %s%s", name, code.name, message, place)
    return context.abort(code, message)


class RetrievalService:
    """Answers requests from any number of threads."""

    def __init__(self, backend: CaseBackend) -> None:
        """Serve the cases of all models of one store."""
        self._backend = backend
        self.metrics = backend.metrics
        self._backup_lock = threading.Lock()

    @_end_with_status
    def AddCases(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Store all cases of a `PackedAddCasesRequest`, or none."""
        self._require_ready()
        fingerprint = parse_fingerprint(request.fingerprint)
        known = self._backend.peek(fingerprint)
        cases, embeddings = parse_cases(request.cases, known.dimension if known else 0)
        entry = known or self._backend.find_or_make(fingerprint)
        replaced = entry.add(fingerprint, cases, embeddings)
        return retrieval_pb2.AddCasesResponse(added=len(cases) - replaced, replaced=replaced)

    @_end_with_status
    def Search(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return the k nearest cases of each query."""
        self._require_ready()
        entry = self._backend.find(parse_fingerprint(request.fingerprint))
        queries, asked = parse_queries(request, entry.dimension), parse_asked(request)
        remaining_s = context.time_remaining()
        timeout_s = MAX_SEARCH_S if remaining_s is None else min(remaining_s, MAX_SEARCH_S)
        return _build_answer(entry.search(queries, timeout_s), asked)

    @_end_with_status
    def GetCase(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return one case."""
        return _build_case(self._backend.get(parse_id(request.id)))

    @_end_with_status
    def DeleteCases(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Delete cases; unknown ids are ignored."""
        self._require_ready()
        ids = parse_ids(request.ids)
        with self.metrics.time_write("delete"):
            deleted = self._backend.delete(ids)
        return retrieval_pb2.DeleteCasesResponse(deleted=deleted)

    @_end_with_status
    def GetInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return counts and facts of the index of the named model, or of the default index."""
        entry = self._backend.peek(parse_fingerprint(request.fingerprint)) if request.fingerprint else None
        entry = entry or self._backend.default
        count, measured = entry.count(), entry.measure()
        facts, state = measured.index, measured.kind
        recall = state.recall.by_share if state.recall else {}
        return retrieval_pb2.GetInfoResponse(
            fingerprint=entry.fingerprint,
            case_count=count,
            dimension=entry.dimension,
            index_kind=facts.kind,
            damaged_count=measured.damaged,
            fingerprints=self._backend.fingerprints,
            vector_bytes=facts.vector_bytes,
            code_bytes=facts.code_bytes,
            kinds=[
                retrieval_pb2.KindCount(embedding_kind=kind, case_count=count)
                for kind, count in sorted(entry.count_kinds().items())
            ],
            store_bytes=measured.store_bytes,
            asked_kind=state.asked,
            index_state=state.state,
            refusal=state.reason,
            approximate_count=facts.approximate_rows,
            recall=recall.get(1.0),
            recall_tenth=recall.get(0.1),
            recall_hundredth=recall.get(0.01),
            recall_floor=state.recall_floor,
            file_bytes=facts.file_bytes,
        )

    @_end_with_status
    def ListCases(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return some cases of a model, and where the next ones begin."""
        asked = parse_list(request)
        entry = (
            self._backend.find(parse_fingerprint(request.fingerprint))
            if request.fingerprint
            else self._backend.default
        )
        page = entry.read_page(asked)
        return retrieval_pb2.ListCasesResponse(
            cases=[_build_case(record, with_report=asked.with_reports) for record in page.records],
            next_page_token=page.following,
            fingerprint=entry.fingerprint,
        )

    @_end_stream_with_status
    def Backup(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        """Yield a copy of all stores, one backup at a time."""
        self._require_ready()
        if not self._backup_lock.acquire(blocking=False):
            raise BusyError("Another backup is running.")
        try:
            yield from self._backend.send_backup(context.is_active)
        finally:
            self._backup_lock.release()

    def _require_ready(self) -> None:
        if not self._backend.ready:
            raise UnavailableError("The search index is not built yet, or is stopping.")


def _build_answer(found: Sequence[FoundCases], asked: Sequence[Asked]) -> Any:
    records = {case.record for row in found for case in row}
    cases = {record: _build_case(record) for record in records}
    size = sum(cases[case.record].ByteSize() + _HIT_BYTES for row in found for case in row)
    if size > MAX_MESSAGE_BYTES:
        raise InputError(
            f"The answer would exceed {MAX_MESSAGE_BYTES >> 20} MiB. Send fewer queries or a smaller k."
        )
    results = [
        retrieval_pb2.Hits(hits=_build_hits(row, cases, query))
        for row, query in zip(found, asked, strict=True)
    ]
    return retrieval_pb2.SearchResponse(
        results=results, options_applied=True, exact=all(row.is_exact for row in found)
    )


def _build_hits(found: FoundCases, cases: dict[CaseRecord, Any], query: Asked) -> list[Any]:
    hits = []
    for place, each in enumerate(found):
        case = cases[each.record]
        excerpt = query.find_excerpt(case.report) if place < MAX_EXCERPTS else ""
        shared = query.list_shared(case.labels)
        hits.append(retrieval_pb2.Hit(case=case, score=each.score, shared_labels=shared, excerpt=excerpt))
    return hits


def _build_case(record: CaseRecord, *, with_report: bool = True) -> Any:
    return retrieval_pb2.Case(
        id=record.id,
        study_id=record.study_id,
        labels=record.labels,
        report=record.report if with_report else "",
        image_ref=record.image_ref,
        view=record.view,
        embedding_kind=record.kind,
    )
