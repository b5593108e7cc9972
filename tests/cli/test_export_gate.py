"""A new version is asked through the server before it switches; `verify` and `retire`. The server is a stand-in."""

import io
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from google.protobuf import text_format
from rich.console import Console
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from cli import export as command
from cli.commands.export import export_app
from cli.export_served import verify_server
from contract.errors import (
    ArtifactError,
    ConfigError,
    DeadlineError,
    ParityError,
    ServerError,
    UnavailableError,
)
from contract.labels import LABELS
from contract.repository import read_published, verify
from contract.tensors import GRAPHS, MODELS, NUMPY_DTYPES
from contract.training_data import WAYS
from export.gates.requests import Request
from export.gates.server import StoredAnswers, collect_answers, compare_answers, run_request
from export.gates.server_precision import draw_requests_for
from export.profiles import load_profile
from export.publish import publish

onnx = pytest.importorskip("onnx")
SIZES = {"N": 49, "C": 32, "D": 16, "K": len(LABELS)}
FP32 = load_profile("fp32")
app = typer.Typer()
app.add_typer(export_app, name="export")


class Triton:
    """Loads what the repository says as Triton does in explicit mode, and answers by a sum of the inputs."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.loaded: dict[str, object] = {}
        self.calls: list[tuple] = []
        self.moved: dict[int, float] = {}  # version -> by how much its probabilities are off
        self.spoil = lambda arrays: arrays
        self.codes: dict[str, str] = {}  # call -> status code with which it fails
        self.on_infer = lambda: None
        for name in MODELS:
            self.load_model(name, {}, 1)
        self.calls.clear()

    def __call__(self, url, channel_args):
        return self

    def register_plugin(self, plugin):
        pass

    def close(self):
        pass

    def _fail(self, call):
        if code := self.codes.get(call):
            raise InferenceServerException("it says", status=f"StatusCode.{code}")

    def is_server_live(self, client_timeout):
        self._fail("live")
        return True

    def get_model_repository_index(self, headers, client_timeout):
        if headers["triton-grpc-protocol-cxr-admin-key"] != "key":
            raise InferenceServerException("restricted", status="StatusCode.UNAVAILABLE")

    def get_server_metadata(self, client_timeout):
        return SimpleNamespace(name="triton", version="2.70.0")

    def get_model_config(self, model, version="", client_timeout=None):
        return SimpleNamespace(config=self.loaded[model])

    def load_model(self, name, headers, client_timeout):
        self.calls.append(("load", name))
        self._fail(f"load {name}")
        text = (self.repository / name / "config.pbtxt").read_text()
        self.loaded[name] = text_format.Parse(text, model_config_pb2.ModelConfig())

    def infer(self, model, inputs, *, model_version, client_timeout):
        self.calls.append(("infer", model, int(model_version)))
        self.on_infer()
        self._fail("infer")
        assert int(model_version) in self.loaded[model].version_policy.specific.versions
        given = {
            x.name(): np.frombuffer(x._get_content(), NUMPY_DTYPES[x.datatype()]).reshape(x.shape())
            for x in inputs
        }
        ensemble = model.startswith("predict_")
        kind = model.split("_")[1]
        arrays = dict(run_request(run_graph, Request(kind, given)) if ensemble else run_graph(model, given))
        if "probabilities" in arrays:
            arrays["probabilities"] = arrays["probabilities"] + np.float32(
                self.moved.get(int(model_version), 0)
            )
        return SimpleNamespace(as_numpy=self.spoil(arrays).get)

    @property
    def versions(self) -> set[int]:
        """The versions that the ensembles answer with."""
        return {
            next(iter(self.loaded[name].version_policy.specific.versions))
            for name in MODELS
            if MODELS[name].backend == "ensemble"
        }


def run_graph(name: str, inputs: dict) -> dict:
    """Stands for a graph: numbers that depend on the inputs alone."""
    seed = sum(
        int(np.ascontiguousarray(array).view(np.uint8).sum(dtype=np.int64)) for array in inputs.values()
    )
    draw = np.random.RandomState(seed % 2**31)
    batch = len(next(iter(inputs.values())))
    sizes = {
        **SIZES,
        "V": 1,
        "I": SIZES["N"],
        "L": next((array.shape[1] for key, array in inputs.items() if key == "input_ids"), 0),
    }
    return {
        tensor.name: draw.rand(batch, *(sizes.get(size, size) for size in tensor.shape)).astype(np.float32)
        for tensor in MODELS[name].outputs
    }


@pytest.fixture(scope="module")
def models(write_bundle, small_config, tmp_path_factory):
    """Two bundles of one architecture; their graphs hold a fingerprint and nothing else."""
    root = tmp_path_factory.mktemp("models")
    made = []
    for seed in (1, 2):
        bundle = write_bundle(
            root / str(seed), small_config, seed=seed, texts=("clear",), thresholds=[0.4] * len(LABELS)
        )
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        graph = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [value]))
        onnx.helper.set_model_props(graph, {"fingerprint": bundle.fingerprint})
        onnx.save(graph, root / f"{seed}.onnx")
        made.append((bundle, dict.fromkeys(GRAPHS, root / f"{seed}.onnx")))
    return made


@pytest.fixture
def triton(models, tmp_path, monkeypatch):
    """A server of version 1, beside which version 2 waits on the disk."""
    bundle, graphs = models[0]
    repository = publish(bundle, graphs, tmp_path / "repository")
    triton = Triton(repository)
    monkeypatch.setattr("serving.served_graphs.triton.InferenceServerClient", triton)
    monkeypatch.setattr("serving.triton.read_admin_key", lambda _: "key")
    publish(*models[1], repository, standby=True, stored=make_stored(models[1][0]))
    return triton


def make_stored(bundle) -> StoredAnswers:
    """What the graphs of version 2 answer where nothing is wrong."""
    answers = collect_answers(partial(run_request, run_graph), draw_requests_for(bundle))
    return StoredAnswers("fp32", FP32.limits, answers)


def make_check(models, repository):
    """The gate as `export.gates.server_precision.check_server` makes it, without its real cases."""
    bundle = models[1][0]

    def check(served):
        configs = repository / "{}" / "2" / "config.pbtxt"
        given = {}
        for kind in WAYS:
            text = Path(str(configs).format(f"predict_{kind}_tensors")).read_text()
            parameters = text_format.Parse(text, model_config_pb2.ModelConfig()).parameters
            given[kind] = parameters["gate"].string_value
        found = collect_answers(
            partial(run_request, served.run, layout=served.layout), draw_requests_for(bundle)
        )
        report = compare_answers(
            StoredAnswers.read(given, source="x"), found, bundle.decisions, served.runtime, bundle.label_part
        )
        return SimpleNamespace(
            passed=report.passed,
            failures=report.failures,
            to_markdown=report.to_markdown,
            to_dict=report.to_dict,
            stored=report,
            precision=SimpleNamespace(cases=3),
        )

    return check


def take(models, triton, console=None):
    publication = command.Publication(load="127.0.0.1:1", admin_key=Path("k"))
    check = make_check(models, triton.repository)
    return command.take_version(console or Console(quiet=True), publication, triton.repository, 2, check)


def check_old_version_answers(triton) -> None:
    """On the disk and at the server all is as before version 2."""
    assert triton.versions == {1}
    state = verify(triton.repository)
    assert (state.version, list(state.versions)) == (1, [1])
    for name, spec in MODELS.items():
        if spec.backend != "ensemble":
            assert list(triton.loaded[name].version_policy.specific.versions) == [1]


def test_a_version_is_asked_before_the_ensembles_switch(models, triton):
    during = set()
    triton.on_infer = lambda: during.update(triton.versions, [read_published(triton.repository).version])
    taken = take(models, triton)
    assert during == {1}
    kinds = [call[0] for call in triton.calls]
    assert kinds == sorted(kinds, key=["load", "infer"].index)[: kinds.index("infer")] + [
        *["infer"] * kinds.count("infer"),
        *["load"] * 6,
    ]
    assert {call[2] for call in triton.calls if call[0] == "infer"} == {2}
    assert {call[1] for call in triton.calls if call[0] == "infer"} == set(GRAPHS)
    assert triton.versions == {2}
    state = verify(triton.repository)
    assert state.version == 2
    gate = state.versions[2]["gates"]["server"]
    assert (gate["runtime"], gate["precision"], gate["cases"]) == ("Triton 2.70.0, onnxruntime", "fp32", 3)
    assert gate["provider"] == "CPU"
    assert gate["passed"].endswith("+00:00")
    assert json.dumps(taken.to_dict())


def test_a_version_that_answers_differently_is_withdrawn_with_the_table(models, triton):
    triton.moved[2] = 0.01
    console = Console(record=True, width=160, file=io.StringIO())
    with pytest.raises(
        ParityError, match=r"Version 2 does not answer through Triton at .* as its graphs did"
    ) as info:
        take(models, triton, console)
    assert str(info.value).endswith("The change was undone, and the version before it answers.")
    assert info.value.exit_code == 3
    text = console.export_text()
    assert text.count("FAILED") == 3
    assert "| limit |" in text
    check_old_version_answers(triton)
    loads = [call[1] for call in triton.calls if call[0] == "load"]
    assert all(
        loads.count(name) == 1 for name in loads if MODELS[name].backend == "ensemble"
    )  # when it was undone


def test_it_shows_nothing_beside_the_bar_of_the_export(models, triton, monkeypatch):
    """Rich 13 takes a second live display for an error."""
    console = Console(quiet=True)
    monkeypatch.setattr(console, "status", lambda *_: pytest.fail("a second one"))
    assert take(models, triton, console).check.passed


def drop(name):
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


def change(name, make):
    return lambda arrays: {**arrays, **({name: make(arrays[name])} if name in arrays else {})}


WRONG = {
    "no output": (drop("embedding"), ServerError, "without the output embedding"),
    "one row too few": (
        change("probabilities", lambda a: a[:-1]),
        ServerError,
        "cases with tensors of shape",
    ),
    "another width": (change("embedding", lambda a: a[:, :-1]), ServerError, "have the shape"),
    "no numbers": (change("probabilities", lambda a: a * np.nan), ParityError, "probability_difference"),
    "another direction": (change("embedding", lambda a: -a), ParityError, "embedding_cosine"),
}


@pytest.mark.parametrize("name", WRONG)
def test_answers_that_are_wrong_withdraw_the_version(name, models, triton):
    triton.spoil, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        take(models, triton)
    triton.spoil = lambda arrays: arrays
    check_old_version_answers(triton)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("DEADLINE_EXCEEDED", DeadlineError),
        ("UNAVAILABLE", UnavailableError),
        ("INTERNAL", ServerError),
        ("NOT_FOUND", ServerError),
    ],
)
def test_a_server_that_does_not_answer_withdraws_the_version(code, error, models, triton):
    triton.codes["infer"] = code
    with pytest.raises(error, match="The change was undone, and the version before it answers"):
        take(models, triton)
    check_old_version_answers(triton)


def test_an_interrupt_at_the_gate_withdraws_the_version(models, triton):
    def interrupt():
        raise KeyboardInterrupt

    triton.on_infer = interrupt
    with pytest.raises(KeyboardInterrupt):
        take(models, triton)
    check_old_version_answers(triton)


@pytest.mark.parametrize("name", ["text_encoder", "predict_text"])
def test_a_load_that_fails_before_or_after_the_gate_withdraws_the_version(name, models, triton):
    triton.codes[f"load {name}"] = "INTERNAL"
    with pytest.raises(ServerError, match=f"could not load {name}"):
        take(models, triton)
    assert read_published(triton.repository).version == 1
    assert list(read_published(triton.repository).versions) == [1]
    del triton.codes[f"load {name}"]
    from serving.reload import reload_models

    reload_models("127.0.0.1:1", triton.repository, "key")
    check_old_version_answers(triton)


def test_a_backend_that_does_not_honour_the_profile_withdraws_the_version(models, triton):
    config = triton.loaded["image_encoder"]
    real = triton.load_model

    def load(name, headers, client_timeout):
        real(name, headers, client_timeout)
        if name == "image_encoder":
            listed = triton.loaded[name].optimization.execution_accelerators
            listed.cpu_execution_accelerator.add(name="openvino")

    triton.load_model = load
    with pytest.raises(ConfigError, match="would run differently than at the gates"):
        take(models, triton)
    assert triton.versions == {1}
    assert config is not triton.loaded["image_encoder"]


def run(*arguments: object):
    return CliRunner().invoke(app, ["export", *map(str, arguments)], env={"COLUMNS": "160"})


def test_a_server_is_verified_at_any_time(models, triton):
    take(models, triton)
    triton.calls.clear()
    result = run("verify", "127.0.0.1:1")
    assert result.exit_code == 0, result.output
    assert "answers with version 2" in result.output
    assert {call[1] for call in triton.calls} == {f"predict_{kind}_tensors" for kind in WAYS}
    told = json.loads(run("verify", "127.0.0.1:1", "--json").stdout)
    assert (told["passed"], told["version"], told["profile"]) == (True, 2, "fp32")
    assert told["server"] == "Triton 2.70.0, onnxruntime CPU"
    triton.moved[2] = 0.01
    result = run("verify", "127.0.0.1:1")
    assert isinstance(result.exception, ParityError)
    assert "does not answer as the graphs of version 2 did: probability_difference of study" in str(
        result.exception
    )
    assert result.output.count("FAILED") == 3


def test_what_cannot_be_verified_is_named(models, triton):
    quiet = Console(quiet=True)
    with pytest.raises(
        ArtifactError, match=r"127\.0\.0\.1:1 holds no readable answers to compare with\. Publish"
    ):
        verify_server(quiet, "127.0.0.1:1")  # version 1 was published without them
    take(models, triton)
    triton.codes["infer"] = "INTERNAL"
    with pytest.raises(ServerError, match="failed at version 2 of predict_"):
        verify_server(quiet, "127.0.0.1:1")
    triton.codes = {"live": "UNAVAILABLE"}
    with pytest.raises(UnavailableError, match="does not answer"):
        verify_server(quiet, "127.0.0.1:1")
    with pytest.raises(ConfigError, match="must be host:port"):
        verify_server(quiet, "nonsense")


def test_the_version_that_is_no_longer_wanted_is_unloaded_and_removed(models, triton):
    take(models, triton)
    result = run("retire", triton.repository, "--load", "127.0.0.1:1")
    assert result.exit_code == 0, result.output
    assert "Version 1 of" in result.output
    assert "Triton unloads the removed version" in result.output
    assert triton.versions == {2}
    assert list(triton.loaded["text_encoder"].version_policy.specific.versions) == [2]
    assert list(verify(triton.repository).versions) == [2]
    assert not list(triton.repository.glob("*/1"))


def test_a_server_that_answers_with_the_retired_version_stops_it(models, triton):
    """It was never told of a switch on the disk."""
    from export.versions import promote

    promote(triton.repository, 2)
    result = run("retire", triton.repository, "--load", "127.0.0.1:1")
    assert isinstance(result.exception, ConfigError)
    assert "answers with another version" in str(result.exception)
    assert list(verify(triton.repository).versions) == [1, 2]


def test_retire_without_a_server_says_what_it_did(models, triton):
    told = json.loads(run("retire", triton.repository, "--json").stdout)
    assert (told["retired"], told["version"]) == (2, 1)
