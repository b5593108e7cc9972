"""Connections to Triton, each with reusable request objects, and requests that can be cancelled together."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from tritonclient import grpc as triton

from contract.address import CHANNEL_OPTIONS
from contract.connection import PLAIN, Connection
from contract.errors import CancelledError, ConfigError
from contract.tensors import ModelSpec

Carrier = Literal["auto", "grpc", "shared_memory", "cuda_shared_memory"]
Compression = Literal["none", "gzip", "deflate"]

_CHANNEL: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    *CHANNEL_OPTIONS,
)
_MIN_KEEPALIVE_S: Final = 10.0  # gRPC raises a shorter time to this one
BATCH_PRIORITY: Final = 2  # of many cases, which wait for single ones; see `export/targets.toml`
_MAX_REQUESTS: Final = 32  # request objects for one connection: one for each model and shape in use


@dataclass(frozen=True)
class ChannelSettings:
    """How tensors travel to Triton.

    Attributes:
        carrier: "grpc"; "shared_memory" for every request; "cuda_shared_memory" for inputs that are numbers; "auto" for
            shared memory where it is faster (see `client.triton`).
        compression: Compression of gRPC messages. It saves time only if the network is slower than the compressor
            (gzip: 12 MB/s on a busy core) and the image is not compressed already. On one host it always costs time.
        keepalive_s: Seconds between pings of an idle connection, at least 10. Pings keep a connection in the table of a
            firewall. Triton closes a connection with pings more often than every 300 s ("too many pings"), unless
            its option `--grpc-http2-min-recv-ping-interval-without-data` is smaller. None: no pings.
        connection: TLS and token.
    """

    carrier: Carrier = "auto"
    compression: Compression = "none"
    keepalive_s: float | None = None
    connection: Connection = PLAIN

    def __post_init__(self) -> None:
        """Raise ConfigError if a setting is not valid."""
        for name, value, choices in (
            ("transport", self.carrier, get_args(Carrier)),
            ("compression", self.compression, get_args(Compression)),
        ):
            if value not in choices:
                raise ConfigError(f"The {name} must be one of {', '.join(choices)}, not {value!r}.")
        if self.keepalive_s is not None and not self.keepalive_s >= _MIN_KEEPALIVE_S:
            raise ConfigError(
                f"keepalive_s must be at least {_MIN_KEEPALIVE_S:g} seconds, not {self.keepalive_s:g}."
            )

    @property
    def algorithm(self) -> str | None:
        """The compression as tritonclient names it."""
        return None if self.compression == "none" else self.compression

    def make_channel_arguments(self) -> list[tuple[str, int]]:
        """Return gRPC's channel arguments."""
        if self.keepalive_s is None:
            return list(_CHANNEL)
        return [
            *_CHANNEL,
            ("grpc.keepalive_time_ms", int(self.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]


@dataclass(frozen=True)
class Request:
    """tritonclient's objects for one request."""

    inputs: list[Any]
    outputs: list[Any]


def make_request(spec: ModelSpec, arrays: Sequence[NDArray[Any]], outputs: Sequence[str]) -> Request:
    """Return new request objects without data; see `Lane.prepare`."""
    return Request(
        [
            triton.InferInput(entry.name, list(array.shape), entry.dtype)
            for entry, array in zip(spec.inputs, arrays, strict=True)
        ],
        [triton.InferRequestedOutput(name) for name in outputs],
    )


class Lane:
    """One connection with its request objects. It serves one request at a time: the objects are not thread-safe."""

    def __init__(self, url: str, settings: ChannelSettings) -> None:
        """Set the address. The first request connects."""
        options = settings.make_channel_arguments()
        self.client = settings.connection.open_triton(triton.InferenceServerClient, url, options)
        self.closed = False
        self._requests: dict[tuple[object, ...], Request] = {}

    def prepare(
        self, spec: ModelSpec, arrays: Sequence[NDArray[Any]], outputs: Sequence[str], *, keep: bool
    ) -> Request:
        """Return request objects without data.

        Args:
            spec: The model.
            arrays: The inputs, whose shapes the objects get.
            outputs: Names of the wanted outputs.
            keep: Whether to reuse the objects for the next request with the same shapes.
        """
        key = (spec.name, tuple(outputs), *(array.shape for array in arrays))
        if keep and (request := self._requests.get(key)):
            return request
        request = make_request(spec, arrays, outputs)
        if keep:
            if len(self._requests) >= _MAX_REQUESTS:
                self._requests.clear()
            self._requests[key] = request
        return request

    def close(self) -> None:
        """Close the connection, which cancels its request here and on the server."""
        self.closed = True
        self.client.close()


def set_data(request: Request, arrays: Sequence[NDArray[Any]]) -> None:
    """Put the inputs into the gRPC message, and let the outputs return in the gRPC answer."""
    for tensor, array in zip(request.inputs, arrays, strict=True):
        tensor.set_data_from_numpy(array)
    for wanted in request.outputs:
        wanted.unset_shared_memory()


def set_region(
    request: Request,
    region: str,
    inputs: Mapping[str, tuple[int, int]],
    outputs: Mapping[str, tuple[int, int]],
) -> None:
    """Let a request point into a shared-memory region.

    Args:
        request: The request.
        region: Name of the region.
        inputs: Name -> (offset, size) in bytes of every input.
        outputs: The same of some outputs. The other outputs return in the gRPC answer.
    """
    for tensor in request.inputs:
        offset, size = inputs[tensor.name()]
        tensor.set_shared_memory(region, size, offset)
    for wanted in request.outputs:
        wanted.unset_shared_memory()
        if wanted.name() in outputs:
            offset, size = outputs[wanted.name()]
            wanted.set_shared_memory(region, size, offset)


class Calls:
    """A group of requests. Any thread can cancel all of them, here and on the server.

    `cancelled` is set when the group is cancelled. It also ends the pauses between repeated requests.

    Triton drops a queued request, and tells a running python model. An ensemble of Triton 2.51 ends its current step
    and starts no further one.
    """

    def __init__(self, priority: int = 0) -> None:
        """Start without requests.

        Args:
            priority: Priority of the requests in Triton's queue, 1 before 2. 0: the default of the model.
        """
        self.priority = priority
        self._lock = threading.Lock()
        self._lanes: set[Lane] = set()
        self.cancelled = threading.Event()

    def add(self, lane: Lane) -> None:
        """Register the connection of a new request. Raise CancelledError if the group was cancelled."""
        with self._lock:
            self.require_running()
            self._lanes.add(lane)

    def require_running(self) -> None:
        """Raise CancelledError if the group was cancelled."""
        if self.cancelled.is_set():
            raise CancelledError("The request was cancelled before it was sent.")

    def remove(self, lane: Lane) -> None:
        """Remove the connection of a finished request."""
        with self._lock:
            self._lanes.discard(lane)

    def cancel(self) -> None:
        """Cancel the running requests and refuse new ones."""
        with self._lock:
            self.cancelled.set()
            lanes, self._lanes = self._lanes, set()
        for lane in lanes:
            lane.close()


def holds_bytes(arrays: Sequence[NDArray[Any]]) -> bool:
    """Whether a tensor is of type BYTES."""
    return any(array.dtype == np.object_ for array in arrays)
