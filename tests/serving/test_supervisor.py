"""Restarts with real processes and a watch that says what the test wants; and what the parts of a watch decide."""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tritonclient.utils import InferenceServerException

import cli.serve
import serving.regions as regions
import serving.runtime as runtime
import serving.watch as watch
from contract.errors import ConfigError
from contract.image.read import load_radiograph
from contract.probe_case import PROBE_IMAGE
from serving.flow import COPYING, SERVER, Flow
from serving.health import HealthServer
from serving.ports import Ports
from serving.process import ChildProcess
from serving.regions import RegionSweeper
from serving.runtime import LogsLock, PrivateFolder, find_stub_trouble, list_bases, show_path
from serving.stubs import Process, Stub, read_process
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


@pytest.fixture
def health():
    port = Ports.free().http
    server = HealthServer(port, {None: False, "predict_image": True}.get)
    yield port
    server.close()


def ask(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(4096):
            answer += part
    return answer


def test_health_by_path(health):
    for path, status in (
        ("/v2/health/live", 200),
        ("/v2/health/ready", 503),
        ("/v2/models/predict_image/ready", 200),
        ("/v2/models/predict_image/versions/3/ready", 200),
        ("/v2/models/other/ready", 404),
        ("/v2/models/../ready", 404),
        ("/", 404),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", health, timeout=5)
        connection.request("GET", path)
        assert connection.getresponse().status == status, path
        connection.close()


@pytest.mark.parametrize(
    "data",
    [
        b"POST /v2/health/live HTTP/1.1\r\n\r\n",
        b"GET /" + b"x" * 10**5 + b" HTTP/1.1\r\n\r\n",
        b"\0\1\2\r\n\r\n",
    ],
)
def test_other_requests_are_refused(health, data):
    try:
        answer = ask(health, data)
    except ConnectionError:
        answer = b""
    assert not answer.startswith(b"HTTP/1.0 2")
    assert ask(health, b"GET /v2/health/live HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200")


@pytest.mark.alone
def test_a_client_that_sends_a_byte_a_second_is_cut_off(health):
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", health), timeout=10) as slow:
        try:
            while time.monotonic() - began < 9:
                slow.sendall(b"G")
                time.sleep(0.3)
        except OSError:
            pass
    assert time.monotonic() - began < 6


@pytest.mark.alone
def test_many_clients_that_send_a_byte_at_a_time_keep_nobody_out(health):
    """They come again as soon as they are cut off; every question between them is answered."""
    end = time.monotonic() + 3

    def dawdle() -> None:
        while time.monotonic() < end:
            with (
                contextlib.suppress(OSError),  # cut off
                socket.create_connection(("127.0.0.1", health), timeout=5) as slow,
            ):
                while time.monotonic() < end:
                    slow.sendall(b"G")
                    time.sleep(0.1)

    threads = [threading.Thread(target=dawdle) for _ in range(100)]
    for thread in threads:
        thread.start()
    answers = []
    while time.monotonic() < end - 0.5:
        answers.append(ask(health, b"GET /v2/health/live HTTP/1.0\r\n\r\n")[:12])
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert len(answers) > 5
    assert set(answers) == {b"HTTP/1.0 200"}


def test_a_port_in_use_is_named(health):
    with pytest.raises(ConfigError, match=f"Port {health} on 127.0.0.1 cannot be used"):
        HealthServer(health, lambda _model: True)


HOLDER = "import sys, time; from pathlib import Path; from serving.runtime import LogsLock; lock = LogsLock(Path(sys.argv[1])); lock.write(()); print('held', flush=True); time.sleep(60)"  # noqa: E501


def test_the_logs_lock_outlives_nobody(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=rf"\(process {holder.pid}\) uses the logs folder"):
            LogsLock(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    LogsLock(tmp_path).release()


def test_leftovers_are_killed_only_if_they_are_the_ones(tmp_path):
    sleeper = subprocess.Popen(["sleep", "60"], start_new_session=True)
    lock = LogsLock(tmp_path)
    try:
        lock._path.write_text(f'{{"servers": {{"{sleeper.pid}": 1, "x": 1, "0": 1}}}}')
        lock.end_leftovers()
        assert sleeper.poll() is None
        lock._path.write_text(f'{{"servers": {{"{sleeper.pid}": {read_process(sleeper.pid).started}}}}}')
        lock.end_leftovers()
        assert sleeper.wait(60) == -signal.SIGKILL
    finally:
        lock.release()
        sleeper.kill()
        sleeper.wait()


def test_a_private_folder_is_plain_and_removed_when_its_owner_died(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "_STALE_S", -1.0)
    kept = PrivateFolder(tmp_path)
    assert kept.path.stat().st_mode & 0o777 == 0o700
    dead = tmp_path / "cxr-serve-dead"
    dead.mkdir()
    odd = tmp_path / "a b"
    odd.mkdir()
    assert kept.link_unless_plain("x", odd) == kept.path / "x"
    assert kept.link_unless_plain("y", kept.path) == kept.path
    PrivateFolder(tmp_path).close()
    assert not dead.exists()
    assert kept.path.exists()
    kept.close()
    assert odd.exists()
    assert not kept.path.exists()


def test_bases_have_plain_paths(tmp_path, monkeypatch):
    odd = tmp_path / "a b"
    odd.mkdir()
    monkeypatch.setattr(runtime.tempfile, "gettempdir", lambda: str(odd))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert list_bases() == [Path("/tmp"), Path("/var/tmp"), tmp_path]


def test_a_stub_that_cannot_start_is_told(tmp_path):
    stub = tmp_path / "stub"
    stub.write_text("#!/bin/sh\necho libpython is missing\nexit 127\n")
    assert find_stub_trouble(stub, {}) == f"{stub}: Permission denied"
    stub.chmod(0o700)
    assert find_stub_trouble(stub, {}) == "libpython is missing"


def test_paths_can_be_shown():
    assert show_path(Path(os.fsdecode(b"/a/\xff"))) == "/a/\\xff"


class Triton:
    """Keeps names of regions; those in use are not given up."""

    def __init__(self, *names: str) -> None:
        self.regions, self.in_use = set(names), set()

    def get_system_shared_memory_status(self, client_timeout):
        return SimpleNamespace(regions={name: SimpleNamespace(key=f"/{name}") for name in self.regions})

    def unregister_system_shared_memory(self, name, client_timeout):
        if name in self.in_use:
            raise InferenceServerException("in use", status="StatusCode.INTERNAL")
        self.regions.discard(name)


def test_regions_without_a_file_or_an_owner_are_forgotten(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(regions, "_SHARED_MEMORY", tmp_path)
    names = [f"cxr_client_locked_{word}" for word in ("live", "dead", "busy", "gone")] + ["foreign", "lost"]
    for name in names:
        if not name.endswith(("gone", "lost")):
            (tmp_path / name).write_bytes(b"x")
    triton = Triton(*names)
    triton.in_use = {"cxr_client_locked_busy"}
    with (tmp_path / names[0]).open("r+b") as live:
        fcntl.flock(live, fcntl.LOCK_EX)
        assert RegionSweeper(triton).sweep() == 3
        assert triton.regions == {names[0], names[2], "foreign"}
        assert {path.name for path in tmp_path.iterdir()} == {names[0], names[2], "foreign"}
    triton.in_use = set()
    assert RegionSweeper(triton).sweep() == 2
    assert triton.regions == {"foreign"}
    young = tmp_path / "cxr_client_locked_young"  # made, not locked yet
    young.write_bytes(b"x")
    assert regions.remove_orphans() == 0
    monkeypatch.setattr(regions, "_YOUNG_S", -1.0)
    assert regions.remove_orphans() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["foreign"]


def test_a_folder_from_which_no_program_runs_is_passed_over(tmp_path, monkeypatch):
    pytest.importorskip("pytriton")
    import serving.assembly as assembly
    from serving.triton import find_triton

    bases = [tmp_path / "noexec", tmp_path / "good"]
    for base in bases:
        base.mkdir()
    monkeypatch.setattr(assembly, "list_bases", lambda: bases)
    really = assembly.find_stub_trouble

    def find_trouble(stub, environment):
        return f"{stub}: Permission denied" if "noexec" in str(stub) else really(stub, environment)

    monkeypatch.setattr(assembly, "find_stub_trouble", find_trouble)
    made = assembly.assemble(find_triton())
    assert made.folder.path.parent == bases[1]
    assert made.is_whole
    (made.backends / "python" / "triton_python_backend_stub").unlink()  # as `tmpreaper` does
    assert not made.is_whole
    assert not list(bases[0].iterdir())
    made.folder.close()
    monkeypatch.setattr(assembly, "list_bases", lambda: bases[:1])
    with pytest.raises(
        ConfigError, match=r"cannot be started from .*Permission denied.*\. Set TMPDIR to a folder"
    ):
        assembly.assemble(find_triton())


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
