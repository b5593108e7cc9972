"""Requests to a served model, serialised once, so that sending them costs the generator little.

There are two ways to send them. `BytesSender` sends serialised requests and reads the answer message, to measure the
server. `make_client_request` calls the project's client, whose work (tensors in, tensors out, shared memory) is then
part of every latency.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from bench.load.generator import Request
from bench.load.inputs import Arrays
from client.channel import ChannelSettings
from client.status import make_error
from client.triton import TritonTransport
from client.triton_core import PROBE_TIMEOUT_S
from contract.connection import PLAIN, Connection
from contract.errors import CxrError
from contract.grpc_status import resolve_unavailable
from contract.tls_trouble import find_tls_error

_SERVICE: Final = "/inference.GRPCInferenceService"
_OPTIONS: Final = ChannelSettings().make_channel_arguments()


@dataclass(frozen=True)
class Signature:
    """Names and Triton data types of a served model's inputs, and names of its outputs."""

    model: str
    inputs: dict[str, str]
    outputs: tuple[str, ...]


def read_signature(url: str, model: str, timeout_s: float, connection: Connection = PLAIN) -> Signature:
    """Read the signature of a served model.

    Raises:
        ConfigError: The settings of TLS do not fit the server, or it wants another token.
        ServerError: The server does not have the model.
        ServiceError: The server does not answer.
    """
    from tritonclient.grpc import InferenceServerClient

    try:
        with connection.open_triton(InferenceServerClient, url, _OPTIONS) as server:
            metadata = server.get_model_metadata(model, client_timeout=timeout_s)
    except InferenceServerException as error:
        if (trouble := find_tls_error(url, connection, "Triton")) is not None:
            raise trouble from error
        raise make_error(
            error.status(), error.message() or "", server="Triton", url=url, timeout_s=timeout_s
        ) from error
    inputs = {entry.name: entry.datatype for entry in metadata.inputs}
    return Signature(model, inputs, tuple(entry.name for entry in metadata.outputs))


def serialise(signature: Signature, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()) -> bytes:
    """Serialise a KServe v2 ModelInferRequest. Without `outputs` it requests all outputs."""
    request = service_pb2.ModelInferRequest(model_name=signature.model)
    for name, datatype in signature.inputs.items():
        array = np.ascontiguousarray(inputs[name])
        request.inputs.add(name=name, datatype=datatype, shape=list(array.shape))
        raw = serialize_byte_tensor(array).item() if datatype == "BYTES" else array.tobytes()
        request.raw_input_contents.append(raw)
    for name in outputs:
        request.outputs.add(name=name)
    return bytes(request.SerializeToString())


class BytesSender:
    """A `Request` that sends serialised requests in turn over one channel. Thread-safe."""

    def __init__(
        self, url: str, payloads: Sequence[bytes], timeout_s: float, connection: Connection = PLAIN
    ) -> None:
        """Set up the calls; nothing is sent yet.

        Args:
            url: host:port of Triton's gRPC service.
            payloads: At least one serialised request.
            timeout_s: Deadline of each call, in seconds.
            connection: TLS and token.

        Raises:
            ConfigError: A file of TLS cannot be read.
        """
        self._url, self._payloads, self._timeout_s = url, list(payloads), timeout_s
        self._channel = connection.open_channel(url, _OPTIONS)
        self._metadata = connection.metadata
        self._infer = self._channel.unary_unary(
            f"{_SERVICE}/ModelInfer", response_deserializer=service_pb2.ModelInferResponse.FromString
        )
        self._ready = self._channel.unary_unary(
            f"{_SERVICE}/ModelReady",
            request_serializer=service_pb2.ModelReadyRequest.SerializeToString,
            response_deserializer=service_pb2.ModelReadyResponse.FromString,
        )

    def __call__(self, number: int) -> None:
        """Send request `number`, modulo the number of payloads, and wait for its answer.

        Raises:
            InputError, ServiceError: See `client.status`.
        """
        payload = self._payloads[number % len(self._payloads)]
        try:
            self._infer(payload, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._explain(error, payload) from error

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _is_ready(self, payload: bytes) -> bool:
        """Whether the model of a serialised request is ready."""
        request = service_pb2.ModelReadyRequest(
            name=service_pb2.ModelInferRequest.FromString(payload).model_name
        )
        try:
            return bool(self._ready(request, timeout=PROBE_TIMEOUT_S, metadata=self._metadata).ready)
        except grpc.RpcError:
            return False

    def _explain(self, error: Any, payload: bytes) -> CxrError:
        return make_error(
            resolve_unavailable(error.code().name, lambda: self._is_ready(payload)),
            error.details() or "",
            server="Triton",
            url=self._url,
            timeout_s=self._timeout_s,
        )


def make_client_request(
    transport: TritonTransport,
    model: str,
    requests: Sequence[Arrays],
    outputs: Sequence[str],
    timeout_s: float,
) -> Request:
    """Return a `Request` that calls the project's client with arrays, in turn."""

    def request(number: int) -> None:
        transport.infer(model, requests[number % len(requests)], outputs, timeout_s)

    return request
