"""The health page that stands in for Triton's: its paths, and clients that do not ask as they should."""

import contextlib
import http.client
import socket
import threading
import time

import pytest

from contract.errors import ConfigError
from serving.health import HealthServer
from serving.ports import Ports


@pytest.fixture
def health():
    port = Ports.free().http
    server = HealthServer(port, {None: False, "predict_image": True}.get)
    yield port
    server.close()


def ask(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(4096):
            answer += part
    return answer


def test_health_by_path(health):
    for path, status in (
        ("/v2/health/live", 200),
        ("/v2/health/ready", 503),
        ("/v2/models/predict_image/ready", 200),
        ("/v2/models/predict_image/versions/3/ready", 200),
        ("/v2/models/other/ready", 404),
        ("/v2/models/../ready", 404),
        ("/", 404),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", health, timeout=5)
        connection.request("GET", path)
        assert connection.getresponse().status == status, path
        connection.close()


@pytest.mark.parametrize(
    "data",
    [
        b"POST /v2/health/live HTTP/1.1\r\n\r\n",
        b"GET /" + b"x" * 10**5 + b" HTTP/1.1\r\n\r\n",
        b"\0\1\2\r\n\r\n",
    ],
)
def test_other_requests_are_refused(health, data):
    try:
        answer = ask(health, data)
    except ConnectionError:
        answer = b""
    assert not answer.startswith(b"HTTP/1.0 2")
    assert ask(health, b"GET /v2/health/live HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200")


@pytest.mark.alone
def test_a_client_that_sends_a_byte_a_second_is_cut_off(health):
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", health), timeout=10) as slow:
        try:
            while time.monotonic() - began < 9:
                slow.sendall(b"G")
                time.sleep(0.3)
        except OSError:
            pass
    assert time.monotonic() - began < 6


@pytest.mark.alone
def test_many_clients_that_send_a_byte_at_a_time_keep_nobody_out(health):
    """They come again as soon as they are cut off; every question between them is answered."""
    end = time.monotonic() + 3

    def dawdle() -> None:
        while time.monotonic() < end:
            with (
                contextlib.suppress(OSError),  # cut off
                socket.create_connection(("127.0.0.1", health), timeout=5) as slow,
            ):
                while time.monotonic() < end:
                    slow.sendall(b"G")
                    time.sleep(0.1)

    threads = [threading.Thread(target=dawdle) for _ in range(100)]
    for thread in threads:
        thread.start()
    answers = []
    while time.monotonic() < end - 0.5:
        answers.append(ask(health, b"GET /v2/health/live HTTP/1.0\r\n\r\n")[:12])
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert len(answers) > 5
    assert set(answers) == {b"HTTP/1.0 200"}


def test_a_port_in_use_is_named(health):
    with pytest.raises(ConfigError, match=f"Port {health} on 127.0.0.1 cannot be used"):
        HealthServer(health, lambda _model: True)
