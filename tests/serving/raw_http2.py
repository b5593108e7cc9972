"""gRPC calls byte by byte, as no client library would send them (RFC 9113, RFC 7541)."""

import contextlib
import socket

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_MESSAGE = b"\0" * 5


def make_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return head + payload


def make_call(stream: int, message: bytes, *headers: "tuple[bytes, bytes]") -> bytes:
    """Return the frames of one call, with the headers that every call has and the given ones."""
    usual = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"), (b"te", b"trailers")]
    usual += [(b"content-type", b"application/grpc")]
    # Names before a pseudo-header are an error, so the given ones that begin with ":" come first.
    ordered = sorted([*usual, *headers], key=lambda pair: not pair[0].startswith(b":"))
    block = b"".join(b"\0" + encode(name) + encode(value) for name, value in ordered)
    return make_frame(1, 4, stream, block) + make_frame(0, 1, stream, message)


def encode(text: bytes) -> bytes:
    """Return a string of HPACK (RFC 7541, section 5.2) of less than 127 bytes."""
    assert len(text) < 127
    return bytes([len(text)]) + text


def send_raw(port: int, *headers: "tuple[bytes, bytes]") -> None:
    """Send one call with an empty message, and wait for the answer or the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(PREFACE + make_frame(4, 0, 0, b""))
        connection.sendall(make_call(1, EMPTY_MESSAGE, *headers))
        with contextlib.suppress(OSError):
            while connection.recv(65536):
                pass
