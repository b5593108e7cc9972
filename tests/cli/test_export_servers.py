"""Several servers of one repository change together: all of them, or none. The servers are stand-ins."""

import io
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import typer
from rich.console import Console
from served_repository import Triton, make_check, make_stored
from typer.testing import CliRunner

from cli import export as command
from cli.commands.export import export_app
from cli.console import CommandConsole
from cli.export_retire import retire_version
from cli.export_servers import Servers, print_servers, shown_after
from contract.errors import CxrError, FingerprintError, ParityError, ServerError, UnavailableError
from contract.repository import read_published, verify
from contract.tensors import MODELS
from export.publish import publish
from export.versions import withdraw

pytest.importorskip("onnx")
URLS = ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
QUIET = Console(quiet=True)
app = typer.Typer()
app.add_typer(export_app, name="export")


@pytest.fixture(scope="module")
def published(models, tmp_path_factory) -> Path:
    """A repository whose version 1 answers, beside which version 2 waits."""
    repository = publish(*models[0], tmp_path_factory.mktemp("published") / "repository")
    return publish(*models[1], repository, standby=True, stored=make_stored(models[1][0]))


@pytest.fixture
def repository(published, tmp_path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "repository"))


@pytest.fixture
def tritons(repository, monkeypatch) -> dict[str, Triton]:
    """Three servers of version 1."""
    found = {url: Triton(repository) for url in URLS}
    monkeypatch.setattr(
        "serving.served_graphs.triton.InferenceServerClient", lambda url, channel_args: found[url]
    )
    monkeypatch.setattr("serving.triton.read_admin_key", lambda _: "key")
    return found


def find_servers(repository: Path) -> Servers:
    return Servers(URLS, repository, [Path("k")])


def take(models, servers: Servers, version: int = 2):
    publication = command.Publication(servers=servers)
    check = make_check(models, servers.repository, version)
    return command.take_version(QUIET, publication, servers.repository, version, check)


def list_versions(tritons) -> list[set[int]]:
    return [triton.versions for triton in tritons.values()]


def list_graph_versions(triton) -> list[int]:
    return list(triton.loaded["text_encoder"].version_policy.specific.versions)


def check_old_version_answers(tritons, repository) -> None:
    assert list_versions(tritons) == [{1}] * len(URLS)
    assert [list_graph_versions(triton) for triton in tritons.values()] == [[1]] * len(URLS)
    state = verify(repository)
    assert (state.version, list(state.versions)) == (1, [1])


def test_all_servers_pass_their_gate_before_the_first_one_switches(models, tritons, repository):
    during = []
    tritons[URLS[2]].on_infer = lambda: during.append(list_versions(tritons))
    servers = find_servers(repository)
    states = take(models, servers)
    assert during
    assert all(versions == [{1}] * 3 for versions in during)
    assert list_versions(tritons) == [{2}] * 3
    assert [(state.server, state.version, state.check.passed) for state in states] == [
        (url, 2, True) for url in URLS
    ]
    gate = verify(repository).versions[2]["gates"]["server"]
    assert (gate["runtime"], gate["servers"]) == ("Triton 2.70.0, onnxruntime", 3)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_miss_withdraws_the_version_from_all(place, models, tritons, repository):
    tritons[URLS[place]].moved[2] = 0.01
    servers = find_servers(repository)
    with pytest.raises(ParityError, match=f"through Triton at {URLS[place]} .*undone at all servers"):
        take(models, servers)
    check_old_version_answers(tritons, repository)
    checks = [state.check and state.check.passed for state in servers.states]
    assert checks == [True] * place + [False] + [None] * (2 - place)
    assert [bool(state.problem) for state in servers.states] == [number == place for number in range(3)]


