"""A new version is asked through the server before it switches; `verify` and `retire`. The server is a stand-in."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from rich.console import Console
from served_repository import Triton, make_check, make_stored
from typer.testing import CliRunner

from cli import export as command
from cli.commands.export import export_app
from cli.export_served import verify_server
from cli.export_servers import Servers
from contract.errors import (
    ArtifactError,
    ConfigError,
    DeadlineError,
    ParityError,
    ServerError,
    UnavailableError,
)
from contract.repository import read_published, verify
from contract.tensors import GRAPHS, MODELS
from contract.training_data import WAYS
from export.gates.server import StoredAnswers
from export.publish import publish

pytest.importorskip("onnx")
app = typer.Typer()
app.add_typer(export_app, name="export")


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


def take(models, triton, console=None):
    publication = command.Publication(servers=Servers(["127.0.0.1:1"], triton.repository, [Path("k")]))
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
    assert json.dumps([state.to_dict() for state in taken])


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
    assert [state.check.passed for state in take(models, triton, console)] == [True]


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
    asked = {call[1] for call in triton.calls}
    assert asked == {f"predict_{kind}_tensors" for kind in WAYS} | set(GRAPHS) - {"fusion_text"}
    assert {call[2] for call in triton.calls} == {2}
    (told,) = json.loads(run("verify", "127.0.0.1:1", "--json").stdout)["servers"]
    assert (told["passed"], told["version"], told["profile"]) == (True, 2, "fp32")
    assert told["server"] == "Triton 2.70.0, onnxruntime CPU"
    triton.moved[2] = 0.01
    result = run("verify", "127.0.0.1:1")
    assert isinstance(result.exception, ParityError)
    assert "does not answer as the graphs of version 2 did: probability_difference of study" in str(
        result.exception
    )
    assert result.output.count("FAILED") == 3


def test_answers_to_the_requests_of_another_version_are_named(models, triton):
    take(models, triton)
    for kind in WAYS:
        stored = triton.loaded[f"predict_{kind}_tensors"].parameters["gate"]
        rows = StoredAnswers.read({kind: stored.string_value}, source="x")
        fewer = replace(rows, answers={kind: rows.answers[kind][:-1]})
        stored.string_value = fewer.write(kind)
    with pytest.raises(ArtifactError, match="requests of another version of cxr"):
        verify_server(Console(quiet=True), "127.0.0.1:1")


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
