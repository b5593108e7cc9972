"""The stack with the real Triton and the real sidecar over a small repository."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import astuple
from pathlib import Path

import pytest

from contract.errors import ArtifactError, ConfigError, DeadlineError, ServiceError
from serving.probe import is_sidecar_ready, is_triton_ready
from serving.process import find_reason
from serving.servers import Servers, build_python
from serving.stack import Ports, Stack
from serving.triton import build_environment, find_triton, name_regions

ROOT = Path(__file__).parents[2]
PARENT = """
import sys, time
from pathlib import Path
from serving.stack import Ports, Stack
place = Path(sys.argv[2])
stack = Stack(Path(sys.argv[1]), place / "store", ports=Ports.free(), log_dir=place / "logs")
stack.start()
stack.wait_ready(60)
print(*stack.pids.values(), flush=True)
time.sleep(60)
"""


def find_sessions(leaders: set[int]) -> set[int]:
    """Processes that run (not zombies) in the sessions of the given leaders."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] != "Z" and int(fields[3]) in leaders:
                found.add(int(entry.name))
    return found


def wait_for(condition, timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def build_stack(repository: Path, place: Path, **options) -> Stack:
    return Stack(repository, place / "store", log_dir=place / "logs", **{"ports": Ports.free(), **options})


@pytest.mark.e2e
def test_ready_then_stopped_leaves_nothing(small_repository, tmp_path):
    pytest.importorskip("pytriton")
    with build_stack(small_repository, tmp_path) as stack:
        assert 0 < stack.wait_ready(60) < 60
        leaders = set(stack.pids.values())
        assert len(leaders) == 3
        assert len(find_sessions(leaders)) >= 5  # Triton, its two python processes, the relay, the sidecar
        assert list(Path("/dev/shm").glob(name_regions(stack.log_dir) + "*"))
        stack.check()
        with pytest.raises(ServiceError, match="started already"):
            stack.start()
    assert find_sessions(leaders) == set()
    assert not list(Path("/dev/shm").glob(name_regions(stack.log_dir) + "*"))
    stack.stop()
    assert stack.pids == {}
    assert not is_triton_ready(stack.triton_url)
    assert not is_sidecar_ready(stack.retrieval_url)


@pytest.mark.e2e
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_survives_the_parent(small_repository, tmp_path, ending):
    pytest.importorskip("pytriton")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(small_repository), str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        leaders = {int(pid) for pid in parent.stdout.readline().split()}
        assert len(leaders) == 3
        parent.send_signal(ending)
        parent.wait(60)
    assert wait_for(lambda: not find_sessions(leaders))


@pytest.mark.e2e
def test_interrupt_while_waiting_stops_both(small_repository, tmp_path, monkeypatch):
    pytest.importorskip("pytriton")
    stack = build_stack(small_repository, tmp_path)
    stack.start()
    leaders = set(stack.pids.values())

    def interrupt(child):
        raise KeyboardInterrupt

    monkeypatch.setattr(stack, "_answers", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stack.wait_ready(10)
    assert find_sessions(leaders) == set()


@pytest.mark.e2e
def test_deadline_stops_both_and_names_the_logs(small_repository, tmp_path):
    pytest.importorskip("pytriton")
    stack = build_stack(small_repository, tmp_path)
    stack.start()
    leaders = set(stack.pids.values())
    with pytest.raises(DeadlineError, match=r"Triton .*not ready after 0 s; see .*triton\.log"):
        stack.wait_ready(0)
    assert find_sessions(leaders) == set()


@pytest.mark.e2e
def test_graph_of_another_model_is_refused_with_both_fingerprints(own_repository, tmp_path, mark_published):
    pytest.importorskip("pytriton")
    config = own_repository / "graph" / "config.pbtxt"
    config.write_text(config.read_text().replace("f" * 64, "0" * 64))
    mark_published(own_repository, "f" * 64)
    with (
        build_stack(own_repository, tmp_path) as stack,
        pytest.raises(ServiceError, match=r"Triton ended with code 1: .*") as info,
    ):
        stack.wait_ready(60)
    assert "model.onnx was made by model ffffffffffff, but config.pbtxt is model 000000000000" in str(
        info.value
    )
    assert str(stack.log_dir / "triton.log") in str(info.value)


@pytest.mark.e2e
def test_graph_that_was_published_broken_is_refused(own_repository, tmp_path, mark_published):
    pytest.importorskip("pytriton")
    (own_repository / "graph" / "1" / "model.onnx").write_bytes(b"no graph")
    mark_published(own_repository, "f" * 64)
    with (
        build_stack(own_repository, tmp_path) as stack,
        pytest.raises(ServiceError, match=r"cannot load .*model\.onnx"),
    ):
        stack.wait_ready(60)


def test_port_in_use_is_named(small_repository, tmp_path):
    pytest.importorskip("pytriton")
    ports = Ports.free()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports.grpc))
        taken.listen()
        stack = build_stack(small_repository, tmp_path, ports=ports)
        with pytest.raises(ConfigError, match=f"Port {ports.grpc} on 127.0.0.1 is in use"):
            stack.start()
    assert stack.pids == {}


