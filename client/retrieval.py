"""Requests to the retrieval sidecar over gRPC. Each has a deadline and raises errors of this project."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray

from client.backup import Backup, write_backup
from client.cases import ListedCase, SimilarCase
from client.search_options import SearchOptions
from client.status import make_error, make_wrong_service_error
from contract.address import CHANNEL_OPTIONS, check_address, speaks_http1
from contract.connection import PLAIN, Connection
from contract.errors import InputError, ServerError
from contract.proto import retrieval_pb2, retrieval_pb2_grpc
from contract.strings import require_strings, require_text
from contract.tls_trouble import find_tls_error

MAX_K: Final = 1000  # as contract/proto/retrieval.proto states it
NO_OPTIONS: Final = SearchOptions()
_PAGE_CASES: Final = 500
_SERVER: Final = "the retrieval sidecar"
_SETTING: Final = "retrieval_url (--retrieval)"


@dataclass(frozen=True)
class StoredCase:
    """A case for the store of the sidecar. `embedding` is (D,) float32 of unit length."""

    id: str
    study_id: str
    embedding: NDArray[np.float32] = field(repr=False)
    labels: tuple[str, ...]
    report: str = field(repr=False)
    image_ref: str
    view: str = field(default="", repr=False)
    embedding_kind: str = field(default="", repr=False)


@dataclass(frozen=True)
class IndexInfo:
    """Facts about an index.

    Attributes:
        fingerprint: Fingerprint of the model that made the embeddings; "" for an empty index.
        case_count: Number of cases that a search can return.
        dimension: D; 0 for an empty index.
        index_kind: How the index searches: "flat" or "flat, 8-bit codes", which compare every case, or the approximate
            kind that was asked for, with all its parameters.
        damaged_count: Number of stored cases with damaged rows, which a search does not return.
        vector_bytes: Memory of the embeddings.
        code_bytes: Memory of the codes.
        store_bytes: Size of the stored cases on the disk.
        cases_by_kind: What embeddings were made from ("study", "image", "text", or "" if nobody stated it) -> number of
            cases.
        asked_kind: The kind that the operator asked for, with the parameters that were chosen.
        state: Of that kind: "ready", "waiting" (for more cases), "building" or "refused".
        refusal: Why it is refused, in one sentence; "" otherwise.
        approximate_count: Number of cases that are searched approximately; 0 while every search is exact.
        recall: Share of the 10 nearest cases that the kind built last finds, 0 to 1; None if it was not measured.
        recall_tenth: The same among a tenth of the cases.
        recall_hundredth: The same among a hundredth of the cases.
        recall_floor: Smallest of these with which the kind may answer.
        file_bytes: Size of the embeddings in a file, for a kind that is not flat.
    """

    fingerprint: str
    case_count: int
    dimension: int
    index_kind: str
    damaged_count: int = 0
    vector_bytes: int = 0
    code_bytes: int = 0
    store_bytes: int = 0
    cases_by_kind: Mapping[str, int] = field(default_factory=dict)
    asked_kind: str = "flat"
    state: str = "ready"
    refusal: str = ""
    approximate_count: int = 0
    recall: float | None = None
    recall_tenth: float | None = None
    recall_hundredth: float | None = None
    recall_floor: float = 0.0
    file_bytes: int = 0

    def describe(self) -> str:
        """Return which kind answers, and what became of the one that was asked for."""
        measured = [
            value for value in (self.recall, self.recall_tenth, self.recall_hundredth) if value is not None
        ]
        if self.approximate_count:
            answers = f"{self.index_kind}, recall@10 at least {min(measured, default=0.0):.3f}"
        else:
            answers = f"{self.index_kind}, exact"
        later = {
            "waiting": f"; {self.asked_kind} waits for more cases",
            "building": f"; {self.asked_kind} is being built",
            "refused": f"; {self.asked_kind} is refused. {self.refusal}",
        }
        return answers + later.get(self.state, "")


class Found(NamedTuple):
    """The cases of a search, best first, and whether every case that the options allow was compared."""

    cases: list[SimilarCase]
    exact: bool


class Stored(NamedTuple):
    """Number of cases with a new id, and of cases that replaced a stored case."""

    added: int
    replaced: int


class RetrievalTransport:
    """A connection to one sidecar. Several threads may use it at once."""

    def __init__(self, url: str, connection: Connection = PLAIN) -> None:
        """Set the address, host:port, with TLS and token. The first request connects.

        Raises:
            ConfigError: The address is not valid, a file of TLS cannot be used, or a token would travel as plain text.
        """
        self.url = check_address(url, server=_SERVER, setting=_SETTING, example="127.0.0.1:8005")
        connection.require_private(url, _SETTING)
        self._connection = connection
        self._connect()

    def add(self, fingerprint: str, cases: Sequence[StoredCase], timeout_s: float) -> Stored:
        """Store all cases, or none. A case replaces a stored case with the same id.

        Args:
            fingerprint: Fingerprint of the model that made the embeddings.
            cases: The cases.
            timeout_s: Deadline in seconds.

        Raises:
            FingerprintError: The store already holds the cases of too many models.
            InputError: The sidecar refuses a case.
            ServiceError: The sidecar is down, busy, slow, or failed; see `client.status`.
        """
        messages = [
            retrieval_pb2.PackedCase(
                id=case.id,
                study_id=case.study_id,
                embedding=case.embedding.astype("<f4").tobytes(),
                labels=case.labels,
                report=case.report,
                image_ref=case.image_ref,
                view=case.view,
                embedding_kind=case.embedding_kind,
            )
            for case in cases
        ]
        request = retrieval_pb2.PackedAddCasesRequest(fingerprint=fingerprint, cases=messages)
        with self._translate_errors(timeout_s):
            answer = self._add_cases(request, timeout=timeout_s, metadata=self._connection.metadata)
        return Stored(int(answer.added), int(answer.replaced))

    def search(
        self,
        fingerprint: str,
        embedding: NDArray[np.float32],
        k: int,
        exclude_studies: Sequence[str],
        timeout_s: float,
        options: SearchOptions = NO_OPTIONS,
        text: str = "",
    ) -> Found:
        """Return the stored cases that are most similar to an embedding.

        Args:
            fingerprint: Fingerprint of the model that made the embedding.
            embedding: (D,) float32 of unit length.
            k: Largest number of cases, 1 to 1000.
            exclude_studies: Ids of studies that the search leaves out.
            timeout_s: Deadline in seconds.
            options: Which cases count.
            text: Report of the query, for the excerpts of the results.

        Raises:
            FingerprintError: The store holds only cases of other models.
            InputError: `k`, the embedding or a study id is not valid.
            ServerError: The sidecar is too old to know `options`.
            ServiceError: As in `add`.
        """
        excluded = check_search(k, exclude_studies, options)
        query = retrieval_pb2.Query(embedding=embedding.tolist(), labels=options.query_labels, text=text)
        request = retrieval_pb2.SearchRequest(
            fingerprint=fingerprint,
            queries=[query],
            k=k,
            exclude_study_ids=excluded,
            filter=_make_filter(options),
            min_score=options.min_score,
            diversity=options.diversity,
        )
        with self._translate_errors(timeout_s):
            answer = self._stub.Search(request, timeout=timeout_s, metadata=self._connection.metadata)
        if not answer.options_applied and options.chooses_cases:
            raise ServerError(
                "The sidecar is older than this client and cannot choose cases by these options. Update the sidecar, "
                "or search without them."
            )
        cases = [_make_case(hit) for hit in answer.results[0].hits]
        return Found(cases, answer.exact if answer.HasField("exact") else True)

    def delete(self, ids: Sequence[str], timeout_s: float) -> int:
        """Delete stored cases; return how many there were. InputError: `ids` is empty or not a list of strings."""
        request = retrieval_pb2.DeleteCasesRequest(ids=_check_ids(ids, "ids"))
        with self._translate_errors(timeout_s):
            answer = self._stub.DeleteCases(request, timeout=timeout_s, metadata=self._connection.metadata)
        return int(answer.deleted)

    def read_info(self, timeout_s: float, fingerprint: str = "") -> IndexInfo:
        """Return facts about the index of a model. Without such an index: about the default index of the sidecar."""
        with self._translate_errors(timeout_s):
            answer = self._stub.GetInfo(
                retrieval_pb2.GetInfoRequest(fingerprint=fingerprint),
                timeout=timeout_s,
                metadata=self._connection.metadata,
            )
        return _make_info(answer)

    def list_cases(
        self,
        timeout_s: float,
        fingerprint: str = "",
        exclude_studies: Sequence[str] = (),
        options: SearchOptions = NO_OPTIONS,
        *,
        reports: bool = False,
    ) -> Iterator[ListedCase]:
        """Return an iterator over the cases of a model's index; see `CxrClient.list_cases`.

        Args:
            timeout_s: Deadline of each page in seconds.
            fingerprint: Fingerprint of the model. "": the default index of the sidecar.
            exclude_studies: Ids of studies that are left out.
            options: Which cases count.
            reports: Whether to return the reports.

        Raises:
            FingerprintError: The store holds only cases of other models.
            InputError: A study id is not valid, or an option needs a query.
            ServiceError: As in `add`.
        """
        options.require_filter()
        request = retrieval_pb2.ListCasesRequest(
            fingerprint=fingerprint,
            page_size=_PAGE_CASES,
            with_reports=reports,
            filter=_make_filter(options),
            exclude_study_ids=_check_ids(exclude_studies, "exclude_studies"),
        )
        return self._list_pages(request, timeout_s)

    def _list_pages(self, request: retrieval_pb2.ListCasesRequest, timeout_s: float) -> Iterator[ListedCase]:
        while True:
            with self._translate_errors(timeout_s, is_new=True):
                answer = self._stub.ListCases(request, timeout=timeout_s, metadata=self._connection.metadata)
            for case in answer.cases:
                yield ListedCase(
                    case.id,
                    case.study_id,
                    tuple(case.labels),
                    case.view,
                    case.embedding_kind,
                    case.image_ref,
                    case.report,
                )
            if not answer.next_page_token:
                return
            # The default index may become another one meanwhile.
            request.fingerprint, request.page_token = answer.fingerprint, answer.next_page_token

    def back_up(self, out: Path, timeout_s: float) -> Backup:
        """Write a copy of the whole store into a new folder; see `CxrClient.back_up`."""
        with self._translate_errors(timeout_s, is_new=True):
            parts = self._stub.Backup(
                retrieval_pb2.BackupRequest(), timeout=timeout_s, metadata=self._connection.metadata
            )
            try:
                return write_backup(parts, out)
            finally:
                parts.cancel()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _connect(self) -> None:
        self._channel = self._connection.open_channel(self.url, CHANNEL_OPTIONS)
        self._stub = retrieval_pb2_grpc.RetrievalStub(self._channel)
        self._add_cases = self._channel.unary_unary(
            "/cxr.retrieval.v1.Retrieval/AddCases",
            request_serializer=retrieval_pb2.PackedAddCasesRequest.SerializeToString,
            response_deserializer=retrieval_pb2.AddCasesResponse.FromString,
        )

    @contextmanager
    def _translate_errors(self, timeout_s: float, *, is_new: bool = False) -> Iterator[None]:
        """Turn errors of gRPC into those of `contract.errors`. `is_new`: an older sidecar does not know the call."""
        try:
            yield
        except grpc.RpcError as error:
            code = error.code().name
            if code == "UNAVAILABLE":
                # A new channel resolves the host name at once. The old one might wait up to two minutes, and gRPC has
                # no option for that. It closes when the requests of other threads on it have ended.
                self._connect()
                trouble = find_tls_error(self.url, self._connection, _SERVER)
                if trouble is not None:
                    raise trouble from error
            if code == "UNIMPLEMENTED" and is_new:
                raise ServerError(
                    f"The server at {self.url} does not know this call: the sidecar is older than this client, or "
                    "another service answers there."
                ) from error
            if code == "UNIMPLEMENTED" or (code == "UNAVAILABLE" and speaks_http1(self.url)):
                raise make_wrong_service_error(self.url, _SERVER, _SETTING) from error
            raise make_error(
                code,
                error.details() or "",
                server="The retrieval sidecar",
                url=self.url,
                timeout_s=timeout_s,
            ) from error


def _make_info(answer: retrieval_pb2.GetInfoResponse) -> IndexInfo:
    return IndexInfo(
        answer.fingerprint,
        int(answer.case_count),
        int(answer.dimension),
        answer.index_kind,
        int(answer.damaged_count),
        int(answer.vector_bytes),
        int(answer.code_bytes),
        int(answer.store_bytes),
        {entry.embedding_kind: int(entry.case_count) for entry in answer.kinds},
        # An older sidecar has no other kind and does not state it.
        asked_kind=answer.asked_kind or "flat",
        state=answer.index_state or "ready",
        refusal=answer.refusal,
        approximate_count=int(answer.approximate_count),
        recall=answer.recall if answer.HasField("recall") else None,
        recall_tenth=answer.recall_tenth if answer.HasField("recall_tenth") else None,
        recall_hundredth=answer.recall_hundredth if answer.HasField("recall_hundredth") else None,
        recall_floor=float(answer.recall_floor),
        file_bytes=int(answer.file_bytes),
    )


def check_search(
    k: int, exclude_studies: Sequence[str], options: SearchOptions = NO_OPTIONS
) -> tuple[str, ...]:
    """Return the excluded study ids. Raise InputError if they are not a list of strings, or `k` is out of its range."""
    is_whole = isinstance(k, (int, np.integer)) and not isinstance(k, bool)
    if not is_whole or not 1 <= k <= MAX_K:
        value = k if is_whole or isinstance(k, float) else f"of type {type(k).__name__}"
        raise InputError(f"k must be a whole number from 1 to {MAX_K}, not {value}.")
    options.check_k(int(k))
    return _check_ids(exclude_studies, "exclude_studies")


def _make_case(hit: retrieval_pb2.Hit) -> SimilarCase:
    return SimilarCase(
        id=hit.case.id,
        study_id=hit.case.study_id,
        score=hit.score,
        labels=tuple(hit.case.labels),
        report=hit.case.report,
        image_ref=hit.case.image_ref,
        view=hit.case.view,
        embedding_kind=hit.case.embedding_kind,
        shared_labels=tuple(hit.shared_labels),
        excerpt=hit.excerpt,
    )


def _make_filter(options: SearchOptions) -> retrieval_pb2.Filter:
    return retrieval_pb2.Filter(
        labels_any=options.labels_any,
        labels_all=options.labels_all,
        labels_none=options.labels_none,
        views=options.views,
        embedding_kinds=options.embedding_kinds,
        exclude_ids=options.exclude_ids,
    )


def _check_ids(ids: Iterable[str], name: str) -> tuple[str, ...]:
    return tuple(require_text(text, f"An id in {name}") for text in require_strings(ids, name))
