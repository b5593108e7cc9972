"""A relay in a thread of this process, and a stand-in for Triton's gRPC service that notes what reaches it."""

import threading
import time
from concurrent import futures

import grpc

from contract.protection import UNPROTECTED, Protection
from serving.ports import Ports
from serving.process import wait_until
from serving.relay import INFER, is_up, serve
from serving.relay_metrics import RelayMetrics
from serving.signed_loads import SignedLoads
from serving.turns import Turns

READY = "/inference.GRPCInferenceService/ServerReady"
SECONDS = 60.0
UNLIMITED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


class Triton(grpc.GenericRpcHandler):
    """Answers with the request behind "answer to "; holds requests that begin with "slow" until it is told to go on."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.methods: list[str] = []
        self.ended: list[bytes] = []
        self.given_up: list[bytes] = []
        self.limits: list[float | None] = []
        self.metadata: dict[str, str] = {}
        self.go_on = threading.Event()

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._answer(details.method, request, context)
        )

    def _answer(self, method, request, context):
        self.seen.append(request)
        self.methods.append(method)
        self.limits.append(context.time_remaining())
        self.metadata = dict(context.invocation_metadata())
        context.add_callback(lambda: request in self.ended or self.given_up.append(request))
        if request.startswith(b"slow"):
            assert self.go_on.wait(SECONDS)
        self.ended.append(request)
        if request.startswith(b"bad"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "preprocess_image: not an image")
        if request.startswith(b"full"):
            context.abort(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        return b"answer to " + request


def start_triton(handler: Triton, address: str) -> "grpc.Server":
    server = grpc.server(futures.ThreadPoolExecutor(64), handlers=(handler,), options=UNLIMITED)
    assert server.add_insecure_port(address)
    server.start()
    return server


class Running:
    """A relay in a thread of this process."""

    def __init__(
        self,
        triton: str,
        protection: Protection = UNPROTECTED,
        loads: SignedLoads | None = None,
        **room: int,
    ) -> None:
        self._loads = loads
        self.protection, self.connection = protection, protection.make_connection()
        self.url = f"127.0.0.1:{Ports.free().grpc}"
        self.turns, self.metrics = Turns(**room), RelayMetrics()
        self.metrics.watch(self.turns)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(triton,))
        self._thread.start()
        deadline = time.monotonic() + SECONDS
        while not is_up(self.url, self.connection):
            assert wait_until(deadline)
        self.channel = self.connection.open_channel(self.url, UNLIMITED)

    def _run(self, triton: str) -> None:
        options = {"protection": self.protection, "metrics": self.metrics, "loads": self._loads}
        serve(self.url, triton, self.turns, wait=self._ended.wait, **options)

    def call(self, method: str, request: bytes, timeout: float = SECONDS, **options):
        return self.channel.unary_unary(method)(request, timeout=timeout, **options)

    def start(self, request: bytes, timeout: float = SECONDS):
        return self.channel.unary_unary(INFER).future(request, timeout=timeout)

    def end(self) -> None:
        self._ended.set()

    def close(self) -> None:
        if self._thread.is_alive():
            self.end()
        self.channel.close()
        self._thread.join()


def wait(condition) -> bool:
    deadline = time.monotonic() + SECONDS
    while not condition() and wait_until(deadline):
        pass
    return bool(condition())
