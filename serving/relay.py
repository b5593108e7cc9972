"""The gRPC service for clients. It forwards their calls to Triton, but not their cancellations.

    clients -- TCP, 8001 --> relay -- a socket in a folder of this user alone --> Triton

Triton before 25.06 does not survive cancelled calls: its front end may crash with signal 11, or use the state of one
request for the next (server pull requests 7840, 8078 and 8220). Before 26.02 its ensembles may do so too (core pull
request 466). So Triton finishes every call that it started, and the relay drops an answer that no client waits for. A
call that is cancelled while it waits in the relay never reaches Triton.

Messages are forwarded as bytes. The number of running inferences is limited, and the others wait here, also limited
(`serving.turns`). Each call has a thread, which waits for Triton's answer whatever its client does.

The relay also ends TLS and decides who may call what, because Triton's socket is closed to everybody else. So neither
Triton nor its command line holds a key or a token. `find_role` says which call needs which role. Calls about shared
memory are answered only on this host: others share no memory with Triton, and could take away the regions of its
clients.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import grpc

from contract import telemetry
from contract.access import HEALTH_CALLS, SECRET_HEADERS, Access, Denial, Role, hide_bad_headers
from contract.address import CHANNEL_OPTIONS
from contract.connection import PLAIN, Connection, is_local_host
from contract.errors import ConfigError
from contract.message_reader import MessageReader
from contract.metrics_page import add_arguments as add_metrics_arguments
from contract.metrics_page import open_page
from contract.protection import UNPROTECTED, Protection, add_arguments, read_arguments
from contract.signatures import OPTION, TrustedKeys
from contract.stop_signals import open_events
from contract.telemetry import Observer, replace_traceparent, set_up_log
from serving.relay_metrics import TRITON_PATH, Answer, RelayMetrics, read_page
from serving.signed_loads import LOAD, SignedLoads
from serving.triton import EXIT_TIMEOUT_S
from serving.turns import MOST_BYTES, MOST_RUNNING, Turns

_TRITON: Final = "/inference.GRPCInferenceService/"
INFER: Final = f"{_TRITON}ModelInfer"
STREAM: Final = f"{_TRITON}ModelStreamInfer"
PING: Final = "/cxr.Relay/Ping"  # answered here
_PING_TIMEOUT_S: Final = 1.0
_MOST_CALLS: Final = 1024  # calls of any kind, counted before their messages are read
_MOST_READING: Final = 512  # of them, whose message has not come yet
_TO_TRITON: Final = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
_TO_CLIENTS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", MOST_BYTES),
    ("grpc.max_concurrent_streams", 256),  # of one connection; a client library keeps further calls back
    # With it gRPC refuses a call (REFUSED_STREAM) while the memory of an ended one is not freed yet.
    ("grpc.http.overload_protection", 0),
    ("grpc.so_reuseport", 0),
)
# Headers that gRPC sets again for each connection.
_HOP: Final = frozenset({"user-agent", "te", "content-type"})
_PONG: Final = b"up"
_NAME: Final = re.compile(r"[0-9a-z_.-]+")  # what gRPC sends as the name of a header
_TEXT: Final = re.compile(r"[\x20-\x7e]*")  # and as its value
_READ: Final = frozenset(
    f"{_TRITON}{name}"
    for name in (
        "ServerLive",
        "ServerReady",
        "ServerMetadata",
        "ModelReady",
        "ModelMetadata",
        "ModelConfig",
        "ModelStatistics",
        "ModelInfer",
        "ModelStreamInfer",
    )
)
_SHARED_MEMORY: Final = frozenset(
    f"{_TRITON}{kind}SharedMemory{action}"
    for kind in ("System", "Cuda")
    for action in ("Status", "Register", "Unregister")
)
_CLASSES: Final = {
    **dict.fromkeys(_READ, "question"),
    **dict.fromkeys(_SHARED_MEMORY, "shared_memory"),
    INFER: "infer",
    STREAM: "stream",
}

Call = Callable[[bytes, Any], bytes]


class Relay(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Forwards every unary call by its name."""

    def __init__(
        self,
        channel: grpc.Channel,
        turns: Turns,
        access: Access | None = None,
        metrics: RelayMetrics | None = None,
        loads: SignedLoads | None = None,
    ) -> None:
        """Take the channel to Triton, what decides about tokens (None: nobody is an admin), and what counts calls.

        `loads` decides about loads; None: an admin may load anything.
        """
        self._channel, self._turns, self._access = channel, turns, access or Access()
        self._metrics, self._loads = metrics or RelayMetrics(), loads
        self._reader = MessageReader(_MOST_READING)
        self._state = grpc.ChannelConnectivity.IDLE
        channel.subscribe(self._note_state)

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler for a call."""
        method: str = handler_call_details.method
        if method == PING:
            return grpc.stream_unary_rpc_method_handler(_answer_ping)
        kind, needed = find_class(method), find_role(method)
        if needed is None:
            return self._answer_unread(kind, self._make_question(method))
        denial = self._access.check(handler_call_details.invocation_metadata or (), needed, method)
        if denial is not None:
            return self._refuse_unread(kind, _make_refusal(denial))
        if method == STREAM:
            return self._refuse_unread(kind, _refuse_stream)
        if method in _SHARED_MEMORY:
            return self._answer_read(kind, self._call_on_this_host(method))
        return self._answer_read(kind, self._infer if method == INFER else self._make_call(method))

    def _answer_unread(self, kind: str, answer: Answer) -> Any:
        return grpc.stream_unary_rpc_method_handler(self._metrics.observe(kind, answer))

    def _refuse_unread(self, kind: str, refuse: Answer) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._metrics.observe(kind, refuse))

    def _answer_read(self, kind: str, answer: Call) -> Any:
        observed = self._metrics.observe(kind, answer, self._reader.read)
        return grpc.stream_unary_rpc_method_handler(observed)

    def _make_call(self, method: str) -> Call:
        if method == LOAD and self._loads is not None:
            return partial(self._load, self._loads)
        return lambda request, context: self._ask(method, request, context)

    def _make_question(self, method: str) -> Answer:
        """Return the handler of a call whose message does not matter: it is not read, however large it is."""
        return lambda _, context: self._ask(method, b"", context)

    def _call_on_this_host(self, method: str) -> Call:
        def call(request: bytes, context: Any) -> bytes:
            if not _is_on_this_host(context.peer()):
                context.abort(
                    grpc.StatusCode.PERMISSION_DENIED,
                    "Shared memory is restricted to clients on Triton's own host.",
                )
            return self._ask(method, request, context)

        return call

    def _load(self, loads: SignedLoads, request: bytes, context: Any) -> bytes:
        if (refusal := loads.find_refusal(request)) is not None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal)
        return self._ask(LOAD, request, context)

    def _infer(self, request: bytes, context: Any) -> bytes:
        turns, size = self._turns, len(request)
        if not turns.admit(size):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"The queue is full: {turns.calls} inferences of {turns.held_bytes // 2**20} MiB run or wait.",
            )
        try:
            if not turns.begin(context):
                context.abort(grpc.StatusCode.CANCELLED, "The client gave up.")
            try:
                return self._ask(INFER, request, context)
            finally:
                turns.end()
        finally:
            leave = partial(turns.leave, size)  # when the answer is sent, too
            if not context.add_callback(leave):
                leave()

    def _ask(self, method: str, request: bytes, context: Any) -> bytes:
        """Wait for Triton's answer. Nothing ends this call before: it has no deadline, and nobody cancels it."""
        metadata = [
            (name, value)
            for name, value in context.invocation_metadata() or ()
            if _NAME.fullmatch(name)
            and name not in _HOP
            and name not in SECRET_HEADERS
            and not name.startswith("grpc-")
            and (isinstance(value, bytes) or _TEXT.fullmatch(value))
        ]
        try:
            call = self._channel.unary_unary(method)
            answer: bytes = call(request, metadata=replace_traceparent(metadata))
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE and self._is_connected:
                self._metrics.count_full_queue()  # that of Triton, whose status has two meanings
            context.abort(error.code(), self._explain(error))
            raise
        return answer

    def _explain(self, error: Any) -> str:
        """Return Triton's error message, or that there is no Triton."""
        if error.code() == grpc.StatusCode.UNAVAILABLE and not self._is_connected:
            return "Triton is not running. It is being started."
        return error.details() or ""

    @property
    def _is_connected(self) -> bool:
        return bool(self._state == grpc.ChannelConnectivity.READY)

    def _note_state(self, state: grpc.ChannelConnectivity) -> None:
        self._state = state


