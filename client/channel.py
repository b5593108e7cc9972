"""Connections to Triton, each with the request objects it reuses, and calls that can be cancelled together."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from tritonclient import grpc as triton

from contract.address import CHANNEL_OPTIONS
from contract.errors import CancelledError, ConfigError
from contract.tensors import ModelSpec

Carrier = Literal["auto", "grpc", "shared_memory", "cuda_shared_memory"]
Compression = Literal["none", "gzip", "deflate"]

_CHANNEL: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    *CHANNEL_OPTIONS,
)
_KEEPALIVE_LEAST_S: Final = 10.0  # gRPC raises anything shorter to this
_REUSED: Final = 32  # request objects kept per connection: one for each model and shape in use


@dataclass(frozen=True)
class ChannelSettings:
    """How tensors travel to Triton.

    Attributes:
        carrier: "grpc"; "shared_memory" for every call; "cuda_shared_memory" for inputs that are numbers; "auto"
            takes shared memory where it measured faster: see `client.triton`.
        compression: Of gRPC messages. It pays off only where the network is slower than the compressor (gzip did
            12 MB/s on a busy core) and the image is not compressed already; on one host it always costs.
        keepalive_s: Seconds between pings of an idle connection, which keep it alive in a firewall's table; at least
            10. Below 300 s Triton closes the connection (too many pings) unless it was started with a shorter
            `--grpc-http2-min-recv-ping-interval-without-data`. None sends no pings.
    """

    carrier: Carrier = "auto"
    compression: Compression = "none"
    keepalive_s: float | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a setting that does not exist."""
        for name, value, known in (
            ("transport", self.carrier, get_args(Carrier)),
            ("compression", self.compression, get_args(Compression)),
        ):
            if value not in known:
                raise ConfigError(f"The {name} must be one of {', '.join(known)}, not {value!r}.")
        if self.keepalive_s is not None and not self.keepalive_s >= _KEEPALIVE_LEAST_S:
            raise ConfigError(f"Keepalive pings must be at least 10 s apart, not {self.keepalive_s:g} s.")

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
    """tritonclient's objects for one call."""

    inputs: list[Any]
    outputs: list[Any]


class Lane:
    """One connection with its request objects, for one call at a time: tritonclient's objects are not thread-safe."""

    def __init__(self, url: str, settings: ChannelSettings) -> None:
        """Describe the connection; nothing is sent yet."""
        self.client = triton.InferenceServerClient(url, channel_args=settings.make_channel_arguments())
        self.closed = False
        self._requests: dict[tuple[object, ...], Request] = {}

    def prepare(
        self, spec: ModelSpec, arrays: Sequence[NDArray[Any]], outputs: Sequence[str], *, keep: bool
    ) -> Request:
        """Return the request objects for inputs of these shapes, without their data; reused if `keep`."""
        key = (spec.name, tuple(outputs), *(array.shape for array in arrays))
        if keep and (request := self._requests.get(key)):
            return request
        request = Request(
            [
                triton.InferInput(entry.name, list(array.shape), entry.dtype)
                for entry, array in zip(spec.inputs, arrays, strict=True)
            ],
            [triton.InferRequestedOutput(name) for name in outputs],
        )
        if keep:
            if len(self._requests) >= _REUSED:
                self._requests.clear()
            self._requests[key] = request
        return request

    def close(self) -> None:
        """Close the connection, which cancels its call here and at the server."""
        self.closed = True
        self.client.close()


def set_data(request: Request, arrays: Sequence[NDArray[Any]]) -> None:
    """Put the tensors into the message itself."""
    for tensor, array in zip(request.inputs, arrays, strict=True):
        tensor.set_data_from_numpy(array)
    for wanted in request.outputs:
        wanted.unset_shared_memory()


def set_region(
    request: Request,
    region: str,
    places: Mapping[str, tuple[int, int]],
    outputs: Mapping[str, tuple[int, int]],
) -> None:
    """Point at tensors in a shared-memory region: name -> (offset, size) in bytes; other outputs come by gRPC."""
    for tensor in request.inputs:
        offset, size = places[tensor.name()]
        tensor.set_shared_memory(region, size, offset)
    for wanted in request.outputs:
        wanted.unset_shared_memory()
        if wanted.name() in outputs:
            offset, size = outputs[wanted.name()]
            wanted.set_shared_memory(region, size, offset)


class Calls:
    """Calls that are cancelled together, by any thread, here and at the server.

    Triton drops a queued request and tells a running python model. An ensemble (2.51) ends the step it is in, and
    starts no further one.
    """

    def __init__(self) -> None:
        """Start with no calls."""
        self._lock = threading.Lock()
        self._lanes: set[Lane] = set()
        self._cancelled = False

    def add(self, lane: Lane) -> None:
        """Note that a call begins; CancelledError if all were cancelled."""
        with self._lock:
            if self._cancelled:
                raise CancelledError("The call was cancelled before it was sent.")
            self._lanes.add(lane)

    def remove(self, lane: Lane) -> None:
        """Note that a call has ended."""
        with self._lock:
            self._lanes.discard(lane)

    def cancel(self) -> None:
        """Cancel the calls under way and refuse those to come."""
        with self._lock:
            self._cancelled = True
            lanes, self._lanes = self._lanes, set()
        for lane in lanes:
            lane.close()


def is_local(url: str) -> bool:
    """Whether an address, host:port or unix:path, is of this very host."""
    if url.startswith("unix:"):
        return True
    host = url.rpartition(":")[0].strip("[]") or url
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def holds_bytes(arrays: Sequence[NDArray[Any]]) -> bool:
    """Whether a tensor is of type BYTES."""
    return any(array.dtype == np.object_ for array in arrays)
