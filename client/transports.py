"""The connections of a client. Those of the blocking client return answers, those of asyncio awaitables of them."""

from typing import TypeAlias

from client.async_retrieval import AsyncRetrievalTransport
from client.async_triton import AsyncTritonTransport
from client.retrieval import RetrievalTransport
from client.triton import TritonTransport

Triton: TypeAlias = TritonTransport | AsyncTritonTransport
Retrieval: TypeAlias = RetrievalTransport | AsyncRetrievalTransport
