"""The client's transport against the real Triton, with python models that sleep as long as they are told."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from client import CaseInput, CxrClient
from client.channel import ChannelSettings
from client.triton import TritonTransport
from contract.errors import BusyError, CancelledError, CxrError, DeadlineError, UnavailableError
from contract.labels import LABELS
from contract.notes import ReportNotes
from contract.tensors import MODELS, TensorSpec
from serving.stack import Ports, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.alone]
FINGERPRINT = "ab" * 32
SIZES = {"S": 224, "N": 49, "C": 32, "D": 16}
QUEUE = 2

MODEL = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

NOTES = %(notes)r


class TritonPythonModel:
    def initialize(self, arguments):
        import json
        self.config = json.loads(arguments["model_config"])

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        given = [pb_utils.get_input_tensor_by_name(request, x["name"]).as_numpy() for x in self.config["input"]]
        batch = given[0].shape[0]
        value, seconds = self._read(given[0])
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.005)
            if request.is_cancelled():
                print("the sleeper was woken", flush=True)
                error = pb_utils.TritonError("woken", pb_utils.TritonError.CANCELLED)
                return pb_utils.InferenceResponse(error=error)
        if seconds:
            print("the sleeper slept well", flush=True)
        tensors = []
        for output in self.config["output"]:
            shape = [batch, *(9 if int(size) == -1 else int(size) for size in output["dims"])]
            if output["data_type"] == "TYPE_STRING":
                array = np.full(shape, NOTES if "notes" in output["name"] else b"", object)
            else:
                dtype = pb_utils.triton_string_to_numpy(output["data_type"])
                array = np.full(shape, value).astype(dtype)
            tensors.append(pb_utils.Tensor(output["name"], array))
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _read(self, array):
        if array.dtype == np.object_:
            text = array.ravel()[0]
            return 0.5, float(text) if text[:1].isdigit() else 0.0  # the question about health is no number
        return array.astype(np.float64).mean() / 255, 0.0
"""

PYTHON_MODELS = (
    "predict_text",
    "predict_study",
    "predict_image_tensors",
    "preprocess_text",
    "preprocess_study",
)
KINDS = {"BYTES": "TYPE_STRING", **{name: f"TYPE_{name}" for name in ("UINT8", "INT32", "INT64", "FP32")}}


def describe(tensors: tuple[TensorSpec, ...]) -> list[dict]:
    return [
        {"name": x.name, "data_type": KINDS[x.dtype], "dims": [str(size) for size in x.dims(SIZES)]}
        for x in tensors
    ]


def write_model(root: Path, name: str) -> None:
    labels = [{"key": label.key, "name": label.name, "threshold": 0.5} for label in LABELS]
    values = {
        "fingerprint": FINGERPRINT,
        "decisions": json.dumps(dict.fromkeys(("study", "image", "text"), labels)),
        "text_mode": "full",
        "max_length": "64",
        "image_size": "224",
        "embedding_size": "16",
        "image_tokens_grid": "7",
    }
    config = {
        "name": name,
        "backend": "python",
        "max_batch_size": 32 if name == "predict_image_tensors" else 1,
        "input": describe(MODELS[name].inputs),
        "output": describe(MODELS[name].outputs),
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
        "dynamic_batching": {
            "default_queue_policy": {"max_queue_size": QUEUE, "allow_timeout_override": True}
        },
        "parameters": {key: {"string_value": value} for key, value in values.items()},
    }
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(write_text(config))
    (root / name / "1" / "model.py").write_text(MODEL % {"notes": ReportNotes(9).to_json()})


def write_text(config: dict) -> str:
    from google.protobuf import json_format, text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.MessageToString(json_format.ParseDict(config, model_config_pb2.ModelConfig()))


@pytest.fixture(scope="module")
def repository(tmp_path_factory, mark_published) -> Path:
    root = tmp_path_factory.mktemp("repository")
    for name in PYTHON_MODELS:
        write_model(root, name)
    mark_published(root, FINGERPRINT)
    return root


@pytest.fixture(scope="module")
def sleeper(repository, tmp_path_factory):
    pytest.importorskip("pytriton")
    place = tmp_path_factory.mktemp("sleeper")
    with Stack(repository, place / "store", ports=Ports.free(), log_dir=place / "logs") as stack:
        stack.wait_ready(120)
        yield stack


@pytest.fixture
def client(sleeper):
    with CxrClient(sleeper.triton_url, sleeper.retrieval_url, timeout_s=30) as client:
        client.predict(report="0")  # the connection is made, the model is known
        yield client


def call(outcomes: list, client: CxrClient, seconds: float, timeout_s: float = 30) -> threading.Thread:
    """Send a request from a thread of its own; note (error or None, seconds it took)."""

    def work() -> None:
        began = time.monotonic()
        try:
            client.predict(report=str(seconds), timeout_s=timeout_s)
        except CxrError as error:
            outcomes.append((error, time.monotonic() - began))
        else:
            outcomes.append((None, time.monotonic() - began))

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_full_queue_refuses_at_once_as_busy(client):
    outcomes: list = []
    threads = [call(outcomes, client, 1.5)]
    time.sleep(0.3)
    threads += [call(outcomes, client, 0.01) for _ in range(QUEUE + 4)]
    for thread in threads:
        thread.join()
    refused = [(error, took) for error, took in outcomes if error is not None]
    assert len(refused) >= 3
    for error, took in refused:
        assert type(error) is BusyError
        assert "Try again in a moment" in str(error)
        assert took < 1
    assert sum(error is None for error, _ in outcomes) >= 2
    client.predict(report="0")