@pytest.mark.parametrize(
    "ports",
    [
        {"http": 8001},
        {"metrics": 0},
        {"retrieval": 70000},
        {"relay_metrics": 8001},
        {"retrieval_metrics": -1},
    ],
)
def test_impossible_ports_are_refused(ports):
    with pytest.raises(ConfigError, match="Port"):
        Ports(**ports)


def test_no_server_inherits_the_token_of_a_client(tmp_path, monkeypatch):
    monkeypatch.setenv("CXR_TOKEN", "cxr_secret")
    installation = find_triton()
    assert "cxr_secret" not in build_environment(installation, tmp_path).values()
    stack = Stack(tmp_path / "repository", tmp_path / "store", log_dir=tmp_path / "logs", ports=Ports.free())
    process = build_python(stack, "sidecar", "retrieval.server", [], "sidecar.log")
    assert "cxr_secret" not in process._environment.values()


def test_the_sidecar_gets_the_address_of_a_milvus_database(tmp_path, monkeypatch):
    """A path made of it would lose a slash."""
    address = "milvus://127.0.0.1:19530/cases"
    monkeypatch.setattr(Stack, "fingerprint", "a" * 64)
    stack = Stack(tmp_path / "repository", address, log_dir=tmp_path / "logs", ports=Ports.free())
    servers = Servers(stack, leave_socket=lambda: None)
    try:
        assert servers.build_sidecar()._command[:6][-1] == address
    finally:
        servers.close()


def test_free_ports_differ():
    ports = Ports.free()
    ports.require_free()
    assert len(set(astuple(ports))) == 6


@pytest.mark.parametrize("marker", [None, "", "[]", "{}", json.dumps({"fingerprint": ""})])
def test_unpublished_repository_is_refused(tmp_path, marker):
    pytest.importorskip("pytriton")
    repository = tmp_path / "repository"
    repository.mkdir()
    if marker is not None:
        (repository / ".published.json").write_text(marker)
    with pytest.raises(ArtifactError, match=r"published"):
        build_stack(repository, tmp_path).start()


def test_reason_is_the_first_failed_model():
    lines = [
        'I1124 02:53:22.1 1 a.cc:1] "loading: graph:1"',
        "E1124 02:53:22.1 1 a.cc:1] \"failed to load 'graph' version 1: Internal: no\"",
        "error: creating server: Internal - failed to load all models",
    ]
    assert find_reason(lines) == "failed to load 'graph' version 1: Internal: no"
    assert find_reason(["Traceback", "ValueError: x"]) == "ValueError: x"
    assert find_reason([]) == "it wrote no log"


def test_a_triton_that_a_signal_ends_while_it_starts_is_started_again(small_repository, tmp_path):
    pytest.importorskip("pytriton")
    with build_stack(small_repository, tmp_path, ports=Ports.free()) as stack:
        first = stack.pids["Triton"]
        os.kill(first, signal.SIGABRT)
        stack.wait_ready(60)
        assert stack.pids["Triton"] != first


def test_a_triton_that_every_start_aborts_is_told_of(small_repository, tmp_path, monkeypatch):
    pytest.importorskip("pytriton")
    stack = build_stack(small_repository, tmp_path, ports=Ports.free())
    stack.start()
    ended = iter(range(3))
    answers = Stack._answers

    def end_it(self, child):
        if child.name == "Triton" and child.running and next(ended, None) is not None:
            os.kill(child.pid, signal.SIGABRT)
            time.sleep(0.2)
        return answers(self, child)

    monkeypatch.setattr(Stack, "_answers", end_it)
    with pytest.raises(ServiceError, match=r"Triton was killed \(signal 6\)"):
        stack.wait_ready(60)
    assert stack.pids == {}
