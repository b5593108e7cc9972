"""What the transports to Triton and to the sidecar have in common: an address, and the causes of a lost connection."""

import asyncio
import time
import weakref
from abc import ABC
from collections.abc import Callable
from typing import Any, ClassVar

from client.event_loop import is_task_cancelled
from client.status import make_cancelled_error, make_closed_error, make_wrong_service_error
from client.steps import Steps, ask, work
from contract.address import check_address, speaks_http1
from contract.connection import Connection
from contract.errors import ConfigError, CxrError
from contract.tls_trouble import find_tls_error


class TransportCore(ABC):
    """The connections to one server. A subclass adds its requests.

    Attributes:
        name: "Triton" or "the retrieval sidecar".
        service: What should answer at the address.
        setting: The setting that holds the address.
        example: A valid address.
        url: The address, host:port.
    """

    name: ClassVar[str]
    service: ClassVar[str]
    setting: ClassVar[str]
    example: ClassVar[str]

    def __init__(self, url: str, connection: Connection) -> None:
        """Set the address, host:port, with TLS and token. The first request connects.

        Raises:
            ConfigError: The address is not valid, or a token would travel to it as plain text.
        """
        self.url = check_address(url, server=self.service, setting=self.setting, example=self.example)
        connection.require_private(url, self.setting)
        self._connection = connection
        self._closed = False
        # Forgotten connections close when their last request ends, or with the transport.
        self._forgotten: weakref.WeakSet[Any] = weakref.WeakSet()

    def _require_open(self) -> None:
        """Raise CancelledError if the transport was closed."""
        if self._closed:
            raise make_closed_error(self.url)

    def _ask(self, call: Callable[..., Any], *arguments: Any, lane: Any = None, **options: Any) -> Steps[Any]:
        """Ask the server. If the connection was closed meanwhile, raise the project's error.

        gRPC raises a ValueError for a request on a closed channel, and asyncio's CancelledError for a running one.
        `lane` is the connection if it may be closed without the transport.
        """
        try:
            return (yield from ask(call, *arguments, **options))
        except (ValueError, asyncio.CancelledError) as error:
            is_closed = self._closed or (lane is not None and lane.closed)
            if not is_closed or (isinstance(error, asyncio.CancelledError) and is_task_cancelled()):
                raise
            raise make_cancelled_error(self.url) from error

    def _find_other_cause(self, end: float) -> Steps[CxrError | None]:
        """Return the error for a server that answers, but not as it should with these settings; None without one.

        What this asks ends at `end` (`time.monotonic`).
        """
        if (left_s := end - time.monotonic()) > 0:
            trouble = yield from work(find_tls_error, self.url, self._connection, self.name, left_s)
            if trouble is not None:
                return trouble
        if (left_s := end - time.monotonic()) > 0 and (yield from work(speaks_http1, self.url, left_s)):
            return self._make_wrong_service_error()
        return None

    def _make_wrong_service_error(self) -> ConfigError:
        """Return the error for an address at which another service answers."""
        return make_wrong_service_error(self.url, self.service, self.setting)
