"""Calls to the retrieval sidecar over gRPC: a deadline on every call, errors of this project."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray

from client.cases import SimilarCase
from client.status import make_error, make_wrong_service_error
from contract.address import CHANNEL_OPTIONS, check_address, speaks_http1
from contract.errors import InputError
from contract.proto import retrieval_pb2, retrieval_pb2_grpc
from contract.strings import require_strings, require_text

MAX_K: Final = 1000  # as contract/proto/retrieval.proto states it
_SERVER: Final = "the retrieval sidecar"
_SETTING: Final = "retrieval_url (--retrieval)"


@dataclass(frozen=True)
class StoredCase:
    """A case with its embedding, (D,) float32 of unit length, on its way into the store."""

    id: str
    study_id: str
    embedding: NDArray[np.float32] = field(repr=False)
    labels: tuple[str, ...]
    report: str = field(repr=False)
    image_ref: str


@dataclass(frozen=True)
class IndexInfo:
    """What the index holds; `fingerprint` is empty and `dimension` 0 until the first case is stored.

    `case_count` is without the `damaged_count` cases that are left out, because their rows in the store are damaged.
    """

    fingerprint: str
    case_count: int
    dimension: int
    index_kind: str
    damaged_count: int = 0


class Stored(NamedTuple):
    """How many cases were stored under a new id, and how many in place of another case."""

    added: int
    replaced: int


class RetrievalTransport:
    """One address of the sidecar; may be used by several threads at once."""

    def __init__(self, url: str) -> None:
        """Describe the server at `url`, host:port; nothing is sent yet. ConfigError: it is no address."""
        self.url = check_address(url, server=_SERVER, setting=_SETTING, example="127.0.0.1:8005")
        self._connect()

    def add(self, fingerprint: str, cases: Sequence[StoredCase], timeout_s: float) -> Stored:
        """Store cases, all or none, replacing those of the same id.

        Raises:
            FingerprintError: A search finds cases of other models only; or there are too many models for one more.
            InputError, ServiceError: See `client.status`.
        """
        messages = [
            retrieval_pb2.Case(
                id=case.id,
                study_id=case.study_id,
                embedding=case.embedding.tolist(),
                labels=case.labels,
                report=case.report,
                image_ref=case.image_ref,
            )
            for case in cases
        ]
        request = retrieval_pb2.AddCasesRequest(fingerprint=fingerprint, cases=messages)
        with self._explained(timeout_s):
            answer = self._stub.AddCases(request, timeout=timeout_s)
        return Stored(int(answer.added), int(answer.replaced))

    def search(
        self,
        fingerprint: str,
        embedding: NDArray[np.float32],
        k: int,
        exclude_studies: Sequence[str],
        timeout_s: float,
    ) -> list[SimilarCase]:
        """Return the k nearest cases to one embedding, best first; errors as in `add`, and of `check_search`."""
        excluded = check_search(k, exclude_studies)
        request = retrieval_pb2.SearchRequest(
            fingerprint=fingerprint,
            queries=[retrieval_pb2.Query(embedding=embedding.tolist())],
            k=k,
            exclude_study_ids=excluded,
        )
        with self._explained(timeout_s):
            answer = self._stub.Search(request, timeout=timeout_s)
        return [
            SimilarCase(
                id=hit.case.id,
                study_id=hit.case.study_id,
                score=hit.score,
                labels=tuple(hit.case.labels),
                report=hit.case.report,
                image_ref=hit.case.image_ref,
            )
            for hit in answer.results[0].hits
        ]

    def delete(self, ids: Sequence[str], timeout_s: float) -> int:
        """Forget cases; return how many were there. InputError: `ids` is no series of ids, or empty."""
        request = retrieval_pb2.DeleteCasesRequest(ids=_check_ids(ids, "ids"))
        with self._explained(timeout_s):
            answer = self._stub.DeleteCases(request, timeout=timeout_s)
        return int(answer.deleted)

    def read_info(self, timeout_s: float, fingerprint: str = "") -> IndexInfo:
        """Return what the index of a model holds; where it has none, or none is named, what another one holds."""
        with self._explained(timeout_s):
            answer = self._stub.GetInfo(
                retrieval_pb2.GetInfoRequest(fingerprint=fingerprint), timeout=timeout_s
            )
        return IndexInfo(
            answer.fingerprint,
            int(answer.case_count),
            int(answer.dimension),
            answer.index_kind,
            int(answer.damaged_count),
        )

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _connect(self) -> None:
        self._channel = grpc.insecure_channel(self.url, options=CHANNEL_OPTIONS)
        self._stub = retrieval_pb2_grpc.RetrievalStub(self._channel)

    @contextmanager
    def _explained(self, timeout_s: float) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            code = error.code().name
            if code == "UNAVAILABLE":
                # The next call looks the name up anew, for which this channel may wait up to two minutes: gRPC has no
                # option for it. The old one ends with the calls of other threads that use it.
                self._connect()
            if code == "UNIMPLEMENTED" or (code == "UNAVAILABLE" and speaks_http1(self.url)):
                raise make_wrong_service_error(self.url, _SERVER, _SETTING) from error
            raise make_error(
                code,
                error.details() or "",
                server="The retrieval sidecar",
                url=self.url,
                timeout_s=timeout_s,
            ) from error


def check_search(k: int, exclude_studies: Sequence[str]) -> tuple[str, ...]:
    """Return the ids of studies to leave out; InputError unless k is 1 to 1000 and they are a series of strings."""
    whole = isinstance(k, (int, np.integer)) and not isinstance(k, bool)
    if not whole or not 1 <= k <= MAX_K:
        given = k if whole or isinstance(k, float) else f"of type {type(k).__name__}"
        raise InputError(f"k must be a whole number from 1 to {MAX_K}, not {given}.")
    return _check_ids(exclude_studies, "exclude_studies")


def _check_ids(ids: Iterable[str], name: str) -> tuple[str, ...]:
    return tuple(require_text(text, f"An id in {name}") for text in require_strings(ids, name))
