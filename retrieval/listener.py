"""The sidecar's gRPC server, with its health service (grpc.health.v1), TLS and roles.

    Search, GetCase, GetInfo, ListCases    read
    AddCases, DeleteCases                  write
    Backup, and any other call             admin, so that a new one is closed until it is listed here

The health service needs no token: it says only whether the sidecar serves. Its Check reads no message, so that nobody
holds a thread with it; the answer is the same for each name of a service. There is no Watch: ask again.
"""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2

from contract.access import HEALTH_CALLS, Access, Role
from contract.errors import ConfigError
from contract.protection import UNPROTECTED, Protection
from contract.proto import retrieval_pb2_grpc
from contract.search_limits import MAX_MESSAGE_BYTES
from contract.telemetry import Observer
from retrieval.calls import CallInterceptor
from retrieval.packed import make_packed_handler
from retrieval.service import SERVICE_NAME, RetrievalService

GRACE_S: Final = 4.0  # for running requests; the process that stops the sidecar may kill it after 5 s
_WORKERS: Final = 64  # twice the number of waiting searches, so that health checks are answered meanwhile
_MAX_RPCS: Final = 512
_MAX_STREAMS: Final = 100  # calls of one connection at a time
_HEALTH: Final = HEALTH_CALLS.strip("/")
_ROLES: Final = {
    f"/{SERVICE_NAME}/{name}": role
    for role, names in {
        Role.READ: ("Search", "GetCase", "GetInfo", "ListCases"),
        Role.WRITE: ("AddCases", "DeleteCases"),
        Role.ADMIN: ("Backup",),
    }.items()
    for name in names
}

_NAMES: Final = {path: path.rpartition("/")[2] for path in _ROLES}  # in the metrics


class RoleInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls whose token lacks the role, before their handler reads the message."""

    def __init__(self, access: Access) -> None:
        """Take what decides about tokens."""
        self._access = access

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the handler of a call, or one that refuses it. None: there is no such call."""
        handler, method = continuation(handler_call_details), handler_call_details.method
        if handler is None or method.startswith(HEALTH_CALLS):
            return handler
        needed = _ROLES.get(method, Role.ADMIN)
        denial = self._access.check(handler_call_details.invocation_metadata or (), needed, method)
        if denial is None:
            return handler

        def refuse(_: Any, context: Any) -> None:
            context.abort(grpc.StatusCode[denial.code], denial.message)

        return grpc.stream_stream_rpc_method_handler(refuse)  # reads no message, however large it is


class SidecarServer:
    """The gRPC server with the retrieval and the health service. It listens at once."""

    def __init__(
        self,
        service: RetrievalService,
        address: str,
        protection: Protection = UNPROTECTED,
        observer: Observer | None = None,
    ) -> None:
        """Listen on `address` ("host:port"; port 0 chooses a free one), with the state NOT_SERVING.

        `observer` writes lines and spans of calls.

        Raises:
            ConfigError: The address is in use or does not belong to this machine, a file of `protection` is missing or
                wrong, or a network can reach the address and it lacks TLS or tokens.
        """
        host = require_usable(address)
        protection.check(host.strip("[]"))
        credentials = protection.make_credentials()
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="rpc")
        self._server = grpc.server(
            self._workers,
            maximum_concurrent_rpcs=_MAX_RPCS,
            interceptors=[
                CallInterceptor(_NAMES, service.metrics, observer),
                RoleInterceptor(protection.make_access()),
            ],
            options=[
                ("grpc.so_reuseport", 0),  # otherwise a second server would share the port without an error
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_concurrent_streams", _MAX_STREAMS),
            ],
        )
        self._states = health_pb2.HealthCheckResponse
        self._state = self._states.NOT_SERVING
        check = grpc.stream_unary_rpc_method_handler(
            lambda _messages, _context: self._states(status=self._state),
            response_serializer=self._states.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(_HEALTH, {"Check": check}),
                make_packed_handler(service),  # before the generated handlers
            )
        )
        retrieval_pb2_grpc.add_RetrievalServicer_to_server(service, self._server)
        try:
            port = (
                self._server.add_insecure_port(address)
                if credentials is None
                else self._server.add_secure_port(address, credentials)
            )
        except RuntimeError as error:
            raise ConfigError(f"Cannot listen on {address}. Is the address in use?") from error
        if not port:  # gRPC before 1.60 reports the failure like this
            raise ConfigError(f"Cannot listen on {address}. Is the address in use?")
        self.address = f"{host}:{port}"
        self._server.start()

    def announce(self) -> None:
        """Set the health state to SERVING."""
        self._state = self._states.SERVING

    def stop(self, grace_s: float = GRACE_S) -> None:
        """Set the health state to NOT_SERVING, refuse new requests and give running ones some seconds to end."""
        self._state = self._states.NOT_SERVING
        self._server.stop(grace_s).wait()
        self._workers.shutdown(wait=False)


def require_usable(address: str) -> str:
    """Return the host of "host:port". Raise ConfigError if a server cannot listen there now.

    gRPC checks this too, but reports it in several lines on stderr.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"The address {address} must be host:port, such as 127.0.0.1:8005.")
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {address} ({error.strerror}). Choose another address."
        ) from error
    return host
