"""Clients of a Triton in memory. Its modules lie beside the tests, which import them by name."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_inference import Client, Server
from fake_triton import FakeRetrieval, FakeTriton

from client import CxrClient
from client.channel import ChannelSettings
from client.triton import TritonTransport


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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """The state of the Triton that every connection of a transport reaches."""
    server = Server()
    monkeypatch.setattr(Client, "server", server, raising=False)
    monkeypatch.setattr("client.channel.triton.InferenceServerClient", Client)
    return server


@pytest.fixture
def connect(server: Server):
    """A function that makes a transport to `server`; none of them leaves a region."""
    opened = []

    def connect(url: str = "127.0.0.1:8001", **settings) -> TritonTransport:
        opened.append(TritonTransport(url, ChannelSettings(**settings)))
        return opened[-1]

    yield connect
    for transport in opened:
        transport.close()
    assert not server.regions