@pytest.mark.parametrize("model", ["text_encoder", "predict_image", "predict_text"])
def test_a_server_that_does_not_load_withdraws_the_version_from_all(model, models, tritons, repository):
    """Before the gates, at the first switch, and after some models of the second server have switched."""
    second, failures = tritons[URLS[1]], iter([True])

    def fail(name):
        second.codes = {f"load {model}": "INTERNAL"} if name == model and next(failures, False) else {}

    second.on_load = fail
    with pytest.raises(ServerError, match=f"could not load {model}.*undone at all servers"):
        take(models, find_servers(repository))
    check_old_version_answers(tritons, repository)


def test_a_server_that_dies_during_the_switch_leaves_the_others_with_the_old_version(
    models, tritons, repository
):
    third = tritons[URLS[2]]

    def die(name):
        if MODELS[name].backend == "ensemble":
            third.codes = {"live": "UNAVAILABLE", f"load {name}": "UNAVAILABLE"}

    third.on_load = die
    servers = find_servers(repository)
    with pytest.raises(
        CxrError, match=rf"undone on the disk, but {URLS[2]} did not confirm it\. Start it again"
    ):
        take(models, servers)
    assert list_versions(tritons) == [{1}] * 3
    assert [state.version for state in servers.states] == [1, 1, None]
    assert read_published(repository).version == 1


def test_an_unreachable_server_is_found_before_anything_changes(tritons, repository):
    marker = (repository / ".published.json").read_bytes()
    tritons[URLS[1]].codes["live"] = "UNAVAILABLE"
    given = [word for url in URLS for word in ("--load", url)]
    result = CliRunner().invoke(app, ["export", "rollback", str(repository), *given], env={"COLUMNS": "160"})
    assert isinstance(result.exception, UnavailableError)
    assert str(result.exception).endswith("No server was changed.")
    shown = [line for line in result.output.splitlines() if "127.0.0.1:" in line]
    assert ["version 1" in line for line in shown] == [True, False, True]
    assert "does not answer" in shown[1]
    assert (repository / ".published.json").read_bytes() == marker
    assert not any(call[0] == "load" for triton in tritons.values() for call in triton.calls)


def test_a_server_of_a_copy_takes_nothing(models, tritons, repository, tmp_path):
    copy = shutil.copytree(repository, tmp_path / "copy")
    tritons[URLS[1]].repository = copy
    withdraw(copy, 2)  # the copy is older than the version
    with pytest.raises(
        FingerprintError, match=rf"Triton at {URLS[1]} loaded version 1 of .* read one folder"
    ):
        take(models, find_servers(repository))
    check_old_version_answers(tritons, repository)


def kill_between_servers(work, tritons, folder: Path) -> None:
    """Run `work` in a process that ends by SIGKILL when the second server is to switch."""

    def end(name):
        if MODELS[name].backend == "ensemble":
            for number, triton in enumerate(tritons.values()):
                triton.save(folder / str(number))
            os.kill(os.getpid(), signal.SIGKILL)

    process = os.fork()
    if process == 0:
        try:
            tritons[URLS[1]].on_load = end
            work()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
    for number, triton in enumerate(tritons.values()):
        triton.restore(folder / str(number))


def test_an_export_that_was_killed_between_two_servers_can_be_repeated(models, tritons, repository, tmp_path):
    kill_between_servers(lambda: take(models, find_servers(repository)), tritons, tmp_path)
    assert list_versions(tritons) == [{2}, {1}, {1}]
    servers = find_servers(repository)
    command.prepare_servers(servers)
    assert list_versions(tritons) == [{1}] * 3
    assert [state.before for state in servers.states] == [2, 1, 1]
    publish(*models[1], repository, standby=True, stored=make_stored(models[1][0]))
    assert {state.version for state in take(models, servers, 3)} == {3}
    assert list_versions(tritons) == [{3}] * 3
    assert [list_graph_versions(triton) for triton in tritons.values()] == [[1, 3]] * 3
    assert list(verify(repository).versions) == [1, 3]


