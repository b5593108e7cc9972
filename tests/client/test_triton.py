"""The transport over a stand-in for tritonclient's own client, which reads and writes the real shared memory."""

import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fake_triton import in_steps
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor, serialize_byte_tensor

from client.channel import Calls, ChannelSettings
from client.triton import TritonTransport
from contract.connection import is_local
from contract.errors import (
    BusyError,
    CancelledError,
    ConfigError,
    DeadlineError,
    InputError,
    ServerError,
    TensorError,
    UnavailableError,
)
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


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(Client, "server", server, raising=False)
    monkeypatch.setattr("client.channel.triton.InferenceServerClient", Client)
    return server


@pytest.fixture
def connect(server):
    opened = []

    def connect(url: str = "127.0.0.1:8001", **settings) -> TritonTransport:
        opened.append(TritonTransport(url, ChannelSettings(**settings)))
        return opened[-1]

    yield connect
    for transport in opened:
        transport.close()
    assert not server.regions


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


@pytest.mark.parametrize("carrier", ["grpc", "shared_memory", "auto"])
def test_answers_are_the_same_however_they_travel(connect, server, carrier):
    transport = connect(carrier=carrier)
    for batch in (1, 8, 32, 1):
        for value in (1, 3):
            answer = ask(transport, make_pixels(batch, value))
            assert answer["image_attention"].shape == (batch, 22, 49)
            assert answer.model_version == "7"
            assert answer["probabilities"].dtype == np.float32
    image = {"image_bytes": np.array([[b"\1" * 300_000]], np.object_)}
    for _ in range(4):
        answer = ask(transport, image, "predict_image", (*OUTPUTS, "image_notes"))
        assert answer["image_notes"].tolist() == [[b"{}"]]
    for count in (2, 4, 2):
        files = {"image_bytes": np.array([[b"\1" * 100_000] * count], np.object_)}
        answer = ask(transport, files, "predict_image", (*OUTPUTS, "image_notes", "lateral"))
        assert answer["image_attention"].shape == (1, 22, count * 49)
        assert answer["image_notes"].shape == answer["lateral"].shape == (1, count)
    for length in (32, 256, 64, 256):
        answer = ask(
            transport,
            {**make_pixels(8), **make_text(8, length)},
            "predict_study_tensors",
            ("text_attention",),
        )
        assert answer["text_attention"].shape == (8, 22, length)
    assert any(call["shared"] for call in server.sent) is (carrier != "grpc")
    assert any(call["shared_outputs"] for call in server.sent) is (carrier != "grpc")


def test_auto_shares_large_calls_from_the_third_on(connect, server):
    transport = connect()
    for _ in range(5):
        ask(transport, make_pixels(1), outputs=("probabilities",))  # 50 KB
    assert not any(call["shared"] for call in server.sent)
    server.sent.clear()
    for _ in range(4):
        ask(transport, make_pixels(2))  # 100 KB
    assert [bool(call["shared"]) for call in server.sent] == [False, False, True, True]
    assert server.registered == 1


@pytest.mark.parametrize("url", ["10.0.0.5:8001", "triton:8001", "[2001:db8::1]:8001"])
def test_auto_never_shares_with_another_host(connect, server, url):
    transport = connect(url)
    for _ in range(5):
        ask(transport, make_pixels(32))
    assert not server.registered


def test_a_text_length_that_is_not_known_before_comes_back_by_grpc(connect, server):
    transport = connect(carrier="shared_memory")
    report = {"report": np.array([[b"Normal."]], np.object_)}
    for _ in range(2):
        ask(transport, report, "predict_text", ("probabilities", "text_attention"))
    assert server.sent[-1]["shared_outputs"] == ["probabilities"]


def test_a_server_that_refuses_regions_is_called_over_grpc(connect, server):
    server.refuses_regions = True
    transport = connect(carrier="shared_memory")
    for _ in range(3):
        ask(transport, make_pixels(8))
    assert [call["shared"] for call in server.sent] == [[], [], []]


