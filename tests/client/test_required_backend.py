"""The client refuses a model whose precision profile the server's backend would run differently."""

import pytest
from fake_triton import FakeTritonClient

from client.triton import TritonTransport
from contract.errors import ConfigError, UnavailableError
from contract.runtime.embedded import SERVER_NAME


def read_model(monkeypatch, server):
    transport = TritonTransport("localhost:1")
    monkeypatch.setattr(transport, "_client", lambda: server)
    return transport.read_model(1)


def test_int8_on_nvidia_s_backend_is_refused(monkeypatch):
    with pytest.raises(ConfigError) as info:
        read_model(monkeypatch, FakeTritonClient(profile="int8", required_backend="embedded"))
    assert str(info.value) == (
        "Triton at localhost:1 holds graphs of the profile int8, which NVIDIA's onnxruntime backend would run "
        "differently than at the gates. Serve them with `cxr serve`, or publish with --profile fp32."
    )


def test_int8_on_the_embedded_backend_is_served(monkeypatch):
    model = read_model(
        monkeypatch, FakeTritonClient(name=SERVER_NAME, profile="int8", required_backend="embedded")
    )
    assert (model.profile, model.required_backend) == ("int8", "embedded")


@pytest.mark.parametrize("profile", ["fp32", "fp16"])
def test_what_any_backend_runs_needs_no_question(profile, monkeypatch):
    server = FakeTritonClient(profile=profile)
    assert read_model(monkeypatch, server).profile == profile
    assert not server.metadata_calls


def test_a_server_that_does_not_tell_is_an_error_of_its_own(monkeypatch):
    with pytest.raises(UnavailableError):
        read_model(
            monkeypatch, FakeTritonClient(code="UNAVAILABLE", profile="bf16", required_backend="embedded")
        )
