"""Hostile traffic: requests that must be refused, and calls that their client cancels, among good calls.

Each good answer is compared with a known one, so a byte of another request would be noticed. Calls go over gRPC,
through system shared memory and over HTTP. Use it only on a test server on this machine.
"""

import http.client
import json
import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, Protocol

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor, triton_to_np_dtype

from bench.load.inputs import Arrays
from bench.load.requests import Signature, serialise
from client.channel import Calls, ChannelSettings
from client.status import make_error
from client.triton import TritonTransport
from contract.address import CHANNEL_OPTIONS
from contract.errors import CancelledError, CxrError, DeadlineError, InputError, UnavailableError
from contract.tensors import FUSED, MODELS, TOLERANCES

Carrier = Literal["grpc", "shared_memory", "http"]
CARRIERS: Final[tuple[Carrier, ...]] = ("grpc", "shared_memory", "http")
_METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
_CHANNEL: Final = (("grpc.max_send_message_length", -1), *CHANNEL_OPTIONS)
_CUT_S: Final = (0.002, 0.1)  # range of the time until a client cancels its call
_PAUSE_S: Final = 0.1  # after a call without a server, before the next one
_HTTP_ERRORS: Final = {400: "INVALID_ARGUMENT", 499: "CANCELLED", 500: "INTERNAL", 503: "UNAVAILABLE"}


@dataclass(frozen=True)
class Call:
    """One request to a served model, with its expected answer. Without one it must be refused."""

    name: str
    model: str
    inputs: Arrays
    expected: Mapping[str, NDArray[Any]] | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """All outputs of the model."""
        return tuple(entry.name for entry in (MODELS.get(self.model) or FUSED[self.model]).outputs)

    @property
    def signature(self) -> Signature:
        """The names and data types of its inputs."""
        spec = MODELS.get(self.model) or FUSED[self.model]
        return Signature(self.model, {entry.name: entry.dtype for entry in spec.inputs}, self.outputs)


class Caller(Protocol):
    """One client's connection to the server, for one call at a time."""

    def infer(self, call: Call, timeout_s: float, *, cancelled_after_s: float | None = None) -> Arrays:
        """Return all outputs.

        Args:
            call: The request.
            timeout_s: Deadline of the call, in seconds.
            cancelled_after_s: Cancel the call after so many seconds.

        Raises:
            InputError, ServiceError: See `client.status`.
        """

    def close(self) -> None:
        """Close the connection."""


class GrpcCaller:
    """Plain gRPC, without this project's client."""

    def __init__(self, url: str) -> None:
        """Take the address of the server, host:port."""
        self._url = url
        self._channel = grpc.insecure_channel(url, options=_CHANNEL)
        self._infer = self._channel.unary_unary(
            _METHOD, response_deserializer=service_pb2.ModelInferResponse.FromString
        )

    def infer(self, call: Call, timeout_s: float, *, cancelled_after_s: float | None = None) -> Arrays:
        """See `Caller.infer`."""
        future = self._infer.future(serialise(call.signature, call.inputs, call.outputs), timeout=timeout_s)
        try:
            answer = future.result(timeout=cancelled_after_s)
        except grpc.FutureTimeoutError as error:
            future.cancel()
            raise CancelledError("The client gave up.") from error
        except grpc.RpcError as error:
            failure: Any = error
            raise make_error(
                failure.code().name,
                failure.details() or "",
                server="Triton",
                url=self._url,
                timeout_s=timeout_s,
            ) from error
        return {
            entry.name: _parse(raw, entry.datatype, entry.shape)
            for entry, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }

    def close(self) -> None:
        """See `Caller.close`."""
        self._channel.close()


