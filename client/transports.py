"""What a client needs of its connections. The blocking ones return answers, those of asyncio awaitables of them."""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from client.cases import ListedCase
from client.channel import Calls
from client.retrieval_core import Found, IndexInfo, Stored, StoredCase
from client.search_options import SearchOptions
from client.served import ServedModel
from client.triton_core import Answer
from contract.proto import retrieval_pb2


class Triton(Protocol):
    """One Triton: a `client.triton.TritonTransport`, or the one of `client.async_triton`."""

    @property
    def url(self) -> str:
        """The address, host:port."""

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        timeout_s: float,
        *,
        calls: Calls | None = None,
    ) -> Answer | Awaitable[Answer]:
        """Run one served model."""

    def read_model(
        self,
        timeout_s: float,
        model: str = "predict_study",
        version: str = "",
        *,
        calls: Calls | None = None,
    ) -> ServedModel | Awaitable[ServedModel]:
        """Return the facts about a served model."""

    def check_ready(self, timeout_s: float) -> str | Awaitable[str | None] | None:
        """Return None if the server and all its models are ready, else the reason."""


class Retrieval(Protocol):
    """One sidecar: a `client.retrieval.RetrievalTransport`, or the one of `client.async_retrieval`."""

    @property
    def url(self) -> str:
        """The address, host:port."""

    def add(
        self, fingerprint: str, cases: Sequence[StoredCase], timeout_s: float
    ) -> Stored | Awaitable[Stored]:
        """Store all cases, or none."""

    def search(
        self,
        fingerprint: str,
        embedding: NDArray[np.float32],
        k: int,
        exclude_studies: Sequence[str],
        timeout_s: float,
        options: SearchOptions = ...,
        text: str = "",
    ) -> Found | Awaitable[Found]:
        """Return the most similar cases."""

    def delete(self, ids: Sequence[str], timeout_s: float) -> int | Awaitable[int]:
        """Delete stored cases."""

    def read_info(self, timeout_s: float, fingerprint: str = "") -> IndexInfo | Awaitable[IndexInfo]:
        """Return facts about the index of a model."""

    def list_page(
        self, request: retrieval_pb2.ListCasesRequest, timeout_s: float
    ) -> list[ListedCase] | Awaitable[list[ListedCase]]:
        """Return the next page of stored cases, and let the request ask for the page behind it."""