def test_nobody_there_is_unavailable_not_busy(sleeper):
    with (
        CxrClient("127.0.0.1:9", "127.0.0.1:9") as nowhere,
        pytest.raises(UnavailableError, match="cxr serve"),
    ):
        nowhere.predict(report="0")


def test_a_deadline_that_passes_in_the_queue_comes_back_at_the_deadline(client):
    """Triton's own queue time-out answers only when the model is free again (issue 7512)."""
    outcomes: list = []
    holder = call(outcomes, client, 2.0)
    time.sleep(0.3)
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=r"0\.4"):
        client.predict(report="0", timeout_s=0.4)
    assert 0.35 < time.monotonic() - began < 1.2
    holder.join()
    assert outcomes[0][0] is None


def read_log(stack: Stack, text: str) -> int:
    return (stack.log_dir / "triton.log").read_text(errors="replace").count(text)


def test_an_iterator_that_is_closed_ends_at_once_and_triton_never_learns_of_it(client, sleeper):
    woken, slept = (read_log(sleeper, f"the sleeper {what}") for what in ("was woken", "slept well"))
    cases = (CaseInput(str(n), str(n), report="0" if n == 0 else "1.5") for n in range(1000))
    answers = client.predict_many(cases, in_flight=QUEUE)
    assert next(answers)[1].fingerprint == FINGERPRINT
    time.sleep(0.3)
    began = time.monotonic()
    answers.close()
    assert time.monotonic() - began < 1
    client.predict(report="0")  # behind those that Triton had begun
    assert read_log(sleeper, "the sleeper was woken") == woken
    assert slept < read_log(sleeper, "the sleeper slept well") <= slept + QUEUE + 1


def test_closing_the_client_ends_its_calls(sleeper):
    outcomes: list = []
    client = CxrClient(sleeper.triton_url, sleeper.retrieval_url)
    client.predict(report="0")
    thread = call(outcomes, client, 4)
    time.sleep(0.3)
    client.close()
    thread.join(3)
    [(error, took)] = outcomes
    assert type(error) is CancelledError
    assert took < 3


def list_regions() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("cxr_client_*")}


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_shared_memory_answers_as_grpc_does(sleeper, batch):
    rng = np.random.default_rng(batch)
    names = [tensor.name for tensor in MODELS["predict_image_tensors"].outputs]
    plain, shared = (
        TritonTransport(sleeper.triton_url, ChannelSettings(carrier)) for carrier in ("grpc", "shared_memory")
    )
    for _ in range(4):
        pixels = {"pixels": rng.integers(0, 255, (batch, 1, 224, 224), np.uint8)}
        one, other = (t.infer("predict_image_tensors", pixels, names, 20) for t in (plain, shared))
        assert one.model_version == other.model_version == "1"
        for name in names:
            np.testing.assert_array_equal(one[name], other[name])
    assert not shared._regions.refused
    assert shared._regions._free
    names = {region.name for region in shared._regions._free}
    plain.close()
    shared.close()
    assert not names & list_regions()


def test_a_region_that_the_server_still_holds_is_not_used_again(sleeper):
    """The call ends at its deadline, the model writes its answer later: not into the memory of the next call."""
    transport = TritonTransport(sleeper.triton_url, ChannelSettings("shared_memory"))
    names = ["probabilities", "embedding"]

    def ask(seconds: str, timeout_s: float):
        return transport.infer(
            "predict_text", {"report": np.array([[seconds.encode()]], object)}, names, timeout_s
        )

    for _ in range(2):
        ask("0", 10)
    [before] = transport._regions._free
    with pytest.raises(DeadlineError):
        ask("3", 0.3)
    ask("0", 10)
    assert before not in transport._regions._free
    transport.close()
    assert before.name not in list_regions()
    with CxrClient(sleeper.triton_url) as client:
        client.predict(report="0")  # the server lives


def test_a_restarted_server_is_used_as_before(repository, tmp_path):
    ports = Ports.free()
    settings = ChannelSettings("shared_memory")
    pixels = {"pixels": np.full((8, 1, 224, 224), 51, np.uint8)}
    transport = TritonTransport(f"127.0.0.1:{ports.grpc}", settings)
    for run in range(2):
        with Stack(repository, tmp_path / "store", ports=ports, log_dir=tmp_path / f"logs{run}") as stack:
            stack.wait_ready(120)
            for _ in range(3):
                answer = transport.infer("predict_image_tensors", pixels, ["probabilities"], 20)
                np.testing.assert_allclose(answer["probabilities"], 0.2, atol=1e-6)
            assert len(transport._regions._free) == 1
    with pytest.raises(UnavailableError):
        transport.infer("predict_image_tensors", pixels, ["probabilities"], 5)
    transport.close()
    assert not {region.name for region in transport._regions._free} & list_regions()


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed_messages_are_understood(sleeper, compression):
    with CxrClient(sleeper.triton_url, transport="grpc", compression=compression, keepalive_s=30) as client:
        answer = client.predict_tensors(np.full((4, 1, 224, 224), 51, np.uint8))
        np.testing.assert_allclose(answer.probabilities, 0.2, atol=1e-6)
