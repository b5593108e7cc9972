"""Health over HTTP or HTTPS: four paths, only GET.

HTTPS asks for no client certificate, because load balancers and Kubernetes have none. The answers hold only whether the
models infer.

One ordinary POST can crash the HTTP front end of Triton 2.51, so this server replaces it on the HTTP port:

    GET /v2/health/live              200 while `cxr serve` runs
    GET /v2/health/ready             200 if the last real inference of every model succeeded, else 503
    GET /v2/models/NAME/ready        the same of predict_study, predict_image or predict_text
    GET /v2/models/NAME/versions/V/ready
"""

import re
import ssl
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from contract.http_server import BackgroundServer, Handler
from serving.ports import LOOPBACK

_MODEL: Final = re.compile(r"/v2/models/([A-Za-z0-9_]{1,100})(?:/versions/[0-9]{1,18})?/ready")

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
        handler = type("HealthHandler", (_Handler,), {"answers": staticmethod(answers)})
        self._server = BackgroundServer(host, port, handler, context)

    def close(self) -> None:
        """Stop listening."""
        self._server.close()


class _Handler(Handler):
    answers: Answers

    def respond(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/v2/health/live":
            self.reply(HTTPStatus.OK)
        elif path == "/v2/health/ready":
            self.reply(_to_status(self.answers(None)))
        elif match := _MODEL.fullmatch(path):
            self.reply(_to_status(self.answers(match[1])))
        else:
            self.reply(HTTPStatus.NOT_FOUND)


def _to_status(answers: bool | None) -> HTTPStatus:
    if answers is None:
        return HTTPStatus.NOT_FOUND
    return HTTPStatus.OK if answers else HTTPStatus.SERVICE_UNAVAILABLE
