"""What the blocking and the asyncio transport to the sidecar have in common: the requests, the answers and the errors.

Every operation is written once, in steps (`client.steps`). A transport adds the connection.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray

from client.cases import ListedCase, SimilarCase
from client.search_options import SearchOptions
from client.status import make_error
from client.steps import Steps
from client.transport_core import TransportCore
from contract.address import CHANNEL_OPTIONS
from contract.connection import PLAIN, Connection
from contract.errors import CxrError, InputError, ServerError
from contract.proto import retrieval_pb2, retrieval_pb2_grpc
from contract.search_limits import MAX_K, MAX_MESSAGE_BYTES
from contract.strings import require_strings, require_text

CHANNEL: Final = (
    *CHANNEL_OPTIONS,
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),  # gRPC's own limit is 4 MiB
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)
NO_OPTIONS: Final = SearchOptions()
_PAGE_CASES: Final = 500


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


class RetrievalCore(TransportCore):
    """The requests to one sidecar, in steps."""

    name = service = "the retrieval sidecar"
    setting = "retrieval_url (--retrieval)"
    example = "127.0.0.1:8005"

    def __init__(self, url: str, connection: Connection = PLAIN) -> None:
        """See `TransportCore`. ConfigError: also if a file of TLS cannot be used."""
        super().__init__(url, connection)
        self._stub: Any = None

    @abstractmethod
    def _open_stub(self) -> Any:
        """Return the stub of the sidecar's service, on the open connection. CancelledError: the client is closed."""

    def _forget_stub(self) -> None:
        """Let the next request use a new connection. Add the stub of the old one to `_forgotten`."""
        if self._stub is not None:
            self._forgotten.add(self._stub)
        self._stub = None

    def _add_in_steps(self, fingerprint: str, cases: Sequence[StoredCase], timeout_s: float) -> Steps[Stored]:
        """See `client.retrieval.RetrievalTransport.add`."""
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
        answer = yield from self._request("AddCases", request, timeout_s)
        return Stored(int(answer.added), int(answer.replaced))

    def _search_in_steps(
        self,
        fingerprint: str,
        embedding: NDArray[np.float32],
        k: int,
        exclude_studies: Sequence[str],
        timeout_s: float,
        options: SearchOptions,
        text: str,
    ) -> Steps[Found]:
        """See `client.retrieval.RetrievalTransport.search`."""
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
        answer = yield from self._request("Search", request, timeout_s)
        if not answer.options_applied and options.chooses_cases:
            raise ServerError(
                "The sidecar is older than this client and cannot choose cases by these options. Update the sidecar, "
                "or search without them."
            )
        cases = [_make_case(hit) for hit in answer.results[0].hits]
        return Found(cases, answer.exact if answer.HasField("exact") else True)

    def _delete_in_steps(self, ids: Sequence[str], timeout_s: float) -> Steps[int]:
        """See `client.retrieval.RetrievalTransport.delete`."""
        request = retrieval_pb2.DeleteCasesRequest(ids=_check_ids(ids, "ids"))
        answer = yield from self._request("DeleteCases", request, timeout_s)
        return int(answer.deleted)

    def _read_info_in_steps(self, timeout_s: float, fingerprint: str) -> Steps[IndexInfo]:
        """See `client.retrieval.RetrievalTransport.read_info`."""
        request = retrieval_pb2.GetInfoRequest(fingerprint=fingerprint)
        answer = yield from self._request("GetInfo", request, timeout_s)
        return _make_info(answer)

    def _list_page_in_steps(
        self, request: retrieval_pb2.ListCasesRequest, timeout_s: float
    ) -> Steps[list[ListedCase]]:
        """Return the next cases, and let the request ask for those behind them; its token is "" after the last ones."""
        answer = yield from self._request("ListCases", request, timeout_s, is_new=True)
        # The default index may become another one meanwhile.
        request.fingerprint, request.page_token = answer.fingerprint, answer.next_page_token
        return [
            ListedCase(
                case.id,
                case.study_id,
                tuple(case.labels),
                case.view,
                case.embedding_kind,
                case.image_ref,
                case.report,
            )
            for case in answer.cases
        ]

    def _request(self, method: str, request: Any, timeout_s: float, *, is_new: bool = False) -> Steps[Any]:
        """Call a method of the service. Raise the errors of `contract.errors`.

        `is_new`: an older sidecar does not know the method.
        """
        size = request.ByteSize()
        if size > MAX_MESSAGE_BYTES:
            raise InputError(
                f"The request to the retrieval sidecar has {size:,} bytes. At most {MAX_MESSAGE_BYTES:,} are sent: "
                "give fewer or smaller cases."
            )
        end = time.monotonic() + timeout_s
        stub = self._open_stub()  # its connection stays open while this request holds it
        call = getattr(stub, method)
        try:
            metadata = self._connection.metadata
            return (yield from self._ask(call, request, timeout=timeout_s, metadata=metadata))
        except grpc.RpcError as error:
            raise (yield from self._explain(error, timeout_s, end, is_new=is_new)) from error

    def _explain(self, error: Any, timeout_s: float, end: float, *, is_new: bool) -> Steps[CxrError]:
        """Return the error of this project for one of gRPC. What it asks ends at `end` (`time.monotonic`)."""
        code = error.code().name
        if code == "UNAVAILABLE":
            # A new channel resolves the host name at once. The old one might wait up to two minutes, and gRPC has
            # no option for that. It closes when the other requests on it have ended.
            self._forget_stub()
            trouble = yield from self._find_other_cause(end)
            if trouble is not None:
                return trouble
        if code == "UNIMPLEMENTED" and is_new:
            return ServerError(
                f"The server at {self.url} does not know this call: the sidecar is older than this client, or "
                "another service answers there."
            )
        if code == "UNIMPLEMENTED":
            return self._make_wrong_service_error()
        return make_error(
            code, error.details() or "", server="The retrieval sidecar", url=self.url, timeout_s=timeout_s
        )


def make_stub(channel: Any) -> Any:
    """Return the stub of the service on a channel, with the `channel`. Its AddCases takes a `PackedAddCasesRequest`."""
    stub = retrieval_pb2_grpc.RetrievalStub(channel)
    stub.channel = channel
    stub.AddCases = channel.unary_unary(
        "/cxr.retrieval.v1.Retrieval/AddCases",
        request_serializer=retrieval_pb2.PackedAddCasesRequest.SerializeToString,
        response_deserializer=retrieval_pb2.AddCasesResponse.FromString,
    )
    return stub


def make_list_request(
    fingerprint: str, exclude_studies: Sequence[str], options: SearchOptions, *, reports: bool
) -> retrieval_pb2.ListCasesRequest:
    """Return the request for the first page; see `client.client.CxrClient.list_cases`.

    Raises:
        InputError: A study id is not valid, or an option needs a query.
    """
    options.require_filter()
    return retrieval_pb2.ListCasesRequest(
        fingerprint=fingerprint,
        page_size=_PAGE_CASES,
        with_reports=reports,
        filter=_make_filter(options),
        exclude_study_ids=_check_ids(exclude_studies, "exclude_studies"),
    )


def iterate_pages(
    read_page: Callable[[], list[ListedCase]], request: retrieval_pb2.ListCasesRequest
) -> Iterator[ListedCase]:
    """Iterate over the cases of all pages. `read_page` returns the next one and sets the request to the one behind."""
    yield from read_page()
    while request.page_token:
        yield from read_page()


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
