"""A FakeTriton behind real gRPC on loopback, for tests of connections, deadlines, cancellations and lost servers."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from fake_triton import FakeTriton, make_config
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from contract.errors import CxrError, InputError
from contract.tensors import NUMPY_DTYPES


class TritonService(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers with the arrays of a FakeTriton.

    Attributes:
        fake: Makes the answers.
        blocks: Whether a request waits until its caller ends it.
        entered: Set when a request waits.
        ended: Set when the caller of a waiting request has ended it.
        refusals: Status codes of the next requests, which are refused before anything is done.
        metadata: The metadata of each request.
        priorities: The priority of each request.
        peers: The connections from which requests came.
        gather: So many requests wait for each other.
    """

    def __init__(self, fake: FakeTriton) -> None:
        self.fake = fake
        self.blocks = False
        self.ready = True
        self.entered, self.ended = threading.Event(), threading.Event()
        self.refusals: list[grpc.StatusCode] = []
        self.metadata: list[dict[str, str]] = []
        self.priorities: list[int] = []
        self.peers: set[str] = set()
        self.gather = 1
        self._lock = threading.Lock()
        self._gathered = threading.Condition()

    def ServerLive(self, _request: Any, _context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    def ServerReady(self, _request: Any, _context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelReady(self, _request: Any, _context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=self.ready)

    def ModelConfig(self, request: Any, _context: Any) -> Any:
        model = self.fake.model
        decisions = model.decisions.describe()
        config = make_config(request.name, fingerprint=model.fingerprint, decisions=json.dumps(decisions))
        return service_pb2.ModelConfigResponse(config=ParseDict(config, model_config_pb2.ModelConfig()))

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self.metadata.append({item.key: item.value for item in context.invocation_metadata()})
        self.priorities.append(request.parameters["priority"].uint64_param)
        with self._lock:
            if self.refusals:
                context.abort(self.refusals.pop(0), "it is refused")
        with self._gathered:
            self.peers.add(context.peer())
            self._gathered.notify_all()
            self._gathered.wait_for(lambda: len(self.peers) >= self.gather, 10)
        if self.blocks:
            context.add_callback(self.ended.set)
            self.entered.set()
            self.ended.wait(20)
            context.abort(grpc.StatusCode.CANCELLED, "ended")
        inputs = {
            entry.name: _read(entry, data)
            for entry, data in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        try:
            answer = self.fake.infer(request.model_name, inputs, [out.name for out in request.outputs], 1.0)
        except CxrError as error:
            refused = isinstance(error, InputError)
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT if refused else grpc.StatusCode.INTERNAL, str(error)
            )
        response = service_pb2.ModelInferResponse(
            model_name=request.model_name, model_version=answer.model_version
        )
        for name, array in answer.items():
            kind = next(kind for kind, dtype in NUMPY_DTYPES.items() if dtype == array.dtype)
            response.outputs.add(name=name, datatype=kind, shape=array.shape)
            is_text = kind == "BYTES"
            response.raw_output_contents.append(
                serialize_byte_tensor(array).item() if is_text else array.tobytes()
            )
        return response


def _read(entry: Any, data: bytes) -> np.ndarray:
    if entry.datatype == "BYTES":
        return deserialize_bytes_tensor(data).reshape(entry.shape)
    return np.frombuffer(data, NUMPY_DTYPES[entry.datatype]).reshape(entry.shape)


@contextmanager
def serve_triton(service: TritonService, port: int = 0) -> Iterator[int]:
    """Answer on a port of loopback; yield the port."""
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield bound
    finally:
        service.ended.set()
        server.stop(0).wait()