def find_role(method: str) -> Role | None:
    """Return the role that a call needs; None: it is open. A call of Triton that is not listed above needs admin."""
    if method == PING or method.startswith(HEALTH_CALLS):
        return None
    if method.startswith(_TRITON) and method not in _READ and method not in _SHARED_MEMORY:
        return Role.ADMIN
    return Role.READ


def find_class(method: str) -> str:
    """Return the class of a call, for the metrics. There are seven."""
    if method in _CLASSES:
        return _CLASSES[method]
    if method.startswith(HEALTH_CALLS):
        return telemetry.HEALTH
    return "admin" if method.startswith(_TRITON) else "other"


def _is_on_this_host(peer: str) -> bool:
    """Whether a peer, as gRPC names it ("ipv4:127.0.0.1:5000"), is on this host."""
    kind, _, address = peer.partition(":")
    return kind == "unix" or is_local_host(unquote(address).rpartition(":")[0].strip("[]"))


def _make_refusal(denial: Denial) -> Answer:
    """Return a handler that refuses a call without reading its message, however large it is."""
    return lambda _, context: context.abort(grpc.StatusCode[denial.code], denial.message)


def _answer_ping(_: Any, __: Any) -> bytes:
    return _PONG


def _refuse_stream(_: Any, context: Any) -> None:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "Streams are not supported. Call ModelInfer.")


