"""What the blocking and the asyncio transport to the sidecar have in common: the requests, the answers and the errors.

Every operation is written once, in steps (`client.steps`). A transport adds the connection.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray

from client.cases import SimilarCase
from client.search_options import SearchOptions
from client.status import make_error, make_wrong_service_error
from client.steps import Steps, ask, work
from contract.address import CHANNEL_OPTIONS, check_address, speaks_http1
from contract.connection import PLAIN, Connection
from contract.errors import CxrError, InputError, ServerError
from contract.proto import retrieval_pb2
from contract.strings import require_strings, require_text
from contract.tls_trouble import find_tls_error

MAX_K: Final = 1000  # as contract/proto/retrieval.proto states it
MAX_MESSAGE_BYTES: Final = 64 * 2**20  # of a request and of an answer; the sidecar has the same limit
CHANNEL: Final = (
    *CHANNEL_OPTIONS,
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),  # gRPC's own limit is 4 MiB
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)
NO_OPTIONS: Final = SearchOptions()
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
        index_kind: How the index searches: "flat", or "flat, 8-bit codes". Both compare exactly.
        damaged_count: Number of stored cases with damaged rows, which a search does not return.
        vector_bytes: Memory of the embeddings.
        code_bytes: Memory of the codes.
        store_bytes: Size of the stored cases on the disk.
        cases_by_kind: What embeddings were made from ("study", "image", "text", or "" if nobody stated it) -> number of
            cases.
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


class Stored(NamedTuple):
    """Number of cases with a new id, and of cases that replaced a stored case."""

    added: int
    replaced: int


class RetrievalCore(ABC):
    """The requests to one sidecar, in steps."""

    def __init__(self, url: str, connection: Connection = PLAIN) -> None:
        """Set the address, host:port, with TLS and token. The first request connects.

        Raises:
            ConfigError: The address is not valid, a file of TLS cannot be used, or a token would travel as plain text.
        """
        self.url = check_address(url, server=_SERVER, setting=_SETTING, example="127.0.0.1:8005")
        connection.require_private(url, _SETTING)
        self._connection = connection

    @abstractmethod
    def _open_stub(self) -> Any:
        """Return the stub of the sidecar's service, on the open connection."""

    @abstractmethod
    def _connect(self) -> None:
        """Let the next request use a new connection."""

    def _add_in_steps(self, fingerprint: str, cases: Sequence[StoredCase], timeout_s: float) -> Steps[Stored]:
        """See `client.retrieval.RetrievalTransport.add`."""
        messages = [
            retrieval_pb2.Case(
                id=case.id,
                study_id=case.study_id,
                embedding=case.embedding.tolist(),
                labels=case.labels,
                report=case.report,
                image_ref=case.image_ref,
                view=case.view,
                embedding_kind=case.embedding_kind,
            )
            for case in cases
        ]
        request = retrieval_pb2.AddCasesRequest(fingerprint=fingerprint, cases=messages)
        answer = yield from self._ask("AddCases", request, timeout_s)
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
    ) -> Steps[list[SimilarCase]]:
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
        answer = yield from self._ask("Search", request, timeout_s)
        if not answer.options_applied and options.chooses_cases:
            raise ServerError(
                "The sidecar is older than this client and cannot choose cases by these options. Update the sidecar, "
                "or search without them."
            )
        return [
            SimilarCase(
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
            for hit in answer.results[0].hits
        ]

    def _delete_in_steps(self, ids: Sequence[str], timeout_s: float) -> Steps[int]:
        """See `client.retrieval.RetrievalTransport.delete`."""
        request = retrieval_pb2.DeleteCasesRequest(ids=_check_ids(ids, "ids"))
        answer = yield from self._ask("DeleteCases", request, timeout_s)
        return int(answer.deleted)

    def _read_info_in_steps(self, timeout_s: float, fingerprint: str) -> Steps[IndexInfo]:
        """See `client.retrieval.RetrievalTransport.read_info`."""
        request = retrieval_pb2.GetInfoRequest(fingerprint=fingerprint)
        answer = yield from self._ask("GetInfo", request, timeout_s)
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
        )

    def _ask(self, method: str, request: Any, timeout_s: float) -> Steps[Any]:
        """Call a method of the service. Raise the errors of `contract.errors`."""
        size = request.ByteSize()
        if size > MAX_MESSAGE_BYTES:
            raise InputError(
                f"The request to the retrieval sidecar has {size:,} bytes. At most {MAX_MESSAGE_BYTES:,} are sent: "
                "give fewer or smaller cases."
            )
        call = getattr(self._open_stub(), method)
        try:
            return (yield from ask(call, request, timeout=timeout_s, metadata=self._connection.metadata))
        except grpc.RpcError as error:
            raise (yield from self._explain(error, timeout_s)) from error

    def _explain(self, error: Any, timeout_s: float) -> Steps[CxrError]:
        """Return the error of this project for one of gRPC."""
        code = error.code().name
        if code == "UNAVAILABLE":
            # A new channel resolves the host name at once. The old one might wait up to two minutes, and gRPC has
            # no option for that. It closes when the other requests on it have ended.
            self._connect()
            trouble = yield from work(find_tls_error, self.url, self._connection, _SERVER)
            if trouble is not None:
                return trouble
        if code == "UNIMPLEMENTED" or (code == "UNAVAILABLE" and (yield from work(speaks_http1, self.url))):
            return make_wrong_service_error(self.url, _SERVER, _SETTING)
        return make_error(
            code, error.details() or "", server="The retrieval sidecar", url=self.url, timeout_s=timeout_s
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
