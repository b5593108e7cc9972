"""A stand-in for tritonclient's own client, which reads and writes the real shared memory.

It answers each request with the sum of the bytes that it got, so a test sees whether they arrived.
"""

import math
import threading
from pathlib import Path

import numpy as np
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor, serialize_byte_tensor

from contract.tensors import MODELS, NUMPY_DTYPES

SIZES = {"S": 224, "N": 49, "C": 32, "D": 16}
SHM = Path("/dev/shm")


def add_up(arrays) -> int:
    """Return the sum of all bytes or numbers."""
    return sum(
        sum(map(sum, a.ravel())) if a.dtype == object else int(a.astype(np.int64).sum()) for a in arrays
    )


class Server:
    """The state of one Triton: its regions, its requests, and its next failures."""

    def __init__(self) -> None:
        self.regions: dict[str, int] = {}
        self.sent: list[dict] = []
        self.failures: list[str] = []  # status codes of the next inferences
        self.refuses_regions = False
        self.registered = 0
        self.config_calls = 0
        self.ready: bool | str = True
        self.entered = threading.Event()
        self.block = False
        self.clients: list[Client] = []


class Client:
    """Stands for tritonclient.grpc.InferenceServerClient."""

    server: Server

    def __init__(self, url, channel_args):
        self.channel_args = channel_args
        self.closed = threading.Event()
        self.server.clients.append(self)

    def infer(self, model, inputs, *, outputs, client_timeout, timeout, compression_algorithm, priority):
        server = self.server
        assert client_timeout > 0
        assert timeout == max(1, int(client_timeout * 1e6))
        shared = [tensor.name() for tensor in inputs if tensor._get_content() is None]
        server.sent.append(
            {
                "model": model,
                "shared": shared,
                "shared_outputs": [o.name() for o in outputs if o._get_tensor().parameters],
                "objects": [id(tensor) for tensor in inputs],
                "compression": compression_algorithm,
                "priority": priority,
                "client": self,
            }
        )
        if server.block:
            server.entered.set()
            assert self.closed.wait(60)
            raise InferenceServerException("Channel closed!", status="StatusCode.CANCELLED")
        if server.failures and (code := server.failures.pop(0)):
            raise InferenceServerException("it says", status=f"StatusCode.{code}")
        return self._answer(model, [self._read(tensor) for tensor in inputs], outputs)

    def is_model_ready(self, _model, client_timeout):
        if isinstance(self.server.ready, str):
            raise InferenceServerException("no", status=f"StatusCode.{self.server.ready}")
        return self.server.ready

    def get_model_config(self, model, client_timeout):
        self.server.config_calls += 1
        answer = service_pb2.ModelConfigResponse()
        answer.config.name = model
        answer.config.parameters["image_tokens_grid"].string_value = str(math.isqrt(SIZES["N"]))
        for spec in MODELS[model].outputs:
            answer.config.output.add(name=spec.name, dims=spec.dims(SIZES))
        return answer

    def register_system_shared_memory(self, name, key, byte_size, client_timeout):
        if self.server.refuses_regions:
            raise InferenceServerException("Unable to open", status="StatusCode.INTERNAL")
        self.server.registered += 1
        self.server.regions[name] = byte_size

    def unregister_system_shared_memory(self, name, client_timeout):
        if self.server.regions.pop(name, None) is None:
            raise InferenceServerException("Unable to find", status="StatusCode.NOT_FOUND")

    def register_plugin(self, _plugin):
        pass

    def close(self):
        self.closed.set()

    def _find(self, tensor) -> tuple[Path, int, int]:
        parameters = tensor.parameters
        name = parameters["shared_memory_region"].string_param
        if name not in self.server.regions:
            raise InferenceServerException("Unable to find", status="StatusCode.NOT_FOUND")
        offset = parameters["shared_memory_offset"].int64_param if "shared_memory_offset" in parameters else 0
        return SHM / name, offset, parameters["shared_memory_byte_size"].int64_param

    def _read(self, tensor):
        data = tensor._get_content()
        if data is None:
            path, offset, size = self._find(tensor._get_tensor())
            data = path.read_bytes()[offset : offset + size]
        if tensor.datatype() == "BYTES":
            return deserialize_bytes_tensor(data).reshape(tensor.shape())
        return np.frombuffer(data, NUMPY_DTYPES[tensor.datatype()]).reshape(tensor.shape())

    def _answer(self, model, arrays, outputs):
        """Fill each output with the sum of the bytes of the inputs."""
        total = add_up(arrays)
        batch, length = arrays[0].shape[0], next((a.shape[1] for a in arrays if a.dtype == np.int64), 9)
        views = 1 if arrays[0].dtype == np.int64 else arrays[0].shape[1]
        specs = {entry.name: entry for entry in MODELS[model].outputs}
        response = service_pb2.ModelInferResponse(model_name=model, model_version="7")
        for wanted in outputs:
            spec = specs[wanted.name()]
            free = {"L": length, "V": views, "I": views * SIZES["N"]}
            dims = zip(spec.shape, spec.dims(SIZES), strict=True)
            shape = (batch, *(free.get(str(letter), size) for letter, size in dims))
            described = response.outputs.add(name=spec.name, datatype=spec.dtype, shape=shape)
            if spec.dtype == "BYTES":
                data = serialize_byte_tensor(np.full(shape, b"{}", np.object_)).item()
            else:
                data = np.full(shape, total % 1000, NUMPY_DTYPES[spec.dtype]).tobytes()
            if wanted._get_tensor().parameters:
                self._write(wanted._get_tensor(), data)
                described.parameters["shared_memory_region"].string_param = "one"
                data = b""
            response.raw_output_contents.append(data)
        return InferResult(response)

    def _write(self, wanted, data: bytes) -> None:
        path, offset, size = self._find(wanted)
        if size < len(data):
            raise InferenceServerException("should be at least", status="StatusCode.INTERNAL")
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)


def make_pixels(batch: int = 1, value: int = 1) -> dict[str, np.ndarray]:
    return {"pixels": np.full((batch, 1, 224, 224), value, np.uint8)}


def make_text(batch: int = 1, length: int = 64) -> dict[str, np.ndarray]:
    return {name: np.ones((batch, length), np.int64) for name in ("input_ids", "attention_mask")}


OUTPUTS = ("probabilities", "embedding", "image_attention")


def ask(transport, inputs, model="predict_image_tensors", outputs=OUTPUTS, **options):
    answer = transport.infer(model, inputs, outputs, 5, **options)
    total = add_up(inputs.values())
    for name in outputs:
        if answer[name].dtype != object:
            assert np.all(answer[name] == total % 1000), name
    return answer
