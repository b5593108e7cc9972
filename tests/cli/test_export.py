"""`cxr export`: the bundle needs no command's name, a rollback has one, and a running server is told or left alone."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from cli import export as command
from cli.commands.export import export_app
from cli.export_servers import Servers
from contract.errors import ConfigError, DeadlineError, ServerError, UnavailableError
from contract.repository import Published
from serving.reload import Reload

EXPORT_BUNDLE = command.export_bundle
app = typer.Typer()
app.add_typer(export_app, name="export")
STATE = Published(Path("r"), 1, {1: {"fingerprint": "a" * 64}, 2: {"fingerprint": "b" * 64}}, {})


def run(*arguments: object):
    return CliRunner().invoke(app, ["export", *map(str, arguments)], env={"COLUMNS": "120"})


@pytest.fixture
def calls(monkeypatch):
    """Nothing is exported or loaded: what would be is kept."""
    kept = []

    def keep(name, answer):
        return lambda *given, **options: (kept.append((name, given, options)), answer)[1]

    @contextlib.contextmanager
    def load(*given, **options):
        kept.append(("load", given, options))
        yield SimpleNamespace(
            url=given[0],
            load_graphs=lambda: SimpleNamespace(version=2),
            switch=lambda: Reload("a" * 64, {"x": 0.5}),
        )

    exported = command.Exported(None, None)
    monkeypatch.setattr(command, "export_bundle", keep("export", exported))
    monkeypatch.setattr("export.versions.rollback", keep("rollback", STATE))
    monkeypatch.setattr("export.versions.withdraw", keep("withdraw", STATE))
    monkeypatch.setattr("export.versions.settle", keep("settle", None))
    monkeypatch.setattr("contract.repository.read_published", keep("read", replace(STATE, version=2)))
    monkeypatch.setattr("serving.reload.check_server", keep("check", 2))
    monkeypatch.setattr("serving.reload.reload_models", keep("reload", Reload("a" * 64, {"x": 0.5})))
    monkeypatch.setattr("serving.reload.open_loader", load)
    monkeypatch.setattr("serving.triton.read_admin_key", lambda path: f"key of {path}")
    return kept


def make_servers(*urls: str) -> Servers:
    return Servers(urls or ("here:1",), Path("r"), [Path("k")])


def fail_to_load(error):
    """Stands for `open_loader` of a server that fails."""

    @contextlib.contextmanager
    def load(*_, **__):
        raise error("No.")
        yield

    return load


def test_bundle_needs_no_command_name(calls):
    result = run(
        "some/bundle", "--table", "t", "--repository", "r", "--target", "gpu", "--profile", "fp16", "--json"
    )
    assert result.exit_code == 0, result.output
    ((name, (_, bundle), options),) = calls
    assert (name, bundle) == ("export", Path("some/bundle"))
    publication = options["publication"]
    assert (publication.target, publication.variant, publication.profile) == ("gpu", "latency", "fp16")
    assert (publication.graphs, publication.replace, publication.servers) == ("split", False, None)


def test_help_shows_the_options_and_the_other_commands():
    result = run("--help")
    assert result.exit_code == 0
    for word in ("--variant", "--replace", "rollback", "tensorrt"):
        assert word in result.output


def test_rollback_tells_the_server(calls):
    result = run("rollback", "r", "--load", "here:1", "--admin-key", "k", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    (server,) = told["servers"]
    assert (told["version"], server["fingerprint"], server["before"]) == (1, "a" * 64, 2)
    assert [name for name, *_ in calls] == ["read", "check", "rollback", "load", "read"]
    assert calls[1][1][:3] == calls[3][1] == ("here:1", Path("r"), "key of k")
    assert "answers with version 1" in run("rollback", "r").output
    assert run("rollback", "r", "--to", 1).exit_code == 0
    assert calls[-1][1] == (Path("r"), 1)


def test_rollback_that_was_done_says_so(calls, monkeypatch):
    monkeypatch.setattr("contract.repository.read_published", lambda _: STATE)
    output = run("rollback", "r").output
    assert "already answers with version 1" in output
    assert "--to 2 switches to it" in output
    assert json.loads(run("rollback", "r", "--json").stdout)["changed"] is False


@pytest.mark.parametrize("error", [UnavailableError, ConfigError])
@pytest.mark.parametrize("arguments", [("rollback", "r"), ("b", "--table", "t", "--repository", "r")])
def test_server_that_cannot_be_asked_is_found_before_anything_changes(arguments, error, calls, monkeypatch):
    def fail(*_):
        raise error("No.")

    monkeypatch.setattr("serving.reload.check_server", fail)
    monkeypatch.setattr("cli.export.load_bundle", lambda path, **_: path)
    monkeypatch.setattr(command, "export_bundle", EXPORT_BUNDLE)
    result = run(*arguments, "--load", "here:1")
    assert isinstance(result.exception, error)
    assert {name for name, *_ in calls} <= {"read", "settle"}


@pytest.mark.parametrize("error", [ServerError, UnavailableError, DeadlineError, KeyboardInterrupt])
def test_rollback_that_the_server_cannot_take_is_taken_back(error, calls, monkeypatch):
    monkeypatch.setattr("serving.reload.open_loader", fail_to_load(error))
    with pytest.raises(error):
        command.roll_back(Console(quiet=True), Path("r"), servers=make_servers())
    assert [given for name, given, _ in calls if name == "rollback"] == [(Path("r"), None), (Path("r"), 2)]


@pytest.mark.parametrize(
    ("answered", "undone", "told"),
    [
        ([2], False, []),
        ([None], False, ["a:1"]),
        ([1], True, []),
        ([1, 2], True, ["b:1"]),  # a killed command reached one of them
        ([2, 1], True, ["a:1"]),
        ([2, None], False, ["b:1"]),
        ([1, 1], True, []),
        ([2, 2], False, []),
    ],
)
def test_switch_of_which_not_all_servers_were_told_is_undone_before_a_publish(
    answered, undone, told, calls, monkeypatch
):
    versions = dict(zip(("a:1", "b:1"), answered, strict=False))
    monkeypatch.setattr("serving.reload.check_server", lambda url, *_: versions[url])
    command.prepare_servers(make_servers(*versions))
    assert [given for name, given, _ in calls if name == "rollback"] == [(Path("r"), 1)] * undone
    assert [given[0] for name, given, _ in calls if name == "reload"] == told


@pytest.mark.parametrize("error", [ServerError, UnavailableError, DeadlineError])
def test_version_that_the_server_does_not_take_is_withdrawn(error, calls, monkeypatch):
    publication = command.Publication(servers=make_servers())
    state = replace(STATE, details={"layout": "split"})
    monkeypatch.setattr("contract.repository.read_published", lambda _: state)
    monkeypatch.setattr("serving.reload.open_loader", fail_to_load(error))
    with pytest.raises(error, match=r"No\. The change was undone"):
        command.take_version(Console(quiet=True), publication, Path("r"), 2, lambda _: None)
    assert [call[:2] for call in calls if call[0] == "withdraw"] == [("withdraw", (Path("r"), 2))]
    assert calls[-1][0] == "reload"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"servers": True, "replace": True, "repository": Path("r"), "table": Path("t")},
            "combined with --replace",
        ),
        ({"target": "tpu", "hub_folder": Path("f")}, "tpu"),
        ({"variant": "speed", "hub_folder": Path("f")}, "speed"),
        ({"table": Path("t")}, "belong together"),
        ({}, "Give --repository"),
    ],
)
def test_options_that_do_not_go_together(options, words, tmp_path):
    options = dict(options)
    places = {name: options.pop(name, None) for name in ("table", "repository", "hub_folder")}
    if options.get("servers"):
        Path(tmp_path / "k").write_text("key")
        options["servers"] = Servers(["x:1"], Path("r"), [tmp_path / "k"])
    with pytest.raises(ConfigError, match=words):
        command.export_bundle(
            Console(quiet=True), Path("bundle"), **places, publication=command.Publication(**options)
        )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("b", "--hub-folder", "f", "--load", "x:1"), "--load needs --repository"),
        (("rollback", "r", "--load", "x:1"), "There is no admin key logs/runtime/admin_key"),
        (("rollback", "r", "--load", "x:1,,y:1"), "--load holds 3 addresses, but number 2 is empty"),
        (
            (
                "rollback",
                "r",
                *("--load", "x:1", "--load", "y:1", "--load", "z:1"),
                *("--admin-key", "k") * 2,
            ),
            "There are 3 servers (--load) and 2 admin keys",
        ),
    ],
)
def test_servers_that_cannot_be_told_are_refused_first(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("k").write_text("key")
    result = run(*arguments)
    assert isinstance(result.exception, ConfigError)
    assert words in str(result.exception)
