"""The gRPC service for clients. It forwards their calls to Triton, but not their cancellations.

    clients -- TCP, 8001 --> relay -- a socket in a folder of this user alone --> Triton

Triton before 25.06 does not survive cancelled calls: its front end may crash with signal 11, or use the state of one
request for the next (server pull requests 7840, 8078 and 8220). Before 26.02 its ensembles may do so too (core pull
request 466). So Triton finishes every call that it started, and the relay drops an answer that no client waits for. A
call that is cancelled while it waits in the relay never reaches Triton.

Messages are forwarded as bytes. The number of running inferences is limited, and the others wait here, also limited.

The relay also ends TLS and decides who may call what, because Triton's socket is closed to everybody else. So neither
Triton nor its command line holds a key or a token. `find_role` says which call needs which role. Calls about shared
memory are answered only on this host: others share no memory with Triton, and could take away the regions of its
clients.
"""

import argparse
import asyncio
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

import grpc
import grpc.aio

from contract import telemetry
from contract.access import HEALTH_CALLS, SECRET_HEADERS, Access, Denial, Role, hide_bad_headers
from contract.address import CHANNEL_OPTIONS
from contract.connection import PLAIN, Connection, is_local_host
from contract.errors import ConfigError
from contract.metrics_page import add_arguments as add_metrics_arguments
from contract.metrics_page import open_page
from contract.protection import UNPROTECTED, Protection, add_arguments, read_arguments
from contract.telemetry import Observer, replace_traceparent, set_up_log
from serving.relay_metrics import TRITON_PATH, Answer, RelayMetrics, read_page
from serving.triton import EXIT_TIMEOUT_S

_TRITON: Final = "/inference.GRPCInferenceService/"
INFER: Final = f"{_TRITON}ModelInfer"
STREAM: Final = f"{_TRITON}ModelStreamInfer"
PING: Final = "/cxr.Relay/Ping"  # answered here
MOST_RUNNING: Final = 64  # inferences in Triton at once, if it has no queue policy: two full batches
QUEUED_BY_TRITON: Final = 1280  # with a queue policy (`throughput`): the capacity of its queues
MOST_WAITING: Final = 256
MOST_BYTES: Final = 2**30  # of running and waiting inferences
_PING_TIMEOUT_S: Final = 1.0
_MOST_CALLS: Final = 1024  # calls of any kind, counted before their messages are read
_TO_TRITON: Final = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
_TO_CLIENTS: Final = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", MOST_BYTES))
# Headers that gRPC sets again for each connection.
_HOP: Final = frozenset({"user-agent", "te", "content-type"})
_PONG: Final = b"up"
_REMAKE_S: Final = 0.2  # given to a server that ended by itself
_TEXT: Final = re.compile(r"[\x20-\x7e]*")  # what gRPC sends as the value of a header
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

Call = Callable[[bytes, Any], Awaitable[bytes]]


class Turns:
    """Limits the running and waiting inferences, in the order of arrival."""

    def __init__(
        self, *, running: int = MOST_RUNNING, waiting: int = MOST_WAITING, held_bytes: int = MOST_BYTES
    ) -> None:
        """Set the limits."""
        self._free = asyncio.Semaphore(running)
        self._most, self._most_bytes = running + waiting, held_bytes
        self.calls = 0
        self.running = 0
        self.held_bytes = 0

    def admit(self, size: int) -> bool:
        """Return whether there is room for a call, and count it. An admitted call must `leave`."""
        if self.calls >= self._most or (self.calls and self.held_bytes + size > self._most_bytes):
            return False
        self.calls += 1
        self.held_bytes += size
        return True

    def leave(self, size: int) -> None:
        """Stop counting a call."""
        self.calls -= 1
        self.held_bytes -= size

    async def begin(self) -> None:
        """Wait for a turn."""
        await self._free.acquire()
        self.running += 1

    def end(self) -> None:
        """Pass the turn to the next call."""
        self.running -= 1
        self._free.release()