class SharedMemoryCaller:
    """This project's transport, with every tensor in system shared memory."""

    def __init__(self, url: str) -> None:
        """Take the address of the server's gRPC service, host:port."""
        self._transport = TritonTransport(url, ChannelSettings(carrier="shared_memory"))

    def infer(self, call: Call, timeout_s: float, *, cancelled_after_s: float | None = None) -> Arrays:
        """See `Caller.infer`."""
        if cancelled_after_s is None:
            return self._transport.infer(call.model, call.inputs, call.outputs, timeout_s)
        calls = Calls()
        timer = threading.Timer(cancelled_after_s, calls.cancel)
        timer.start()
        try:
            return self._transport.infer(call.model, call.inputs, call.outputs, timeout_s, calls=calls)
        finally:
            timer.cancel()

    def close(self) -> None:
        """See `Caller.close`."""
        self._transport.close()


class HttpCaller:
    """KServe v2 over HTTP with binary tensors. Cancelling a call closes its connection."""

    def __init__(self, url: str) -> None:
        """Take the address of the server's HTTP service, host:port."""
        self._url = url
        self._connection: http.client.HTTPConnection | None = None

    def infer(self, call: Call, timeout_s: float, *, cancelled_after_s: float | None = None) -> Arrays:
        """See `Caller.infer`."""
        head, body = _write_http(call)
        limit_s = min(timeout_s, timeout_s if cancelled_after_s is None else cancelled_after_s)
        connection = self._connect(limit_s)
        headers = {
            "Inference-Header-Content-Length": str(len(head)),
            "Content-Type": "application/octet-stream",
        }
        try:
            connection.request("POST", f"/v2/models/{call.model}/infer", head + body, headers)
            answer = connection.getresponse()
            data = answer.read()
        except TimeoutError as error:
            self.close()
            raise DeadlineError(f"Triton at {self._url} did not answer in {limit_s:g} s.") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise UnavailableError(f"Triton at {self._url} broke off: {type(error).__name__}.") from error
        if answer.status != 200:
            code = _HTTP_ERRORS.get(answer.status, "INTERNAL")
            raise make_error(
                code, data.decode(errors="replace"), server="Triton", url=self._url, timeout_s=timeout_s
            )
        return _read_http(data, int(answer.headers["Inference-Header-Content-Length"]))

    def close(self) -> None:
        """See `Caller.close`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self, limit_s: float) -> http.client.HTTPConnection:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._url, timeout=limit_s)
        self._connection.timeout = limit_s
        if self._connection.sock is not None:
            self._connection.sock.settimeout(limit_s)
        return self._connection


@dataclass
class HostileReport:
    """The results of the calls. `wrong` and `unanswered` name good calls, `not_refused` bad ones. All must be empty.

    `unavailable` counts calls of any kind that found no server.
    """

    good: int = 0
    refused: int = 0
    unavailable: int = 0
    cut: Counter[str] = field(default_factory=Counter)  # result of calls with a short deadline -> count
    wrong: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    not_refused: list[str] = field(default_factory=list)
    slowest_s: float = 0.0  # of the good calls
    wall_s: float = 0.0

    def describe(self) -> str:
        """Return the report in one line."""
        ends = ", ".join(f"{name} {count}" for name, count in sorted(self.cut.items()))
        return (
            f"{self.good} good answers (the slowest after {self.slowest_s:.2f} s), {self.refused} bad calls refused, "
            f"calls ended by their client: {ends or 'none'}; {len(self.wrong)} wrong, {len(self.unanswered)} "
            f"unanswered, {len(self.not_refused)} not refused, {self.unavailable} without a server; {self.wall_s:.0f} s"
        )


def list_callers(grpc_url: str, http_url: str | None = None) -> dict[Carrier, Callable[[], Caller]]:
    """Return a function for each carrier that connects a client to the server.

    Args:
        grpc_url: host:port of Triton's gRPC service.
        http_url: host:port of its HTTP service; None if it does not accept inferences.
    """
    makers: dict[Carrier, Callable[[], Caller]] = {
        "grpc": lambda: GrpcCaller(grpc_url),
        "shared_memory": lambda: SharedMemoryCaller(grpc_url),
    }
    if http_url is not None:
        makers["http"] = lambda: HttpCaller(http_url)
    return makers


_Send = Callable[[Mapping[Carrier, Caller]], None]


class HostileTraffic:
    """Bad and cancelled calls of some clients, while other clients send good calls all the time."""

    def __init__(
        self,
        makers: Mapping[Carrier, Callable[[], Caller]],
        good: Sequence[Call],
        bad: Sequence[Call],
        *,
        clients: int = 8,
        timeout_s: float = 10.0,
        seed: int = 0,
    ) -> None:
        """Set up the traffic; nothing is sent yet.

        Args:
            makers: Functions that connect a client, for each carrier (`list_callers`).
            good: Calls with their answers. Some are also sent with short deadlines or cancelled.
            bad: Calls that the server must refuse as the caller's error.
            clients: Number of hostile clients. In addition there is a good client for each carrier.
            timeout_s: A good or bad call that takes longer counts as unanswered.
            seed: Seed for the order and the deadlines.
        """
        self._makers = dict(makers)
        self._good, self._bad = list(good), list(bad)
        self._clients, self._timeout_s, self._random = clients, timeout_s, random.Random(seed)  # noqa: S311
        self._lock = threading.Lock()
        self._report = HostileReport()

    def run(self, *, bad_calls: int, cut_calls: int, limit_s: float = 600.0) -> HostileReport:
        """Send bad calls and calls that end after 2 to 100 ms, in random order, and return the results.

        Args:
            bad_calls: Number of bad calls.
            cut_calls: Number of good calls with a deadline or a cancellation that usually ends them early.
            limit_s: No call starts later than this, in seconds.
        """
        self._report = HostileReport()
        began = time.monotonic()
        work = self._plan(bad_calls, cut_calls)
        done = threading.Event()
        hostile = [
            threading.Thread(target=self._work, args=(work, began + limit_s)) for _ in range(self._clients)
        ]
        decent = [threading.Thread(target=self._ask, args=(carrier, done)) for carrier in self._makers]
        for thread in (*decent, *hostile):
            thread.start()
        for thread in hostile:
            thread.join()
        done.set()
        for thread in decent:
            thread.join()
        self._report.wall_s = time.monotonic() - began
        return self._report

    def _plan(self, bad_calls: int, cut_calls: int) -> "deque[_Send]":
        carriers = list(self._makers)
        work: list[_Send] = []
        for number in range(bad_calls):
            carrier, call = carriers[number % len(carriers)], self._bad[number % len(self._bad)]
            work.append(partial(self._send_bad, carrier, call))
        for number in range(cut_calls):
            carrier, call = carriers[number % len(carriers)], self._random.choice(self._good)
            limit_s = math.exp(self._random.uniform(*map(math.log, _CUT_S)))  # most are short
            cancels = self._random.random() < 0.5
            work.append(partial(self._send_cut, carrier, call, limit_s, cancels))
        self._random.shuffle(work)
        return deque(work)

    def _work(self, work: "deque[_Send]", ends_at: float) -> None:
        with ExitStack() as opened:
            callers = {carrier: make() for carrier, make in self._makers.items()}
            for caller in callers.values():
                opened.callback(caller.close)
            while time.monotonic() < ends_at:
                try:
                    send = work.popleft()
                except IndexError:
                    return
                send(callers)

    def _ask(self, carrier: Carrier, done: threading.Event) -> None:
        caller, number = self._makers[carrier](), 0
        try:
            while not done.is_set():
                call = self._good[number % len(self._good)]
                number += 1
                began = time.monotonic()
                try:
                    answer = caller.infer(call, self._timeout_s)
                except UnavailableError:
                    self._wait_for_server()
                    continue
                except CxrError as error:
                    self._note("unanswered", f"{call.name} over {carrier}: {error}")
                    continue
                took_s = time.monotonic() - began
                with self._lock:
                    self._report.good += 1
                    self._report.slowest_s = max(self._report.slowest_s, took_s)
                self._compare(call, carrier, answer)
        finally:
            caller.close()

    def _send_bad(self, carrier: Carrier, call: Call, callers: Mapping[Carrier, Caller]) -> None:
        caller = callers[carrier]
        try:
            caller.infer(call, self._timeout_s)
        except InputError:
            with self._lock:
                self._report.refused += 1
        except UnavailableError:
            self._wait_for_server()
        except CxrError as error:
            self._note("not_refused", f"{call.name} over {carrier}: {error}")
        else:
            self._note("not_refused", f"{call.name} over {carrier}: answered")

    def _send_cut(
        self, carrier: Carrier, call: Call, limit_s: float, cancels: bool, callers: Mapping[Carrier, Caller]
    ) -> None:
        caller = callers[carrier]
        end = "answered"
        try:
            if cancels:
                answer = caller.infer(call, self._timeout_s, cancelled_after_s=limit_s)
            else:
                answer = caller.infer(call, limit_s)
            self._compare(call, carrier, answer)
        except (DeadlineError, CancelledError):
            end = "ended"
        except UnavailableError:
            end = "unavailable"
            self._wait_for_server()
        except CxrError as error:
            end = type(error).__name__
            self._note("unanswered", f"{call.name} over {carrier}, cut short: {error}")
        with self._lock:
            self._report.cut[end] += 1

    def _wait_for_server(self) -> None:
        with self._lock:
            self._report.unavailable += 1
        time.sleep(_PAUSE_S)

    def _compare(self, call: Call, carrier: str, answer: Arrays) -> None:
        for name in find_differences(call, answer):
            self._note("wrong", f"{call.name} over {carrier}: {name}")

    def _note(self, kind: Literal["wrong", "unanswered", "not_refused"], sentence: str) -> None:
        with self._lock:
            getattr(self._report, kind).append(sentence)


def find_differences(call: Call, answer: Mapping[str, NDArray[Any]]) -> list[str]:
    """Return the names of outputs that differ from the expected ones (for numbers, by more than `TOLERANCES`)."""
    return [
        name
        for name, expected in (call.expected or {}).items()
        if name not in answer or not _is_equal(expected, answer[name], TOLERANCES.get(name, 0.0))
    ]


def answer_calls(calls: Iterable[Call], caller: Caller, timeout_s: float = 30.0) -> list[Call]:
    """Return calls with the answers of an otherwise idle server."""
    return [Call(x.name, x.model, x.inputs, caller.infer(x, timeout_s)) for x in calls]


def _is_equal(expected: NDArray[Any], actual: NDArray[Any], tolerance: float) -> bool:
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return False
    if expected.dtype == np.object_ or not tolerance:
        return bool((expected == actual).all())
    return bool(np.allclose(expected, actual, rtol=0, atol=tolerance))


def _parse(raw: bytes, datatype: str, shape: Sequence[int]) -> NDArray[Any]:
    if datatype == "BYTES":
        return np.asarray(deserialize_bytes_tensor(raw)).reshape(tuple(shape))
    return np.frombuffer(raw, triton_to_np_dtype(datatype)).reshape(tuple(shape))


def _write_http(call: Call) -> tuple[bytes, bytes]:
    """Return the JSON head and the binary tensors of a request."""
    entries, pieces = [], []
    for name, datatype in call.signature.inputs.items():
        array = np.ascontiguousarray(call.inputs[name])
        raw = serialize_byte_tensor(array).item() if datatype == "BYTES" else array.tobytes()
        size = {"binary_data_size": len(raw)}
        entries.append({"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": size})
        pieces.append(raw)
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in call.outputs]
    return json.dumps({"inputs": entries, "outputs": outputs}).encode(), b"".join(pieces)


def _read_http(data: bytes, head_size: int) -> Arrays:
    answer, offset = {}, head_size
    for entry in json.loads(data[:head_size])["outputs"]:
        size = entry["parameters"]["binary_data_size"]
        answer[entry["name"]] = _parse(data[offset : offset + size], entry["datatype"], entry["shape"])
        offset += size
    return answer
