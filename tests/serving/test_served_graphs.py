"""What a running Triton answers and says, over a stand-in for tritonclient's own client: each way in which it fails."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from contract.errors import ArtifactError, ConfigError, DeadlineError, ServerError, UnavailableError
from contract.runtime.embedded import SERVER_NAME
from contract.tensors import MODELS
from serving.served_graphs import ServedGraphs, find_version

URL = "here:8001"


class Client:
    """Stands for tritonclient.grpc.InferenceServerClient."""

    def __init__(self, **given):
        self.code = given.get("code")
        self.left_out = given.get("left_out")
        self.name = given.get("name", "triton")
        self.config = given.get("config", model_config_pb2.ModelConfig())
        self.asked = []

    def _fail(self):
        if self.code:
            raise InferenceServerException("it says\n\nAt: x.py", status=f"StatusCode.{self.code}")

    def infer(self, model, inputs, *, model_version, client_timeout):
        self.asked.append((model, [x.name() for x in inputs], model_version, client_timeout))
        self._fail()
        names = [tensor.name for tensor in MODELS[model].outputs]
        arrays = {name: np.ones((2, 3), np.float32) for name in names if name != self.left_out}
        return SimpleNamespace(as_numpy=arrays.get)

    def get_model_config(self, model, version="", client_timeout=None):
        self._fail()
        return SimpleNamespace(config=self.config)

    def get_server_metadata(self, client_timeout):
        self._fail()
        return SimpleNamespace(name=self.name, version="2.70.0")


def make_config(backend="onnxruntime", kind="KIND_CPU", accelerator="", place="cpu"):
    config = model_config_pb2.ModelConfig(backend=backend)
    config.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.Kind.Value(kind))
    if accelerator:
        listed = config.optimization.execution_accelerators
        getattr(listed, f"{place}_execution_accelerator").add(name=accelerator)
    return config


def test_a_repository_of_an_older_version_tells_no_view():
    served = ServedGraphs(Client(left_out="lateral"), URL, 2)
    found = served.ask("fusion_image", {"image_tokens": np.zeros((2, 9, 4), np.float32)})
    assert set(found) == {"probabilities", "embedding", "image_attention"}


def ask(client):
    return ServedGraphs(client, URL, 2).ask("image_encoder", {"pixels": np.zeros((2, 1, 4, 4), np.uint8)})


def test_a_version_is_asked_by_its_number():
    client = Client()
    assert set(ask(client)) == {"image_tokens"}
    assert client.asked[0][:3] == ("image_encoder", ["pixels"], "2")
    assert 100 < client.asked[0][3] <= 120


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        ("DEADLINE_EXCEEDED", DeadlineError, "did not answer with version 2 of image_encoder in time"),
        ("CANCELLED", DeadlineError, "in time"),
        ("UNAVAILABLE", UnavailableError, "does not answer with version 2 of image_encoder"),
        ("INTERNAL", ServerError, r"failed at version 2 of image_encoder: it says\.$"),
        ("NOT_FOUND", ServerError, "failed at version 2"),
    ],
)
def test_each_failure_has_its_error(code, error, words):
    client = Client(code=code)
    with pytest.raises(error, match=words):
        ask(client)
    served = ServedGraphs(client, URL, 2)
    for call in (served.describe, served.read_config):
        with pytest.raises(error):
            call("image_encoder")


def test_a_missing_output_is_named():
    with pytest.raises(ServerError, match="answered image_encoder without the output image_tokens"):
        ask(Client(left_out="image_tokens"))


def test_all_questions_share_one_deadline():
    client = Client()
    served = ServedGraphs(client, URL, 2, timeout_s=0.5)
    time.sleep(0.05)
    served.ask("image_encoder", {"pixels": np.zeros((1, 1, 4, 4), np.uint8)})
    assert client.asked[-1][3] < 0.46


@pytest.mark.parametrize(
    ("name", "config", "runtime", "provider"),
    [
        ("triton", make_config(), "Triton 2.70.0, onnxruntime", "CPU"),
        (SERVER_NAME, make_config(), "Triton 2.70.0, embedded onnxruntime", "CPU"),
        (
            SERVER_NAME,
            make_config(accelerator="openvino"),
            "Triton 2.70.0, embedded onnxruntime",
            "CPU, openvino",
        ),
        (
            "triton",
            make_config(kind="KIND_GPU", accelerator="tensorrt", place="gpu"),
            "Triton 2.70.0, onnxruntime",
            "GPU, tensorrt",
        ),
        ("triton", make_config(backend="openvino"), "Triton 2.70.0, openvino", "CPU"),
    ],
)
def test_what_runs_a_graph_is_told_as_far_as_triton_tells(name, config, runtime, provider):
    told = ServedGraphs(Client(name=name, config=config), URL, 2).describe("image_encoder")
    assert told == {"runtime": runtime, "provider": provider}


def test_a_backend_that_does_not_honour_the_graph_is_refused():
    client = Client(config=make_config(accelerator="openvino"))
    with pytest.raises(
        ConfigError, match=rf"Triton at {URL} holds graphs .* would run differently than at the gates"
    ):
        ServedGraphs(client, URL, 2).describe("image_encoder")


def test_the_version_that_answers_is_that_of_the_ensemble():
    config = model_config_pb2.ModelConfig()
    config.version_policy.specific.versions[:] = [3]
    assert find_version(Client(config=config), URL, "predict_study") == 3
    with pytest.raises(ArtifactError, match="`cxr export` did not publish"):
        find_version(Client(), URL, "predict_study")
    with pytest.raises(ArtifactError, match="does not serve predict_study"):
        find_version(Client(code="NOT_FOUND"), URL, "predict_study")
    with pytest.raises(UnavailableError):
        find_version(Client(code="UNAVAILABLE"), URL, "predict_study")
