"""A profile that the running backend would not run as it was gated is refused by the client, in one sentence."""

import json
from types import SimpleNamespace

import pytest
from tritonclient.utils import InferenceServerException

from client.triton import TritonTransport
from contract.errors import ConfigError, UnavailableError
from contract.labels import LABEL_KEYS
from contract.runtime.embedded import SERVER_NAME
from contract.tensors import MODELS


class Server:
    """Stands for tritonclient's own client."""

    def __init__(self, name: str, profile: str, required: str = "", code: str = "") -> None:
        self.name, self.code, self.metadata_calls = name, code, 0
        labels = [{"key": key, "name": key, "threshold": 0.5} for key in LABEL_KEYS]
        sizes = {"max_length": "64", "image_size": "56", "embedding_size": "8", "image_tokens_grid": "7"}
        values = {"fingerprint": "ab" * 32, "text_mode": "full", **sizes}
        values["decisions"] = json.dumps({"study": labels})
        values |= {"profile": profile} | ({"required_backend": required} if required else {})
        self.parameters = {key: {"string_value": value} for key, value in values.items()}

    def get_model_config(self, *_arguments, **_settings):
        outputs = [{"name": tensor.name} for tensor in MODELS["predict_study"].outputs]
        return {"config": {"parameters": self.parameters, "output": outputs}}

    def get_server_metadata(self, client_timeout):
        self.metadata_calls += 1
        if self.code:
            raise InferenceServerException("no", status=f"StatusCode.{self.code}")
        return SimpleNamespace(name=self.name)


def read_model(monkeypatch, server):
    transport = TritonTransport("localhost:1")
    monkeypatch.setattr(transport, "_client", lambda: server)
    return transport.read_model(1)


def test_int8_on_nvidia_s_backend_is_refused(monkeypatch):
    with pytest.raises(ConfigError) as info:
        read_model(monkeypatch, Server("triton", "int8", "embedded"))
    assert str(info.value) == (
        "Triton at localhost:1 holds graphs of the profile int8, which NVIDIA's onnxruntime backend would run "
        "differently than at the gates. Serve them with `cxr serve`, or publish with --profile fp32."
    )


def test_int8_on_the_embedded_backend_is_served(monkeypatch):
    model = read_model(monkeypatch, Server(SERVER_NAME, "int8", "embedded"))
    assert (model.profile, model.required_backend) == ("int8", "embedded")


@pytest.mark.parametrize("profile", ["fp32", "fp16"])
def test_what_any_backend_runs_needs_no_question(profile, monkeypatch):
    server = Server("triton", profile)
    assert read_model(monkeypatch, server).profile == profile
    assert not server.metadata_calls


def test_a_server_that_does_not_tell_is_an_error_of_its_own(monkeypatch):
    with pytest.raises(UnavailableError):
        read_model(monkeypatch, Server("triton", "bf16", "embedded", code="UNAVAILABLE"))
