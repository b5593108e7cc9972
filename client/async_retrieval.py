"""Requests to the retrieval sidecar from an event loop. The rules are those of `client.retrieval_core`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.cases import ListedCase
from client.event_loop import LoopOwner
from client.retrieval_core import (
    CHANNEL,
    NO_OPTIONS,
    Found,
    IndexInfo,
    RetrievalCore,
    Stored,
    StoredCase,
    make_stub,
)
from client.search_options import SearchOptions
from client.steps import run_async
from contract.connection import PLAIN, Connection
from contract.proto import retrieval_pb2


class AsyncRetrievalTransport(RetrievalCore):
    """A connection to one sidecar. Several tasks of one event loop may use it at once."""

    def __init__(self, url: str, connection: Connection = PLAIN) -> None:
        """See `client.retrieval_core.RetrievalCore`."""
        super().__init__(url, connection)
        connection.make_credentials()  # a wrong file is an error at once
        self._owner = LoopOwner()

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

    async def list_page(self, request: retrieval_pb2.ListCasesRequest, timeout_s: float) -> list[ListedCase]:
        """Return the next page of stored cases; see `client.retrieval.RetrievalTransport.list_page`."""
        return await run_async(self._list_page_in_steps(request, timeout_s))

    async def close(self) -> None:
        """Close all connections, which cancels the running requests here and on the server.

        A later request is a CancelledError.
        """
        self._closed = True
        self._forget_stub()
        for stub in list(self._forgotten):
            await stub.channel.close()

    def _open_stub(self) -> Any:
        self._require_open()
        self._owner.require()
        if self._stub is None:
            self._stub = make_stub(self._connection.open_async_channel(self.url, CHANNEL))
        return self._stub
