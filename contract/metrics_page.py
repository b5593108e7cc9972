"""The page of Prometheus metrics that the sidecar and the relay serve, over HTTP or HTTPS.

    GET /metrics     this server's own metrics
    any other path   a page of another server that is passed on, if the server names one

The page holds counts, times and sizes. It holds no text, no id and no name of a file, but it tells how much is done,
and when. So it follows the rules of the server's own port. On a network it needs TLS and tokens
(`contract.protection`), and client certificates if the server requires them. A token of the role `metrics` may read
the page and nothing else.
"""

import argparse
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from contract.access import AUTHORIZATION, Access, Role
from contract.http_server import BackgroundServer, Handler
from contract.protection import UNPROTECTED, Protection

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

LOOPBACK: Final = "127.0.0.1"
PATH: Final = "/metrics"
# Seconds, from half a millisecond to the longest deadline.
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_STATUSES: Final = {
    "UNAUTHENTICATED": HTTPStatus.UNAUTHORIZED,
    "PERMISSION_DENIED": HTTPStatus.FORBIDDEN,
}

Page = Callable[
    [], bytes | None
]  # the page of another server in Prometheus's text format; None: it does not answer


class MetricsPage:
    """Serves the metrics of a registry from a few threads until `close`."""

    def __init__(
        self,
        registry: "CollectorRegistry",
        port: int,
        *,
        host: str = LOOPBACK,
        protection: Protection = UNPROTECTED,
        passed_on: Mapping[str, Page] | None = None,
    ) -> None:
        """Listen.

        Args:
            registry: Holds the metrics.
            port: TCP port.
            host: Address to listen on.
            protection: TLS, client certificates and tokens.
            passed_on: Pages of other servers, by path.

        Raises:
            ConfigError: The port cannot be used, a file of `protection` is missing or wrong, or a network can reach the
                address and it lacks TLS or tokens.
        """
        from prometheus_client import disable_created_metrics

        protection.check(host)
        disable_created_metrics()  # type: ignore[no-untyped-call]
        values = {
            "registry": registry,
            "access": protection.make_access(),
            "passed_on": dict(passed_on or {}),
        }
        handler = type("MetricsHandler", (_Handler,), values)
        self._server = BackgroundServer(host, port, handler, _make_context(protection))

    def close(self) -> None:
        """Stop listening."""
        self._server.close()


class _Handler(Handler):
    registry: "CollectorRegistry"
    access: Access
    passed_on: dict[str, Page]

    def respond(self) -> None:
        sent = [(AUTHORIZATION, value) for value in self.headers.get_all(AUTHORIZATION, [])]
        if denial := self.access.check(sent, Role.METRICS, "metrics"):
            self.reply(_STATUSES[denial.code], headers={"WWW-Authenticate": "Bearer"})
            return
        path = self.path.partition("?")[0]
        if path == PATH:
            from prometheus_client.exposition import choose_encoder

            encode, kind = choose_encoder(self.headers.get("Accept", ""))
            self.reply(HTTPStatus.OK, encode(self.registry), {"Content-Type": kind})
        elif path not in self.passed_on:
            self.reply(HTTPStatus.NOT_FOUND)
        elif (page := self.passed_on[path]()) is None:
            self.reply(HTTPStatus.BAD_GATEWAY)
        else:
            self.reply(HTTPStatus.OK, page, {"Content-Type": _TEXT_TYPE})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the metrics page to a parser."""
    parser.add_argument(
        "--metrics-port",
        type=_parse_port,
        default=0,
        help="Port of the Prometheus metrics; 0: there are none. (%(default)s)",
    )
    parser.add_argument(
        "--metrics-host",
        default=LOOPBACK,
        help="Address of the metrics. One that a network can reach needs --tls-dir and --tokens. (%(default)s)",
    )


@contextmanager
def open_page(
    options: argparse.Namespace,
    registry: "CollectorRegistry",
    protection: Protection,
    passed_on: Mapping[str, Page] | None = None,
) -> Iterator[None]:
    """Serve the metrics page that a parsed command line asks for, if it asks for one.

    Raises:
        ConfigError: As in `MetricsPage`.
    """
    if not options.metrics_port:
        yield
        return
    page = MetricsPage(
        registry,
        options.metrics_port,
        host=options.metrics_host.strip("[]"),
        protection=protection,
        passed_on=passed_on,
    )
    try:
        yield
    finally:
        page.close()


def _parse_port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("must be 0 to 65535")
    return port


def _make_context(protection: Protection) -> ssl.SSLContext | None:
    context = protection.make_context()
    if context is not None and protection.require_client:
        context.verify_mode = ssl.CERT_REQUIRED
    return context