def is_up(url: str, connection: Connection = PLAIN) -> bool:
    """Return whether a relay answers, without a call to Triton."""
    with connection.open_channel(url, CHANNEL_OPTIONS) as channel:
        try:
            return bool(channel.unary_unary(PING)(b"up", timeout=_PING_TIMEOUT_S) == _PONG)
        except grpc.RpcError:
            return False


def serve(
    listen: str,
    triton: str,
    turns: Turns,
    *,
    wait: Callable[[], object],
    protection: Protection = UNPROTECTED,
    metrics: RelayMetrics | None = None,
    loads: SignedLoads | None = None,
) -> None:
    """Run the relay until `wait` returns, and then until the calls that run are answered.

    Args:
        listen: host:port.
        triton: Triton's gRPC address, as gRPC writes it ("unix:/path" or host:port).
        turns: Limits for inferences.
        wait: Returns when the relay should stop.
        protection: TLS and tokens.
        metrics: Counts the calls.
        loads: Decides about loads. None: an admin may load anything.

    Raises:
        RuntimeError: The port cannot be used.
        ConfigError: A file of `protection` is missing or wrong, or a network can reach the address and it lacks TLS or
            tokens.
    """
    protection.check(listen.rpartition(":")[0].strip("[]"))
    credentials = protection.make_credentials()
    with grpc.insecure_channel(triton, options=[*_TO_TRITON, *CHANNEL_OPTIONS]) as channel:
        server = grpc.server(
            ThreadPoolExecutor(_MOST_CALLS, "call"),
            handlers=[Relay(channel, turns, protection.make_access(), metrics, loads)],
            options=_TO_CLIENTS,
            maximum_concurrent_rpcs=_MOST_CALLS,
        )
        if credentials is None:
            server.add_insecure_port(listen)
        else:
            server.add_secure_port(listen, credentials)
        server.start()
        wait()
        server.stop(EXIT_TIMEOUT_S).wait()  # the time that Triton gives running calls


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the relay, as a process that `serving.stack` starts; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.relay", description="Forward gRPC calls to Triton."
    )
    parser.add_argument("--listen", required=True, help="host:port to listen on")
    parser.add_argument("--triton", required=True, help="Triton's gRPC address, unix:/path or host:port")
    parser.add_argument(
        "--running", type=int, default=MOST_RUNNING, help="largest number of inferences in Triton at once"
    )
    parser.add_argument(
        "--triton-metrics", metavar="URL", help=f"Triton's page of metrics, passed on as {TRITON_PATH}."
    )
    parser.add_argument(
        OPTION,
        action="append",
        metavar="PUBKEY",
        help="Key that must have signed what is loaded. Repeatable.",
    )
    parser.add_argument("--repository", type=Path, help=f"The repository that {OPTION} is about.")
    add_arguments(parser)
    add_metrics_arguments(parser)
    telemetry.add_arguments(parser)
    options = parser.parse_args(arguments)
    set_up_log(telemetry.read_arguments(options))
    hide_bad_headers()
    try:
        _run(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _read_loads(options: argparse.Namespace) -> SignedLoads | None:
    if not options.require_signature:
        return None
    if options.repository is None:
        raise ConfigError(f"{OPTION} needs --repository, the repository that must be signed.")
    return SignedLoads(options.repository, TrustedKeys.read(options.require_signature))


def _run(options: argparse.Namespace) -> None:
    observer = Observer("cxr-relay", telemetry.read_arguments(options))
    turns, protection = Turns(running=options.running), read_arguments(options)
    metrics = RelayMetrics(observer)
    metrics.watch(turns)
    loads = _read_loads(options)
    url = options.triton_metrics
    passed_on = {TRITON_PATH: partial(read_page, url)} if url else {}
    with (
        closing(observer),
        open_events() as (events, _),
        open_page(options, metrics.registry, protection, passed_on),
    ):
        serve(
            options.listen,
            options.triton,
            turns,
            wait=partial(os.read, events, 1),
            protection=protection,
            metrics=metrics,
            loads=loads,
        )


if __name__ == "__main__":
    sys.exit(main())
