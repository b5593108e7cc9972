"""A small HTTP or HTTPS server for GET requests that strangers can reach. Health and metrics use it.

Each connection has its own thread and one request. A slow or silent client loses its connection after 2 s. The oldest
of too many connections is closed. So slow clients do not block others.
"""

import contextlib
import socket
import ssl
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Final

from contract.errors import ConfigError

TIMEOUT_S: Final = 2.0  # for a connection, from its first byte to its last
_AT_ONCE: Final = 64  # connections
_MAX_LINE: Final = 4096  # bytes of a request line or a header


class Handler(BaseHTTPRequestHandler):
    """Answers one request. A subclass has `respond`, which calls `reply`."""

    protocol_version = "HTTP/1.0"  # one request per connection
    server_version = "cxr-serve"
    sys_version = ""
    timeout = TIMEOUT_S

    def setup(self) -> None:
        """Limit the length of a line."""
        super().setup()
        read = self.rfile.readline
        self.rfile.readline = lambda size=-1: read(min(size, _MAX_LINE) if size > 0 else _MAX_LINE)  # type: ignore

    def do_GET(self) -> None:
        """Answer a GET request."""
        self.respond()

    def respond(self) -> None:
        """Call `reply` with the answer to `self.path`."""
        raise NotImplementedError

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that is no GET, or none at all, without a page."""
        self.reply(HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code))

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing: strangers could fill the log."""

    def reply(self, status: HTTPStatus, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send the answer."""
        if self.request_version == "HTTP/0.9":
            return
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


class BackgroundServer:
    """Answers requests from a few threads until `close`."""

    def __init__(self, host: str, port: int, handler: type[Handler], context: ssl.SSLContext | None) -> None:
        """Listen.

        Args:
            host: Address to listen on.
            port: TCP port.
            handler: Answers the requests.
            context: TLS; None: plain HTTP.

        Raises:
            ConfigError: The port cannot be used.
        """
        try:
            make = _Server if ":" not in host else _Server6
            self._server = make((host, port), handler, context)
        except OSError as error:
            raise ConfigError(f"Port {port} on {host} cannot be used: {error.strerror}.") from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="cxr-http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(HTTPServer):
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: Any, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._open: list[Any] = []  # connections, the oldest first
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        socket.socket.bind(
            self.socket, self.server_address
        )  # HTTPServer's own method would look up the host name
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[Any, Any]:
        request, address = super().get_request()
        if self._context is None:
            return request, address
        request.settimeout(TIMEOUT_S)
        # The handshake comes with the first read, in the connection's own thread.
        return self._context.wrap_socket(request, server_side=True, do_handshake_on_connect=False), address

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._open) >= _AT_ONCE:
                _cut(self._open.pop(0))
            self._open.append(request)
        threading.Thread(target=self._serve, args=(request, client_address), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client has left or was too slow

    def _serve(self, request: Any, client_address: Any) -> None:
        # A timer, because a socket timeout starts again with every byte of a slow client.
        timer = threading.Timer(TIMEOUT_S, _cut, (request,))
        timer.daemon = True
        timer.start()
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            timer.cancel()
            with self._lock:
                if request in self._open:
                    self._open.remove(request)
            self.shutdown_request(request)


class _Server6(_Server):
    address_family = socket.AF_INET6


def _cut(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)