class Relay(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Forwards every unary call by its name."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        turns: Turns,
        access: Access | None = None,
        metrics: RelayMetrics | None = None,
    ) -> None:
        """Take the channel to Triton, what decides about tokens (None: nobody is an admin), and what counts calls."""
        self._channel, self._turns, self._access = channel, turns, access or Access()
        self._metrics = metrics or RelayMetrics()
        self._running: set[asyncio.Task[bytes]] = set()

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler for a call."""
        method: str = handler_call_details.method
        if method == PING:
            return grpc.stream_unary_rpc_method_handler(_answer_ping)
        make, answer = self._choose(method, handler_call_details.invocation_metadata or ())
        return make(self._metrics.observe(find_class(method), answer))

    def _choose(self, method: str, metadata: Sequence[Any]) -> tuple[Callable[[Answer], Any], Answer]:
        """Return the kind of a call's handler, and the handler."""
        needed = find_role(method)
        if needed is None:
            return grpc.stream_unary_rpc_method_handler, self._make_question(method)
        denial = self._access.check(metadata, needed, method)
        if denial is not None:
            return grpc.stream_stream_rpc_method_handler, _make_refusal(denial)
        if method == STREAM:
            return grpc.stream_stream_rpc_method_handler, _refuse_stream
        if method in _SHARED_MEMORY:
            return grpc.unary_unary_rpc_method_handler, self._call_on_this_host(method)
        if method == INFER:
            return grpc.unary_unary_rpc_method_handler, self._infer
        return grpc.unary_unary_rpc_method_handler, self._make_call(method)

    def _make_call(self, method: str) -> Call:
        async def call(request: bytes, context: Any) -> bytes:
            return await self._wait(self._start(method, request, context), context)

        return call

    def _make_question(self, method: str) -> Callable[[Any, Any], Awaitable[bytes]]:
        """Return the handler of a call whose message does not matter: it is not read, however large it is."""

        async def ask(_: Any, context: Any) -> bytes:
            return await self._wait(self._start(method, b"", context), context)

        return ask

    def _call_on_this_host(self, method: str) -> Call:
        forward = self._make_call(method)

        async def call(request: bytes, context: Any) -> bytes:
            if not _is_on_this_host(context.peer()):
                await context.abort(
                    grpc.StatusCode.PERMISSION_DENIED,
                    "Shared memory is restricted to clients on Triton's own host.",
                )
            return await forward(request, context)

        return call

    async def _infer(self, request: bytes, context: Any) -> bytes:
        turns, size = self._turns, len(request)
        if not turns.admit(size):
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"The queue is full: {turns.calls} inferences of {turns.held_bytes // 2**20} MiB run or wait.",
            )
        try:
            await turns.begin()
        except BaseException:  # the client cancelled the call
            turns.leave(size)
            raise
        task = self._start(INFER, request, context)

        def finish(_: asyncio.Task[bytes]) -> None:
            turns.end()
            turns.leave(size)

        task.add_done_callback(finish)
        return await self._wait(task, context)

    def _start(self, method: str, request: bytes, context: Any) -> asyncio.Task[bytes]:
        """Start a call of Triton that always runs to its end."""
        metadata = [
            (name, value)
            for name, value in context.invocation_metadata() or ()
            if name not in _HOP
            and name not in SECRET_HEADERS
            and not name.startswith(("grpc-", ":"))
            and (isinstance(value, bytes) or _TEXT.fullmatch(value))
        ]
        task = asyncio.ensure_future(self._ask(method, request, replace_traceparent(metadata)))
        self._running.add(task)
        task.add_done_callback(self._forget)
        return task

    async def _ask(self, method: str, request: bytes, metadata: Sequence[Any]) -> bytes:
        answer: bytes = await self._channel.unary_unary(method)(request, metadata=metadata)
        return answer

    async def _wait(self, task: asyncio.Task[bytes], context: Any) -> bytes:
        try:
            return await asyncio.shield(task)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), self._explain(error))
            raise

    def _explain(self, error: grpc.aio.AioRpcError) -> str:
        """Return Triton's error message, or that there is no Triton."""
        up = self._channel.get_state() == grpc.ChannelConnectivity.READY
        if error.code() == grpc.StatusCode.UNAVAILABLE and not up:
            return "Triton is not running. It is being started."
        return error.details() or ""

    def _forget(self, task: asyncio.Task[bytes]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # retrieve the exception, so that asyncio does not report it


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


def _make_refusal(denial: Denial) -> Callable[[Any, Any], Awaitable[None]]:
    """Return a handler that refuses a call without reading its message, however large it is."""

    async def refuse(_: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode[denial.code], denial.message)

    return refuse


async def _answer_ping(_: Any, __: Any) -> bytes:
    return _PONG


async def _refuse_stream(_: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Streams are not supported. Call ModelInfer.")


def is_up(url: str, connection: Connection = PLAIN) -> bool:
    """Return whether a relay answers, without a call to Triton."""
    with connection.open_channel(url, CHANNEL_OPTIONS) as channel:
        try:
            return bool(channel.unary_unary(PING)(b"up", timeout=_PING_TIMEOUT_S) == _PONG)
        except grpc.RpcError:
            return False


async def serve(
    listen: str,
    triton: str,
    turns: Turns,
    *,
    ended: asyncio.Event,
    protection: Protection = UNPROTECTED,
    metrics: RelayMetrics | None = None,
) -> None:
    """Run the relay until `ended` is set.

    Args:
        listen: host:port.
        triton: Triton's gRPC address, as gRPC writes it ("unix:/path" or host:port).
        turns: Limits for inferences.
        ended: Event that stops the relay.
        protection: TLS and tokens.
        metrics: Counts the calls.

    Raises:
        RuntimeError: The port cannot be used.
        ConfigError: A file of `protection` is missing or wrong, or a network can reach the address and it lacks TLS or
            tokens.
    """
    protection.check(listen.rpartition(":")[0].strip("[]"))
    credentials = protection.make_credentials()
    async with grpc.aio.insecure_channel(triton, options=[*_TO_TRITON, *CHANNEL_OPTIONS]) as channel:
        relay = Relay(channel, turns, protection.make_access(), metrics)
        # A call whose path is no text ends the server of grpc.aio. It is made again at once.
        while not ended.is_set():
            server = await _start_server(listen, relay, credentials)
            waits = [asyncio.ensure_future(wait) for wait in (ended.wait(), server.wait_for_termination())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            grace = EXIT_TIMEOUT_S if ended.is_set() else None  # the time that Triton gives running calls
            with suppress(UnicodeDecodeError, asyncio.TimeoutError):  # of such a path
                await asyncio.wait_for(server.stop(grace), None if ended.is_set() else _REMAKE_S)
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


async def _start_server(listen: str, relay: Relay, credentials: Any) -> grpc.aio.Server:
    server = grpc.aio.server(
        options=[*_TO_CLIENTS, ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=_MOST_CALLS,
    )
    server.add_generic_rpc_handlers((relay,))
    if credentials is None:
        server.add_insecure_port(listen)
    else:
        server.add_secure_port(listen, credentials)
    await server.start()
    return server


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


def _run(options: argparse.Namespace) -> None:
    observer = Observer("cxr-relay", telemetry.read_arguments(options))
    turns, protection, metrics = (
        Turns(running=options.running),
        read_arguments(options),
        RelayMetrics(observer),
    )
    metrics.watch(turns)
    url = options.triton_metrics
    passed_on = {TRITON_PATH: partial(read_page, url)} if url else {}
    with closing(observer), open_page(options, metrics.registry, protection, passed_on):
        asyncio.run(_serve_until_signal(options.listen, options.triton, turns, protection, metrics))


async def _serve_until_signal(
    listen: str, triton: str, turns: Turns, protection: Protection, metrics: RelayMetrics
) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await serve(listen, triton, turns, ended=ended, protection=protection, metrics=metrics)


if __name__ == "__main__":
    sys.exit(main())
