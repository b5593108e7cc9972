"""`AsyncCxrClient`: predictions, similar cases and indexing from an event loop.

async with AsyncCxrClient("127.0.0.1:8001", "127.0.0.1:8005") as client:
    prediction = await client.predict("chest.dcm", "Small left effusion.")

The operations are those of `client.core`.
"""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.async_retrieval import AsyncRetrievalTransport
from client.async_triton import AsyncTritonTransport
from client.cases import CaseInput, IndexResult, ListedCase, SearchResult, SimilarCase
from client.channel import Calls, ChannelSettings, Compression
from client.core import IN_FLIGHT, ClientCore
from client.health import Health
from client.indexing import Embedded
from client.inputs import ReportSource, StudyImages
from client.lock import AsyncLock
from client.many import Outcome, predict_in_order_async
from client.prediction import BatchPrediction, Prediction
from client.prompt_scores import FindingScore
from client.retrieval_core import NO_OPTIONS, IndexInfo, make_list_request
from client.search_options import SearchOptions
from client.served import ServedModel
from client.steps import run_async
from contract.connection import TLS, resolve_addresses, resolve_connection
from contract.proto import retrieval_pb2


class AsyncCxrClient(ClientCore):
    """Client of Triton and the retrieval sidecar for an event loop. Several tasks of the loop may use it at once.

    Its methods are those of `client.client.CxrClient`, with the same arguments, results and errors. They differ from it
    in five points:

    - Cancelling a task cancels its request here and on the server. A deadline is a `DeadlineError`, as there.
    - Files and radiographs are read in a thread, so the loop stays free.
    - Tensors travel over gRPC: the client does not use shared memory.
    - It makes no explanations, which need no server, and no backups.
    - It belongs to the event loop of its first call. A call in another loop is a ConfigError.
    """

    def __init__(
        self,
        triton_url: str | Sequence[str] | None = None,
        retrieval_url: str | Sequence[str] | None = None,
        timeout_s: float = 10.0,
        *,
        compression: Compression = "none",
        keepalive_s: float | None = None,
        shrink: bool = True,
        tls: TLS | Literal[False] | None = None,
        token: str | None = None,
        retries: int | None = None,
    ) -> None:
        """Set the addresses. The first call connects. Arguments and errors are those of `CxrClient`."""
        connection = resolve_connection(tls, token)
        settings = ChannelSettings("grpc", compression, keepalive_s, connection)
        self._tritons = [
            AsyncTritonTransport(url, settings) for url in resolve_addresses(triton_url, "triton")
        ]
        self._sidecars = [
            AsyncRetrievalTransport(url, connection) for url in resolve_addresses(retrieval_url, "retrieval")
        ]
        super().__init__(
            self._tritons,
            self._sidecars,
            timeout_s,
            shrink=shrink,
            retries=retries,
            make_lock=AsyncLock,
        )

    async def predict(
        self,
        image: StudyImages | None = None,
        report: ReportSource | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Prediction:
        """Predict the 22 finding categories of radiographs, a report, or both; see `CxrClient.predict`."""
        return await run_async(self._predict_in_steps(image, report, timeout_s))

    async def predict_tensors(
        self,
        pixels: NDArray[np.uint8] | None = None,
        input_ids: NDArray[np.int64] | None = None,
        attention_mask: NDArray[np.int64] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> BatchPrediction:
        """Predict a batch of preprocessed cases; see `CxrClient.predict_tensors`."""
        return await run_async(self._predict_tensors_in_steps(pixels, input_ids, attention_mask, timeout_s))

    def predict_many(
        self,
        cases: Iterable[CaseInput] | AsyncIterable[CaseInput],
        *,
        in_flight: int = IN_FLIGHT,
        timeout_s: float | None = None,
        keep_going: bool = False,
    ) -> AsyncGenerator[tuple[CaseInput, Outcome], None]:
        """Predict many cases with several requests in flight; see `CxrClient.predict_many`.

        Args:
            cases: The cases. The loop takes them from a plain iterable, which should not block; files of a case are
                read in a thread.
            in_flight: As in `CxrClient.predict_many`.
            timeout_s: As in `CxrClient.predict_many`.
            keep_going: As in `CxrClient.predict_many`.

        Yields:
            As in `CxrClient.predict_many`. To stop early, close the generator (`contextlib.aclosing`): that cancels the
            requests in flight.
        """
        limit_s = self._limit(timeout_s)

        async def predict(case: CaseInput, calls: Calls) -> Outcome:
            return await run_async(self._predict_case(case, limit_s, calls, keep_going))

        return predict_in_order_async(predict, cases, in_flight)

    async def search(
        self,
        image: StudyImages | None = None,
        report: ReportSource | None = None,
        *,
        k: int = 5,
        exclude_studies: Sequence[str] = (),
        options: SearchOptions = NO_OPTIONS,
        timeout_s: float | None = None,
    ) -> SearchResult:
        """Find the stored cases that are most similar to a query; see `CxrClient.search`."""
        return await run_async(self._search_in_steps(image, report, k, exclude_studies, options, timeout_s))

    async def search_embedding(
        self,
        embedding: NDArray[np.float32],
        *,
        fingerprint: str,
        k: int = 5,
        exclude_studies: Sequence[str] = (),
        options: SearchOptions = NO_OPTIONS,
        timeout_s: float | None = None,
    ) -> list[SimilarCase]:
        """Find the stored cases that are most similar to an embedding; see `CxrClient.search_embedding`."""
        return await run_async(
            self._search_embedding_in_steps(embedding, fingerprint, k, exclude_studies, options, timeout_s)
        )

    async def score_findings(
        self, findings: Sequence[str], prediction: Prediction, *, timeout_s: float | None = None
    ) -> tuple[FindingScore, ...]:
        """Score findings in free words for a prediction; see `CxrClient.score_findings`."""
        return await run_async(self._score_findings_in_steps(findings, prediction, timeout_s))

    async def index(
        self,
        cases: Iterable[CaseInput] | AsyncIterable[CaseInput],
        *,
        progress: Callable[[int], None] | None = None,
        timeout_s: float | None = None,
        keep_going: bool = False,
    ) -> IndexResult:
        """Embed cases with the served model and store them for searches; see `CxrClient.index`."""
        limit_s = self._limit(timeout_s)

        async def embed(case: CaseInput, calls: Calls) -> Embedded:
            return await run_async(self._embed_case(case, limit_s, calls, keep_going))

        async with aclosing(predict_in_order_async(embed, cases, IN_FLIGHT)) as outcomes:

            async def take() -> Embedded | None:
                outcome = await anext(outcomes, None)
                return None if outcome is None else outcome[1]

            return await run_async(self._index_in_steps(take, progress, limit_s, keep_going))

    async def info(self, *, timeout_s: float | None = None) -> ServedModel:
        """Return the facts about the model that is served now; see `CxrClient.info`."""
        return await run_async(self._info_in_steps(timeout_s))

    async def index_info(self, *, timeout_s: float | None = None) -> IndexInfo:
        """Return what the index is; see `CxrClient.index_info`."""
        return await run_async(self._index_info_in_steps(timeout_s))

    def list_cases(
        self,
        *,
        fingerprint: str = "",
        exclude_studies: Sequence[str] = (),
        options: SearchOptions = NO_OPTIONS,
        reports: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncIterator[ListedCase]:
        """Iterate over the stored cases of one model; see `CxrClient.list_cases`."""
        limit_s = self._limit(timeout_s)
        self._require_one_retrieval()
        request = make_list_request(fingerprint, exclude_studies, options, reports=reports)
        return self._iterate_pages(request, limit_s)

    async def _iterate_pages(
        self, request: retrieval_pb2.ListCasesRequest, limit_s: float
    ) -> AsyncIterator[ListedCase]:
        is_first = True
        while is_first or request.page_token:
            for case in await run_async(self._list_page_in_steps(request, limit_s)):
                yield case
            is_first = False

    async def delete(self, ids: Sequence[str], *, timeout_s: float | None = None) -> int:
        """Delete stored cases for good; return how many there were. See `CxrClient.delete`."""
        return await run_async(self._delete_in_steps(ids, timeout_s))

    async def health(self, *, timeout_s: float | None = None) -> Health:
        """Check both servers; see `CxrClient.health`."""
        return await run_async(self._health_in_steps(timeout_s))

    async def close(self) -> None:
        """Close all connections, which cancels the running requests. A later call is a CancelledError."""
        self._closed = True
        for triton in self._tritons:
            await triton.close()
        for sidecar in self._sidecars:
            await sidecar.close()

    async def __aenter__(self) -> "AsyncCxrClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
