"""What a watch takes for work and for a standstill, and how it goes on."""

import os
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest

import serving.watch as watch
from contract.errors import ConfigError
from contract.image.read import load_radiograph
from contract.probe_case import PROBE_IMAGE
from serving.flow import COPYING, SERVER, Flow
from serving.stubs import Process, Stub


def test_a_watch_outlives_a_look_that_fails(monkeypatch):
    """Where no file can be opened for a moment, the server is still watched afterwards."""
    looks = []

    def look(_watch, _now):
        looks.append(len(looks))
        if len(looks) == 1:
            raise OSError("Too many open files")

    monkeypatch.setattr(watch, "LOOK_S", 0.01)
    monkeypatch.setattr(watch.TritonWatch, "_look", look)
    watching = watch.TritonWatch("127.0.0.1:1", os.getpid(), ["predict_text"], up=True)
    deadline = time.monotonic() + 60
    while len(looks) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    watching.close()
    assert len(looks) >= 3


def make_process(pid: int, cpu_s: float, state: str = "S") -> Process:
    return Process(pid, "triton_python_b", state, 1, cpu_s, 0)


def test_flow_tells_work_from_standstill():
    flow = Flow()
    stub = lambda cpu_s: [Stub(make_process(7, cpu_s), "preprocess", "1")]  # noqa: E731
    flow.update(100.0, {"preprocess": 5, "graph": 5}, stub(1.0), make_process(1, 10.0))
    assert flow.get_idle_s(["preprocess"], 90.0, 100.0) == 0  # counted for the first time
    flow.update(104.0, {"preprocess": 5, "graph": 5}, stub(1.0), make_process(1, 10.0))
    assert flow.get_idle_s(["preprocess", "graph"], 90.0, 104.0) == 4
    assert flow.get_idle_s(["preprocess"], 103.0, 104.0) == 1  # asked a second ago
    flow.update(105.0, {"preprocess": 5, "graph": 5}, stub(1.5), make_process(1, 10.0))
    assert flow.get_idle_s(["preprocess"], 90.0, 105.0) == 0  # it computes
    assert flow.get_idle_s(["graph"], 90.0, 105.0) == 5
    assert flow.has_grown("graph", {"graph": 6})
    assert not flow.has_grown("graph", {"graph": 5})
    flow.update(106.0, None, stub(1.5), make_process(1, 11.0))  # silent, but its own process computes
    assert flow.get_idle_s([SERVER], 90.0, 106.0) == 0
    assert flow.get_idle_s(["graph"], 90.0, 106.0) == 0  # runs inside the server
    assert not flow.has_grown("graph", None)


def test_a_process_that_gets_no_processor_does_not_stand_still():
    flow = Flow()
    stub = lambda state: [Stub(make_process(7, 1.0, state), "preprocess", "1")]  # noqa: E731
    for now, state in ((100.0, "S"), (110.0, "R"), (115.0, "D")):
        flow.update(now, {"preprocess": 5}, stub(state), make_process(1, 10.0))
    assert flow.get_idle_s(["preprocess"], 90.0, 116.0) == 1
    flow.update(130.0, {"preprocess": 5}, stub("S"), make_process(1, 10.0))
    assert flow.get_idle_s(["preprocess"], 90.0, 130.0) == 15
    assert flow.get_idle_s([COPYING], 90.0, 130.0) == 40
    flow.update(131.0, {"preprocess": 5}, stub("S"), make_process(1, 10.2))
    assert flow.get_idle_s([COPYING], 90.0, 131.0) == 0
    assert flow.get_idle_s(["preprocess"], 90.0, 131.0) == 16  # a model with a process of its own


@pytest.mark.parametrize(("server_cpu_s", "limit_s"), [(0.0, 6), (0.2, 20)])
def test_a_standstill_is_less_sure_while_the_server_copies(server_cpu_s, limit_s):
    """60 clients with files of 16 MB: a batch takes longer to reach its model than a standstill may last."""
    watching = watch.TritonWatch("127.0.0.1:1", os.getpid(), [], up=True)
    watching.close()
    watching._silent_since = None
    question = SimpleNamespace(
        model="predict_study", steps=["preprocess_study"], failures=0, waiting_since=100.0
    )
    watching._questions = {"predict_study": question}
    stubs, verdict, now = [Stub(make_process(7, 1.0), "preprocess_study", "1")], None, 100.0
    while verdict is None and now < 150:
        now += 0.5
        server = make_process(1, server_cpu_s * now)
        watching._flow.update(now, {"preprocess_study": 5}, stubs, server)
        verdict = watching._judge(now)
    assert verdict == f"predict_study hangs: no answer and no working model for {now - 100.5:.0f} s."
    assert limit_s < now - 100.5 <= limit_s + 1


def test_the_probe_is_a_radiograph_that_is_read():
    assert load_radiograph(PROBE_IMAGE, size=32).pixels.shape == (1, 32, 32)


@pytest.mark.alone
@pytest.mark.parametrize(("command", "stands_still"), [("sleep 30", True), ("while :; do :; done", False)])
def test_a_start_that_stands_still_gets_a_verdict_and_one_that_works_does_not(
    command, stands_still, monkeypatch
):
    monkeypatch.setattr(watch, "_START_STANDSTILL_S", 1.5)
    process = subprocess.Popen(["sh", "-c", f"exec {command}" if stands_still else command])
    watching = watch.TritonWatch("127.0.0.1:9", process.pid, ("predict_image",), up=False)
    try:
        deadline = time.monotonic() + (20 if stands_still else 5)
        while watching.verdict is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert (watching.verdict is not None) == stands_still
        if stands_still:
            assert watching.verdict.startswith("its start hangs: no process has worked for ")
    finally:
        watching.close()
        process.kill()
        process.wait()


def test_a_health_watch_outlives_a_question_that_cannot_be_asked(monkeypatch):
    """While a certificate is renewed, its file may be missing for a moment, and the question raises ConfigError."""
    monkeypatch.setattr(watch, "LOOK_S", 0.01)
    monkeypatch.setattr(watch, "_STANDSTILL_S", 0.05)
    files_are_there, asked = threading.Event(), []

    def is_ready():
        asked.append(None)
        if not files_are_there.is_set():
            raise ConfigError("there is no server.crt")
        return True

    watching = watch.HealthWatch(is_ready, os.getpid(), up=True)
    try:
        deadline = time.monotonic() + 30
        while len(asked) < 20:
            assert time.monotonic() < deadline, len(asked)
            time.sleep(0.01)
        assert (watching.ready, watching.verdict) == (False, None)  # the server itself may be well
        files_are_there.set()
        while not watching.ready:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        watching.close()
