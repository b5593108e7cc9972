"""Health over HTTPS: plain text is not answered, and one that says nothing does not block the others."""

import contextlib
import http.client
import socket
import ssl
import time

import pytest

from contract.protection import Protection
from serving.health import HealthServer
from serving.ports import Ports


@pytest.fixture
def port(certificates):
    number = Ports.free().http
    context = Protection(certificates / "good", require_client=True).make_context()
    server = HealthServer(number, {None: True, "predict_text": False}.get, context=context)
    yield number
    server.close()


def ask(port: int, certificates, path: str = "/v2/health/ready") -> int:
    trust = ssl.create_default_context(cafile=certificates / "good" / "ca.crt")
    connection = http.client.HTTPSConnection("localhost", port, timeout=5, context=trust)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_health_over_https_answers_no_plain_text(port, certificates):
    for _ in range(2):
        assert ask(port, certificates) == 200
        assert ask(port, certificates, "/v2/models/predict_text/ready") == 503
        assert ask(port, certificates, "/v2/models/../../etc/passwd/ready") == 404
        heard = b""
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            contextlib.suppress(ConnectionError),
        ):
            plain.sendall(b"GET /v2/health/ready HTTP/1.0\r\n\r\n")
            while part := plain.recv(4096):
                heard += part
        assert b"HTTP" not in heard


def test_a_client_checks_the_certificate(port):
    stranger = http.client.HTTPSConnection("localhost", port, timeout=5)
    with pytest.raises(ssl.SSLCertVerificationError):
        stranger.request("GET", "/")


def test_connections_without_a_handshake_block_nobody(port, certificates):
    silent = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(100)]
    began = time.monotonic()
    assert ask(port, certificates) == 200
    assert time.monotonic() - began < 5
    for connection in silent:
        connection.close()
