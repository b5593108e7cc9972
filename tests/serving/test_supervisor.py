"""Restarts with real processes and a watch that says what the test wants."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import cli.serve
from serving.ports import Ports
from serving.process import ChildProcess
from serving.supervisor import Part

ROOT = Path(__file__).parents[2]


class Watch:
    """Says what it is told."""

    def __init__(self, ready: bool) -> None:
        self.verdict, self.ready, self.closed = None, ready, False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def part(tmp_path):
    """A part whose process sleeps; `part.watches` holds what watched it."""
    watches, cleaned = [], []

    def build():
        return ChildProcess("Sleeper", ["sleep", "60"], log_path=tmp_path / "log", keep_log=True)

    def watch(_child, up):
        watches.append(Watch(up))
        return watches[-1]

    child = build()
    child.start()
    port = Ports.free().grpc
    made = Part(
        "Sleeper",
        child,
        build=build,
        watch=watch,
        ports=[port],
        clean=lambda: cleaned.append(made.child.running),
    )
    made.watches, made.cleaned, made.port = watches, cleaned, port
    made.begin()
    yield made
    made.close()
    made.child.stop()


def step_until(part, said, condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, said
        part.step(said.append)
        time.sleep(0.01)


def test_a_killed_server_is_started_again_and_its_end_is_told(part):
    said, first = [], part.child
    os.kill(first.pid, signal.SIGKILL)
    step_until(part, said, lambda: part.child is not first and part.child.running)
    assert said[0].startswith("Sleeper was killed (signal 9) (log: ")
    assert said[0].endswith("It restarts in 0.5 s.")
    assert part.watches[0].closed
    assert part.cleaned == [False]
    part.watches[-1].ready = True
    step_until(part, said, lambda: len(said) == 2)
    assert said[1].startswith("Sleeper answers again, after ")


def test_a_verdict_ends_the_process_and_what_it_started(part):
    said, first = [], part.child
    part.watches[0].verdict = "predict_image stands still."
    step_until(part, said, lambda: part.child is not first)
    assert first.exit_code is not None
    assert said[0].startswith("Sleeper is being stopped: predict_image stands still (log: ")


def test_pauses_double_up_to_30_s_and_never_end(part, monkeypatch):
    said, clock = [], SimpleNamespace(now=time.monotonic())
    monkeypatch.setattr("serving.supervisor.time", SimpleNamespace(monotonic=lambda: clock.now))
    for _ in range(9):
        first = part.child
        os.kill(first.pid, signal.SIGKILL)
        first._process.wait()
        part.step(said.append)
        clock.now += 31
        part.step(said.append)
        assert part.child is not first
    pauses = [float(line.partition("restarts in ")[2].split(" s")[0]) for line in said]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert "9 failures in a row; the restarts continue" in said[-1]


def test_a_server_that_failed_for_days_is_still_restarted(part):
    said = []
    part._failures = 5000
    part._retry("Sleeper ended with code 1", said.append)
    assert "It restarts in 30 s (5001 failures in a row; the restarts continue)." in said[0]


def test_a_port_that_somebody_took_is_one_sentence(part):
    said, first = [], part.child
    with socket.socket() as other:
        other.bind(("127.0.0.1", part.port))
        other.listen()
        os.kill(first.pid, signal.SIGKILL)
        step_until(part, said, lambda: len(said) == 2)
        assert f"Sleeper cannot be started: Port {part.port} on 127.0.0.1 is in use" in said[1]
    step_until(part, said, lambda: part.child is not first)


def test_what_the_system_refuses_is_tried_again(part, monkeypatch):
    """No file, no memory, no process to be had: it must not end the supervision."""
    said, first, build, refusals = [], part.child, part._build, [OSError("Too many open files")] * 2

    def refuse():
        if refusals:
            raise refusals.pop()
        return build()

    monkeypatch.setattr(part, "_build", refuse)
    os.kill(first.pid, signal.SIGKILL)
    step_until(part, said, lambda: part.child is not first and part.child.running)
    assert [line for line in said if "Sleeper cannot be started: Too many open files" in line] == said[1:3]


def test_a_logs_folder_that_was_removed_is_made_again(part):
    said, first = [], part.child
    shutil.rmtree(first.log_path.parent)
    os.kill(first.pid, signal.SIGKILL)
    step_until(part, said, lambda: part.child is not first and part.child.running)
    assert len(said) == 1
    assert part.child.log_path.exists()


def test_what_is_said_to_a_full_disk_ends_nothing(monkeypatch):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        cli.serve._tell("Triton was killed (signal 9).")
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()


SLOW_IMPORT = """
import sys, time
from pathlib import Path

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "serving.stack":
            Path(__file__).with_name("importing").touch()
            time.sleep(30)

sys.meta_path.insert(0, Slow())
"""


def test_sigterm_ends_serve_with_0_before_anything_runs(tmp_path):
    """130 would tell systemd and Docker of a failure."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_IMPORT)
    command = [sys.executable, "-m", "cxr", "serve", "--repository", "x", "--store", "y"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "importing").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    try:
        assert process.wait(60) == 0
    finally:
        process.kill()
