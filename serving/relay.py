"""The gRPC service that clients call: it passes their calls on to Triton, and never that a client gave up.

    clients -- TCP, 8001 --> relay -- a socket in a folder of this user alone --> Triton

Triton before 25.06 does not survive clients that give up: its front end may end with signal 11, or use the state of
one request for the next (server pull requests 7840, 8078 and 8220). Before 26.02 its ensembles may do so too (core pull
request 466). So Triton finishes what it started, and the relay drops the answer that nobody waits for. What still waits
for its turn when its client gives up never reaches Triton.

Messages pass as bytes, unread. Inferences take turns, so that what waits is bounded and lies here.
"""

import argparse
import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import grpc
import grpc.aio

from contract.address import CHANNEL_OPTIONS
from serving.triton import EXIT_TIMEOUT_S

INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
STREAM: Final = "/inference.GRPCInferenceService/ModelStreamInfer"
PING: Final = "/cxr.Relay/Ping"  # answered here
MOST_RUNNING: Final = 64  # inferences that Triton has at once, where it has no queue policy: two full batches
QUEUED_BY_TRITON: Final = 1280  # where it has one (`throughput`): all that its queues take
MOST_WAITING: Final = 256
MOST_BYTES: Final = 2**30  # of the inferences that run or wait
_PING_TIMEOUT_S: Final = 1.0
_MOST_CALLS: Final = 1024  # of any kind, counted before their messages are read
_TO_TRITON: Final = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
_TO_CLIENTS: Final = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", MOST_BYTES))
# Headers that gRPC writes anew for each connection.
_HOP: Final = frozenset({"user-agent", "te", "content-type"})

Call = Callable[[bytes, Any], Awaitable[bytes]]


class Turns:
    """Room for inferences: so many run, so many wait, in the order in which they came."""

    def __init__(
        self, *, running: int = MOST_RUNNING, waiting: int = MOST_WAITING, held_bytes: int = MOST_BYTES
    ) -> None:
        """Describe the room."""
        self._free = asyncio.Semaphore(running)
        self._most, self._most_bytes = running + waiting, held_bytes
        self.calls = 0
        self.held_bytes = 0

    def admit(self, size: int) -> bool:
        """Count a call in if there is room for it; whoever is let in must `leave`."""
        if self.calls >= self._most or (self.calls and self.held_bytes + size > self._most_bytes):
            return False
        self.calls += 1
        self.held_bytes += size
        return True

    def leave(self, size: int) -> None:
        """Count a call out."""
        self.calls -= 1
        self.held_bytes -= size

    async def begin(self) -> None:
        """Wait for a turn."""
        await self._free.acquire()

    def end(self) -> None:
        """Give the turn to the next."""
        self._free.release()


class Relay(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Passes every unary call on, by its name."""

    def __init__(self, channel: grpc.aio.Channel, turns: Turns) -> None:
        """Take the channel to Triton."""
        self._channel, self._turns = channel, turns
        self._running: set[asyncio.Task[bytes]] = set()

    def service(self, handler_call_details: Any) -> Any:
        """Return what answers a call of this name."""
        method: str = handler_call_details.method
        if method == STREAM:
            return grpc.stream_stream_rpc_method_handler(_refuse_stream)
        if method == PING:
            return grpc.unary_unary_rpc_method_handler(_answer_ping)
        if method == INFER:
            return grpc.unary_unary_rpc_method_handler(self._infer)
        return grpc.unary_unary_rpc_method_handler(self._make_call(method))

    def _make_call(self, method: str) -> Call:
        async def call(request: bytes, context: Any) -> bytes:
            return await self._wait(self._start(method, request, context), context)

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
        except BaseException:  # the client gave up
            turns.leave(size)
            raise
        task = self._start(INFER, request, context)

        def finish(_: asyncio.Task[bytes]) -> None:
            turns.end()
            turns.leave(size)

        task.add_done_callback(finish)
        return await self._wait(task, context)

    def _start(self, method: str, request: bytes, context: Any) -> asyncio.Task[bytes]:
        """Begin a call of Triton that goes on to its end, whoever waits for it."""
        metadata = [
            (name, value)
            for name, value in context.invocation_metadata() or ()
            if name not in _HOP and not name.startswith(("grpc-", ":"))
        ]
        task = asyncio.ensure_future(self._ask(method, request, metadata))
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
        """Return what Triton said; where there is no Triton, that."""
        up = self._channel.get_state() == grpc.ChannelConnectivity.READY
        if error.code() == grpc.StatusCode.UNAVAILABLE and not up:
            return "Triton is not there: it is being started."
        return error.details() or ""

    def _forget(self, task: asyncio.Task[bytes]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # read, so that asyncio does not report one that nobody waited for


async def _answer_ping(request: bytes, _: Any) -> bytes:
    return request


async def _refuse_stream(_: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Streams are not served here: call ModelInfer.")


def is_up(url: str) -> bool:
    """Ask a relay whether it answers; Triton is not asked."""
    with grpc.insecure_channel(url, options=CHANNEL_OPTIONS) as channel:
        try:
            return bool(channel.unary_unary(PING)(b"up", timeout=_PING_TIMEOUT_S) == b"up")
        except grpc.RpcError:
            return False


async def serve(listen: str, triton: str, turns: Turns, *, ended: asyncio.Event) -> None:
    """Relay until it is told to end.

    Args:
        listen: host:port.
        triton: Triton's gRPC address, as gRPC writes it ("unix:/path" or host:port).
        turns: Room for inferences.
        ended: Set when it shall end.

    Raises:
        RuntimeError: The port cannot be had.
    """
    server = grpc.aio.server(
        options=[*_TO_CLIENTS, ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=_MOST_CALLS,
    )
    async with grpc.aio.insecure_channel(triton, options=[*_TO_TRITON, *CHANNEL_OPTIONS]) as channel:
        server.add_generic_rpc_handlers((Relay(channel, turns),))
        server.add_insecure_port(listen)
        await server.start()
        await ended.wait()
        await server.stop(grace=EXIT_TIMEOUT_S)  # as long as Triton gives calls under way


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the relay; `serving.stack` starts it."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.relay", description="Pass gRPC calls on to Triton."
    )
    parser.add_argument("--listen", required=True, help="host:port to listen on")
    parser.add_argument("--triton", required=True, help="Triton's gRPC address, unix:/path or host:port")
    parser.add_argument(
        "--running", type=int, default=MOST_RUNNING, help="inferences that Triton has at once"
    )
    options = parser.parse_args(arguments)
    asyncio.run(_serve_until_signal(options.listen, options.triton, Turns(running=options.running)))


async def _serve_until_signal(listen: str, triton: str, turns: Turns) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await serve(listen, triton, turns, ended=ended)


if __name__ == "__main__":
    main()
