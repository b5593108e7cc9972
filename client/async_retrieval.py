"""Requests to the retrieval sidecar from an event loop. The rules are those of `client.retrieval_core`."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.cases import ListedCase
from client.retrieval_core import (
    CHANNEL,
    NO_OPTIONS,
    Found,
    IndexInfo,
    RetrievalCore,
    Stored,
    StoredCase,
    make_list_request,
    make_stub,
)
from client.search_options import SearchOptions
from client.status import make_cancelled_error
from client.steps import Steps, run_async
from contract.connection import PLAIN, Connection


class AsyncRetrievalTransport(RetrievalCore):
    """A connection to one sidecar. Several tasks of one event loop may use it at once."""

    def __init__(self, url: str, connection: Connection = PLAIN) -> None:
        """See `client.retrieval_core.RetrievalCore`."""
        super().__init__(url, connection)
        connection.make_credentials()  # a wrong file is an error at once
        self._channel: Any = None
        self._stub: Any = None
        self._closed = 0  # times

    async def add(self, fingerprint: str, cases: Sequence[StoredCase], timeout_s: float) -> Stored:
        """Store all cases, or none; see `client.retrieval.RetrievalTransport.add`."""
        return await run_async(self._add_in_steps(fingerprint, cases, timeout_s))

    async def search(
        self,
        fingerprint: str,
        embedding: NDArray[np.float32],
        k: int,
        exclude_studies: Sequence[str],
        timeout_s: float,
        options: SearchOptions = NO_OPTIONS,
        text: str = "",
    ) -> Found:
        """Return the most similar cases; see `client.retrieval.RetrievalTransport.search`."""
        return await run_async(
            self._search_in_steps(fingerprint, embedding, k, exclude_studies, timeout_s, options, text)
        )

    async def delete(self, ids: Sequence[str], timeout_s: float) -> int:
        """Delete stored cases; return how many there were."""
        return await run_async(self._delete_in_steps(ids, timeout_s))

    async def read_info(self, timeout_s: float, fingerprint: str = "") -> IndexInfo:
        """Return facts about the index of a model; see `client.retrieval.RetrievalTransport.read_info`."""
        return await run_async(self._read_info_in_steps(timeout_s, fingerprint))

    async def list_cases(
        self,
        timeout_s: float,
        fingerprint: str = "",
        exclude_studies: Sequence[str] = (),
        options: SearchOptions = NO_OPTIONS,
        *,
        reports: bool = False,
    ) -> AsyncIterator[ListedCase]:
        """Iterate over the cases of a model's index; see `client.retrieval.RetrievalTransport.list_cases`."""
        request = make_list_request(fingerprint, exclude_studies, options, reports=reports)
        is_first = True
        while is_first or request.page_token:
            for case in await run_async(self._list_page_in_steps(request, timeout_s)):
                yield case
            is_first = False

    async def close(self) -> None:
        """Close the connection, which cancels the running requests here and on the server."""
        self._closed += 1
        channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            await channel.close()

    def _ask(self, method: str, request: Any, timeout_s: float, *, is_new: bool = False) -> Steps[Any]:
        """Call a method of the service. A connection that `close` has closed ends it with the project's error."""
        closed = self._closed
        try:
            return (yield from super()._ask(method, request, timeout_s, is_new=is_new))
        except asyncio.CancelledError as error:
            if self._closed == closed:
                raise
            raise make_cancelled_error(self.url) from error

    def _open_stub(self) -> Any:
        if self._stub is None:
            self._channel = self._connection.open_async_channel(self.url, CHANNEL)
            self._stub = make_stub(self._channel)
        return self._stub

    def _connect(self) -> None:
        self._channel = self._stub = None  # the connection closes when its last request ends