def test_a_restarted_server_is_answered_without_an_error(connect, server):
    transport = connect(carrier="shared_memory")
    ask(transport, make_pixels(8))
    server.regions.clear()
    ask(transport, make_pixels(8, 2))
    assert [bool(call["shared"]) for call in server.sent] == [True, True, False]
    ask(transport, make_pixels(8, 3))
    assert server.sent[-1]["shared"]
    assert server.registered == 2


def test_outputs_that_grew_are_fetched_again(connect, server, monkeypatch):
    transport = connect(carrier="shared_memory")
    for _ in range(3):
        ask(transport, make_pixels(8))
    assert server.sent[-1]["shared_outputs"]
    monkeypatch.setitem(SIZES, "N", 196)
    for value in (1, 2, 3):
        assert ask(transport, make_pixels(8, value))["image_attention"].shape == (8, 22, 196)
    assert server.sent[-1]["shared_outputs"]


@pytest.mark.parametrize("code", ["INTERNAL", "NOT_FOUND"])
def test_a_failure_that_is_not_of_the_region_is_raised(connect, server, code):
    transport = connect(carrier="shared_memory")
    server.failures = [code, code]
    with pytest.raises(ServerError, match="it says"):
        ask(transport, make_pixels(8))
    server.failures = []
    ask(transport, make_pixels(8))


def test_what_failed_at_the_server_is_not_run_a_second_time(connect, server):
    transport = connect(carrier="shared_memory")
    for _ in range(3):
        ask(transport, make_pixels(8))
    assert server.sent[-1]["shared_outputs"]
    sent = len(server.sent)
    server.failures = ["INTERNAL"]
    with pytest.raises(ServerError, match="it says"):
        ask(transport, make_pixels(8))
    assert len(server.sent) == sent + 1
    assert server.config_calls == 1  # its outputs fit: so it was not the region
    ask(transport, make_pixels(8))
    assert server.sent[-1]["shared"]


@pytest.mark.parametrize(
    ("code", "reused"), [("INVALID_ARGUMENT", True), ("DEADLINE_EXCEEDED", False), ("CANCELLED", False)]
)
def test_a_region_is_used_again_only_after_an_answer(connect, server, code, reused):
    transport = connect(carrier="shared_memory")
    ask(transport, make_pixels(8))
    [before] = server.regions
    server.failures = [code]
    with pytest.raises((InputError, DeadlineError, CancelledError)):
        ask(transport, make_pixels(8))
    ask(transport, make_pixels(8))
    assert (list(server.regions) == [before]) is reused


def test_request_objects_are_reused_for_the_same_shapes(connect, server):
    transport = connect(carrier="grpc")
    for batch in (1, 1, 2, 1):
        ask(transport, make_pixels(batch))
    objects = [call["objects"] for call in server.sent]
    assert objects[0] == objects[1] == objects[3] != objects[2]
    assert len({id(call["client"]) for call in server.sent}) == 1


def test_a_file_is_not_kept_in_memory(connect, server):
    transport = connect(carrier="grpc")
    ask(transport, {"image_bytes": np.array([[b"\1" * 1000]], np.object_)}, "predict_image", OUTPUTS)
    [lane] = transport._lanes
    assert not lane._requests


def test_calls_at_once_share_no_connection_and_no_object(connect, server):
    transport = connect(carrier="shared_memory")
    errors = []

    def work(value: int) -> None:
        try:
            for _ in range(20):
                ask(transport, make_pixels(2, value))
        except Exception as error:  # shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(transport._lanes) <= 6
    assert len(server.regions) <= 6


@pytest.mark.parametrize(
    ("ready", "kind"),
    [
        (True, BusyError),
        (False, UnavailableError),
        ("UNAVAILABLE", UnavailableError),
        ("DEADLINE_EXCEEDED", UnavailableError),
    ],
)
def test_unavailable_is_busy_where_the_server_has_the_model(connect, server, ready, kind):
    """Triton says UNAVAILABLE for a full queue, gRPC for a connection that cannot be made."""
    server.failures, server.ready = ["UNAVAILABLE"], ready
    with pytest.raises(kind) as caught:
        ask(connect(), make_pixels())
    assert type(caught.value) is kind


