"""Calls to the retrieval sidecar over gRPC: a deadline on every call, errors of this project."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray

from client.results import SimilarCase
from client.status import make_error
from contract.proto import retrieval_pb2, retrieval_pb2_grpc


@dataclass(frozen=True)
class StoredCase:
    """A case with its embedding, (D,) float32 of unit length, on its way into the store."""

    id: str
    study_id: str
    embedding: NDArray[np.float32]
    labels: tuple[str, ...]
    report: str
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


class RetrievalTransport:
    """One address of the sidecar; may be used by several threads at once."""

    def __init__(self, url: str) -> None:
        """Describe the server at `url`, host:port; nothing is sent yet."""
        self.url = url
        self._channel = grpc.insecure_channel(url, options=[("grpc.enable_http_proxy", 0)])
        self._stub = retrieval_pb2_grpc.RetrievalStub(self._channel)

    def add(self, fingerprint: str, cases: Sequence[StoredCase], timeout_s: float) -> int:
        """Store cases, all or none, replacing those of the same id; return how many.

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
        return int(answer.added + answer.replaced)

    def search(
        self,
        fingerprint: str,
        embedding: NDArray[np.float32],
        k: int,
        exclude_studies: Sequence[str],
        timeout_s: float,
    ) -> list[SimilarCase]:
        """Return the k nearest cases to one embedding, best first; errors as in `add`."""
        request = retrieval_pb2.SearchRequest(
            fingerprint=fingerprint,
            queries=[retrieval_pb2.Query(embedding=embedding.tolist())],
            k=k,
            exclude_study_ids=exclude_studies,
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
        """Forget cases; return how many were there."""
        with self._explained(timeout_s):
            answer = self._stub.DeleteCases(retrieval_pb2.DeleteCasesRequest(ids=ids), timeout=timeout_s)
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

    @contextmanager
    def _explained(self, timeout_s: float) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise make_error(
                error.code().name,
                error.details() or "",
                server="The retrieval sidecar",
                url=self.url,
                timeout_s=timeout_s,
            ) from error
