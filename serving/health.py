"""Health over HTTP or HTTPS: four paths, only GET.

HTTPS asks for no client certificate, because load balancers and Kubernetes have none. The answers hold only whether the
models infer.

One ordinary POST can crash the HTTP front end of Triton 2.51, so this server replaces it on the HTTP port:

    GET /v2/health/live              200 while `cxr serve` runs
    GET /v2/health/ready             200 if the last real inference of every model succeeded, else 503
    GET /v2/models/NAME/ready        the same of predict_study, predict_image or predict_text
    GET /v2/models/NAME/versions/V/ready
"""

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Final

from contract.errors import ConfigError
from serving.ports import LOOPBACK

_MODEL: Final = re.compile(r"/v2/models/([A-Za-z0-9_]{1,100})(?:/versions/[0-9]{1,18})?/ready")
_TIMEOUT_S: Final = 2.0  # for a connection, from its first byte to its last
_AT_ONCE: Final = 64  # connections; a further one closes the oldest, so slow clients do not block others
_MAX_LINE: Final = 4096  # bytes of a request line or a header

Answers = Callable[
    [str | None], bool | None
]  # model (None for all) -> whether it answers; None if there is no such model


class HealthServer:
    """Answers health requests from a few threads until `close`."""

    def __init__(
        self, port: int, answers: Answers, *, host: str = LOOPBACK, context: ssl.SSLContext | None = None
    ) -> None:
        """Listen.

        Args:
            port: TCP port.
            answers: Says whether a model infers.
            host: Address to listen on.
            context: TLS; None: plain HTTP.

        Raises:
            ConfigError: The port cannot be used.
        """
        handler = type("Handler", (_Handler,), {"answers": staticmethod(answers)})
        try:
            make = _Server if ":" not in host else _Server6
            self._server = make((host, port), handler, context)
        except OSError as error:
            raise ConfigError(f"Port {port} on {host} cannot be used: {error.strerror}.") from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="cxr-health", daemon=True
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
        request.settimeout(_TIMEOUT_S)
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
        timer = threading.Timer(_TIMEOUT_S, _cut, (request,))
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


class _Handler(BaseHTTPRequestHandler):
    answers: Answers
    protocol_version = "HTTP/1.0"  # one request per connection
    server_version = "cxr-serve"
    sys_version = ""
    timeout = _TIMEOUT_S

    def setup(self) -> None:
        super().setup()
        read = self.rfile.readline
        self.rfile.readline = lambda size=-1: read(min(size, _MAX_LINE) if size > 0 else _MAX_LINE)  # type: ignore

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/v2/health/live":
            self._reply(HTTPStatus.OK)
        elif path == "/v2/health/ready":
            self._reply(_to_status(self.answers(None)))
        elif match := _MODEL.fullmatch(path):
            self._reply(_to_status(self.answers(match[1])))
        else:
            self._reply(HTTPStatus.NOT_FOUND)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self._reply(HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code))

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _reply(self, status: HTTPStatus) -> None:
        if self.request_version == "HTTP/0.9":
            return
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()


def _to_status(answers: bool | None) -> HTTPStatus:
    if answers is None:
        return HTTPStatus.NOT_FOUND
    return HTTPStatus.OK if answers else HTTPStatus.SERVICE_UNAVAILABLE


def _cut(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)