def test_a_rollback_that_was_killed_between_two_servers_can_be_repeated(
    models, tritons, repository, tmp_path
):
    take(models, find_servers(repository))

    def roll_back():
        return command.roll_back(QUIET, repository, servers=find_servers(repository))

    kill_between_servers(roll_back, tritons, tmp_path)
    assert list_versions(tritons) == [{1}, {2}, {2}]
    assert roll_back().changed
    assert list_versions(tritons) == [{1}] * 3
    assert not roll_back().changed
    assert verify(repository).version == 1


def test_a_rollback_that_one_server_cannot_take_is_taken_back_everywhere(models, tritons, repository):
    take(models, find_servers(repository))
    failures = iter([True])

    def fail(name):
        bad = name == "predict_text" and next(failures, False)
        tritons[URLS[1]].codes = {"load predict_text": "INTERNAL"} if bad else {}

    tritons[URLS[1]].on_load = fail
    with pytest.raises(ServerError, match="undone at all servers"):
        command.roll_back(QUIET, repository, servers=find_servers(repository))
    assert list_versions(tritons) == [{2}] * 3
    assert verify(repository).version == 2


def test_a_retirement_is_for_all_servers_or_none_and_can_be_repeated(models, tritons, repository, tmp_path):
    take(models, find_servers(repository))
    failures = iter([True])

    def fail(name):
        bad = name == "predict_text" and next(failures, False)
        tritons[URLS[1]].codes = {"load predict_text": "INTERNAL"} if bad else {}

    def retire():
        return retire_version(QUIET, repository, servers=find_servers(repository))

    tritons[URLS[1]].on_load = fail
    with pytest.raises(ServerError, match="could not load predict_text"):
        retire()
    tritons[URLS[1]].on_load = lambda name: None
    assert [list_graph_versions(triton) for triton in tritons.values()] == [[1, 2]] * 3
    assert list(verify(repository).versions) == [1, 2]
    kill_between_servers(retire, tritons, tmp_path)
    for triton in list(tritons.values())[1:]:
        triton.loaded["text_encoder"].version_policy.specific.versions[:] = [1, 2]  # it was not reached
    again = retire()
    assert (again.version, again.published.version) == (None, 2)
    assert [list_graph_versions(triton) for triton in tritons.values()] == [[2]] * 3
    assert not list(repository.glob("*/1"))
    assert list(verify(repository).versions) == [2]


def test_servers_of_different_versions_do_not_pass_together(models, tritons, repository, tmp_path):
    kill_between_servers(lambda: take(models, find_servers(repository)), tritons, tmp_path)
    tritons[URLS[2]].codes["live"] = "UNAVAILABLE"
    run = CliRunner().invoke
    told = json.loads(run(app, ["export", "verify", *URLS, "--json"]).stdout)
    assert told["passed"] is False
    assert [server["triton"] for server in told["servers"]] == [URLS[0]]
    assert set(told["errors"]) == set(URLS[1:])  # version 1 has no stored answers
    tritons[URLS[2]].codes.clear()
    command.roll_back(QUIET, repository, to=2, servers=find_servers(repository))
    result = run(app, ["export", "verify", ",".join(URLS)])
    assert result.exit_code == 0, result.output
    assert result.output.count("answers with version 2") == 3


def test_the_table_tells_who_has_what(models, tritons, repository):
    tritons[URLS[1]].moved[2] = 0.01
    console = CommandConsole(record=True, width=200, file=io.StringIO())
    servers = find_servers(repository)
    with pytest.raises(ParityError), shown_after(console, servers):
        take(models, servers)
    text = console.export_text()
    rows = [line for line in text.splitlines() if "127.0.0.1:" in line]
    assert [("passed" in row, "FAILED" in row, "version 1" in row) for row in rows] == [
        (True, False, True),
        (False, True, True),
        (False, False, True),
    ]
    print_servers(console, [])
    assert console.export_text() == ""