def test_a_connection_whose_server_was_not_there_is_given_up(connect, server):
    """A new connection resolves the host name again, because a restarted container has another address."""
    transport = connect()
    ask(transport, make_pixels())
    server.failures, server.ready = ["UNAVAILABLE"], "UNAVAILABLE"
    with pytest.raises(UnavailableError):
        ask(transport, make_pixels())
    server.failures = ["UNAVAILABLE"]
    with pytest.raises(UnavailableError):
        ask(transport, make_pixels())
    ask(transport, make_pixels())
    first, lost, again, last = [call["client"] for call in server.sent]
    assert first is lost
    assert len({id(first), id(again), id(last)}) == 3
    assert first.closed.is_set()
    assert again.closed.is_set()
    server.failures, server.ready = ["UNAVAILABLE"], True
    with pytest.raises(BusyError):
        ask(transport, make_pixels())
    ask(transport, make_pixels())
    assert server.sent[-1]["client"] is last  # a server that is busy is there
    assert len(transport._lanes) == 1


def test_a_queue_that_gives_up_at_the_deadline_is_a_deadline(connect, server, monkeypatch):
    transport = connect()
    server.failures = ["UNAVAILABLE"]
    monkeypatch.setattr(transport, "_serves", in_steps(lambda *_: time.sleep(0.1) or True))
    with pytest.raises(DeadlineError):
        transport.infer("predict_image_tensors", make_pixels(), OUTPUTS, 0.05)


def test_calls_are_cancelled_together(connect, server):
    transport, calls, outcomes = connect(carrier="shared_memory"), Calls(), []
    server.block = True

    def work() -> None:
        try:
            ask(transport, make_pixels(8), calls=calls)
        except CancelledError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert server.entered.wait(60)
    calls.cancel()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == 3  # those under way, and those that had not begun
    server.block = False
    ask(transport, make_pixels(8))
    with pytest.raises(CancelledError):
        ask(transport, make_pixels(8), calls=calls)
    assert all(not lane.closed for lane in transport._lanes)


def test_bad_tensors_are_refused_before_anything_is_sent(connect, server):
    transport = connect()
    with pytest.raises(TensorError, match="UINT8"):
        transport.infer("predict_image_tensors", {"pixels": np.zeros((1, 1, 8, 8), np.float32)}, OUTPUTS, 1)
    assert not server.sent


def test_compression_and_keepalive_reach_the_channel(connect, server):
    transport = connect(compression="gzip", keepalive_s=60)
    ask(transport, make_pixels())
    [call] = server.sent
    assert call["compression"] == "gzip"
    arguments = dict(call["client"].channel_args)
    assert arguments["grpc.keepalive_time_ms"] == 60_000
    assert arguments["grpc.enable_http_proxy"] == 0
    ask(connect(), make_pixels())
    assert server.sent[-1]["compression"] is None
    assert "grpc.keepalive_time_ms" not in dict(server.sent[-1]["client"].channel_args)


@pytest.mark.parametrize(
    "settings",
    [
        {"carrier": "pigeon"},
        {"compression": "zip"},
        {"keepalive_s": 5},
        {"keepalive_s": math.nan},
        {"carrier": None},
    ],
)
def test_settings_that_do_not_exist_are_refused(settings):
    with pytest.raises(ConfigError):
        ChannelSettings(**settings)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("127.0.0.1:8001", True),
        ("127.1.2.3:1", True),
        ("localhost:8001", True),
        ("[::1]:8001", True),
        ("unix:/run/triton.sock", True),
        ("192.168.0.7:8001", False),
        ("localhost.example.org:8001", False),
        ("triton", False),
    ],
)
def test_local_addresses(url, local):
    assert is_local(url) is local


def test_closing_leaves_no_connection_open(server):
    transport = TritonTransport("127.0.0.1:8001", ChannelSettings(carrier="shared_memory"))
    ask(transport, make_pixels(8))
    transport.close()
    transport.close()
    assert all(client.closed.is_set() for client in server.clients)
    assert not server.regions


def test_a_transport_that_nobody_closed_leaves_no_region(server):
    transport = TritonTransport("127.0.0.1:8001", ChannelSettings(carrier="shared_memory"))
    ask(transport, make_pixels(8))
    [name] = server.regions
    del transport
    assert not server.regions
    assert not (SHM / name).exists()
