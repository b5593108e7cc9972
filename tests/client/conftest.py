"""A client of a Triton in memory. Its module lies beside the tests, which import it by name."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_triton import FakeRetrieval, FakeTriton

from client import CxrClient


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> FakeTriton:
    """The Triton of every client that a test makes."""
    triton = FakeTriton()
    monkeypatch.setattr("client.client.TritonTransport", lambda _url, _settings: triton)
    return triton


@pytest.fixture
def retrieval(monkeypatch: pytest.MonkeyPatch) -> FakeRetrieval:
    """The sidecar of every client that a test makes."""
    retrieval = FakeRetrieval()
    monkeypatch.setattr("client.client.RetrievalTransport", lambda _url, _connection: retrieval)
    return retrieval


@pytest.fixture
def client(triton: FakeTriton):
    """A client of `triton`."""
    with CxrClient() as client:
        yield client
