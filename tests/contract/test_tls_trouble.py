"""The probe that asks why a client and a server do not come together over TLS."""

import gc
import socket
import struct
import threading
import time
from contextlib import contextmanager

import pytest

from contract import tls_trouble
from contract.connection import TLS, Connection
from contract.errors import ConfigError
from contract.tls_trouble import find_tls_error


@contextmanager
def serve_resets():
    """The port of a server that resets every connection as soon as it is open, as one that is killed does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reset() -> None:
            while True:
                try:
                    taken, _ = listener.accept()
                except OSError:  # the test has ended
                    return
                time.sleep(0.02)  # a reset within connect() counts as no connection
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                taken.close()

        thread = threading.Thread(target=reset)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture
def slow_probe(monkeypatch):
    """Let a probe wait before each step, so that the reset has arrived."""

    def wait(end: float) -> float:
        time.sleep(0.05)
        return end - time.monotonic()

    monkeypatch.setattr(tls_trouble, "limit_probe", wait)


def test_a_server_that_resets_the_connection_leaves_no_socket_open(slow_probe):
    # An open socket is a warning, and pytest makes an error of it.
    with serve_resets() as port:
        url = f"127.0.0.1:{port}"
        assert find_tls_error(url, Connection(), "Triton") is None
        error = find_tls_error(url, Connection(TLS()), "Triton")
        gc.collect()
    assert isinstance(error, ConfigError)
    assert "requires a client certificate" in str(error)


def test_every_address_of_a_host_is_tried(slow_probe, monkeypatch):
    real, asked = socket.getaddrinfo, []

    def resolve(host, port, *arguments, **options):
        asked.append(host)
        silent = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", port))
        return [silent, *real("127.0.0.1", port, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with serve_resets() as port:
        error = find_tls_error(f"triton.lab:{port}", Connection(TLS()), "Triton")
    assert isinstance(error, ConfigError)  # only the second address answers
    assert asked == ["triton.lab"]
