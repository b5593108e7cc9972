"""`cxr serve`, run as a user runs it, through what ends or stops its servers: it brings back what is gone."""

import http.client
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bench.faults.faults import FAULTS
from bench.faults.namespaces import SHARED_MEMORY
from bench.faults.served_process import SERVERS, ServedProcess, wait_for
from client import CxrClient
from contract.errors import CxrError, ServiceError
from contract.image.png import encode_png
from contract.probe_case import PROBE_IMAGE, PROBE_REPORT
from serving.stubs import read_process

pytest.importorskip("pytriton")
pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
grpc_client = pytest.importorskip("tritonclient.grpc")
pytestmark = [pytest.mark.e2e, pytest.mark.alone]

ROOT = Path(__file__).parents[2]
FORM = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl says without being told


@pytest.fixture(scope="module")
def repositories(random_model, tmp_path_factory) -> dict[str, Path]:
    """Published repositories with random weights; in that for throughput, preprocessing has two instances."""
    from export.pipeline import make_deployment
    from export.profiles import load_profile
    from export.publish import publish

    root = tmp_path_factory.mktemp("supervised")
    return {
        variant: publish(
            *random_model, root / variant, make_deployment(load_profile("fp32"), "cpu", variant, "split")
        )
        for variant in ("latency", "throughput")
    }


@pytest.fixture
def repository(repositories) -> Path:
    return repositories["latency"]


@pytest.fixture
def served(repository, tmp_path):
    with ServedProcess(repository, tmp_path / "serve") as served:
        served.wait_ready(90)
        yield served


@pytest.fixture(scope="module")
def often_harmed(repositories, tmp_path_factory):
    """One server for the faults that it must survive, one after the other; at the end it still ends in order."""
    directory = tmp_path_factory.mktemp("often_harmed")
    with ServedProcess(repositories["latency"], directory / "serve") as served:
        served.wait_ready(90)
        yield served
        assert served.stop() == 0
        assert served.list_leftovers() == []


@pytest.fixture(scope="module")
def unharmed(repositories, tmp_path_factory):
    """One server for the tests that must leave it as it is."""
    directory = tmp_path_factory.mktemp("unharmed")
    with ServedProcess(repositories["latency"], directory / "serve") as served:
        served.wait_ready(90)
        yield served


def ask_all(served: ServedProcess) -> bool:
    try:
        with CxrClient(served.triton_url, served.retrieval_url, timeout_s=3) as client:
            client.predict(PROBE_IMAGE, PROBE_REPORT)
            client.predict(PROBE_IMAGE)
            client.predict(None, PROBE_REPORT)
    except CxrError:
        return False
    return True


def get_health(served: ServedProcess, path: str = "/v2/health/ready", method: str = "GET") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", served.ports.http, timeout=5)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    finally:
        connection.close()


def is_gone(pid: int) -> bool:
    process = read_process(pid)
    return process is None or process.state == "Z"


def list_remains(served: ServedProcess) -> list[int]:
    """Return the processes of servers that it had before and has no more."""
    sessions = {os.getsid(pid) for word in SERVERS if (pid := served.find_server(word)) is not None}
    return [pid for pid in served.list_leftovers() if not is_gone(pid) and os.getsid(pid) not in sessions]


@pytest.mark.parametrize(
    "name", [x for x in FAULTS if "sidecar" not in x and "relay" not in x and "1.5 s" not in x]
)
def test_triton_comes_back_alone(often_harmed, name):
    served = often_harmed
    triton, sidecar = served.find_server("tritonserver"), served.find_server("retrieval.server")
    FAULTS[name](served)
    assert wait_for(lambda: served.find_server("tritonserver") not in (None, triton)), served.read_output()
    assert wait_for(lambda: ask_all(served)), served.read_output()
    assert wait_for(lambda: get_health(served) == 200)
    assert served.find_server("retrieval.server") == sidecar
    assert is_gone(triton)
    assert list_remains(served) == []


def test_a_python_process_that_stood_still_for_a_moment_costs_a_moment(often_harmed):
    """Most often, not always, Triton 2.51 gives such a process up and ends: what counts is that it serves again."""
    served = often_harmed
    triton, sidecar = served.find_server("tritonserver"), served.find_server("retrieval.server")
    FAULTS["stop a python process for 1.5 s"](served)
    time.sleep(8)
    assert wait_for(lambda: served.find_server("tritonserver") is not None), served.read_output()
    assert wait_for(lambda: ask_all(served)), served.read_output()
    assert wait_for(lambda: get_health(served) == 200)
    assert served.find_server("retrieval.server") == sidecar
    assert served.find_server("tritonserver") == triton or is_gone(triton)
    assert list_remains(served) == []


def test_a_triton_that_stood_still_for_a_moment_is_left_alone(unharmed):
    triton = unharmed.find_server("tritonserver")
    FAULTS["stop Triton for 1.5 s"](unharmed)
    time.sleep(8)
    assert unharmed.find_server("tritonserver") == triton, unharmed.read_output()
    assert ask_all(unharmed)


def test_predictions_go_on_without_the_sidecar(often_harmed):
    served = often_harmed
    triton, sidecar = served.find_server("tritonserver"), served.find_server("retrieval.server")
    os.kill(sidecar, signal.SIGKILL)
    assert wait_for(lambda: is_gone(sidecar))
    assert ask_all(served)
    with CxrClient(served.triton_url, served.retrieval_url, timeout_s=3) as client:
        assert wait_for(lambda: client.health().ready)
    assert served.find_server("tritonserver") == triton
    assert "The retrieval sidecar was killed (signal 9) (log: " in served.read_output()


@pytest.mark.parametrize("name", [name for name in FAULTS if "relay" in name])
def test_the_relay_comes_back_alone(served, name):
    triton, relay = served.find_server("tritonserver"), served.find_server("serving.relay")
    before = served.read_output()
    FAULTS[name](served)
    assert wait_for(lambda: served.find_server("serving.relay") not in (None, relay)), served.read_output()
    assert wait_for(lambda: ask_all(served)), served.read_output()
    assert served.find_server("tritonserver") == triton
    assert is_gone(relay)
    assert "The relay in front of Triton" in served.read_output().removeprefix(before)
    assert list_remains(served) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_all_in_order(served, number, code):
    stubs = [stub.process.pid for stub in served.find_stubs()]
    assert stubs
    assert served.stop(number) == code
    assert wait_for(lambda: all(map(is_gone, stubs)))
    assert served.list_leftovers() == []
    assert "Traceback" not in served.read_output()


def test_a_second_server_on_one_logs_folder_is_refused_and_a_killed_one_frees_it(served, repository):
    key = (served.logs / "runtime" / "admin_key").read_text()
    with pytest.raises(
        ServiceError, match=r"code 2: Error: Another `cxr serve` \(process \d+\) uses the logs folder"
    ):
        ServedProcess(
            repository, served.directory / "other", options=["--logs", str(served.logs)]
        ).wait_ready()
    assert (served.logs / "runtime" / "admin_key").read_text() == key
    servers = [served.find_server(word) for word in SERVERS]
    os.kill(servers[0], signal.SIGSTOP)  # it will not hear that its parent died
    served.process.kill()
    served.process.wait()
    with ServedProcess(repository, served.directory) as again:
        again.wait_ready()
        assert all(map(is_gone, servers))
        assert ask_all(again)


def test_one_dead_instance_of_two_is_noticed(repositories, tmp_path):
    repository = repositories["throughput"]
    name = next(path.parent.parent.name for path in sorted(repository.glob("preprocess_*/1/model.py")))
    with ServedProcess(repository, tmp_path / "serve") as served:
        served.wait_ready(90)
        stubs = [stub for stub in served.find_stubs() if stub.model == name]
        assert len(stubs) == 2
        triton = served.find_server("tritonserver")
        os.kill(stubs[0].process.pid, signal.SIGKILL)
        assert wait_for(lambda: served.find_server("tritonserver") not in (None, triton)), (
            served.read_output()
        )
        assert wait_for(lambda: len([x for x in served.find_stubs() if x.model == name]) == 2)
        assert f"A python process of {name}, version 1, has ended or is stopped" in served.read_output()


def test_a_busy_server_is_left_alone(unharmed):
    """The queue is longer than the time after which a server that stands still is ended."""
    blocks = np.random.default_rng(0).integers(0, 256, (79, 79), dtype=np.uint8)
    image = encode_png(np.kron(blocks, np.ones((100, 100), np.uint8)))  # few bytes, much work
    triton, waited, threads = unharmed.find_server("tritonserver"), [0.0], []
    done = threading.Event()

    def ask() -> None:
        with CxrClient(unharmed.triton_url, timeout_s=120, transport="grpc", shrink=False) as client:
            while not done.is_set():
                began = time.monotonic()
                client.predict(image)
                waited.append(time.monotonic() - began)

    while max(waited) < 7 and len(threads) < 200:  # a fast machine needs more of them
        threads += [threading.Thread(target=ask) for _ in range(40)]
        for thread in threads[-40:]:
            thread.start()
        time.sleep(8)
    done.set()
    for thread in threads:
        thread.join()
    assert max(waited) > 7, "the server was not busy enough for this test"
    assert unharmed.find_server("tritonserver") == triton, unharmed.read_output()
    assert ask_all(unharmed)


def test_http_answers_health_and_nothing_else(unharmed):
    assert [get_health(unharmed, path) for path in ("/v2/health/live", "/v2/health/ready")] == [200, 200]
    assert get_health(unharmed, "/v2/models/predict_study/ready") == 200
    assert get_health(unharmed, "/v2/models/predict_image/versions/1/ready") == 200
    assert get_health(unharmed, "/v2/models/nothing/ready") == 404
    assert get_health(unharmed, "/v2") == 404
    assert get_health(unharmed, method="PUT") == 405


def test_http_posts_that_end_tritons_own_front_end(unharmed):
    """5 MB as curl sends them, ten times, and a million chunks of one byte."""
    triton = unharmed.find_server("tritonserver")
    path = "/v2/models/predict_image/infer"
    for _ in range(10):
        connection = http.client.HTTPConnection("127.0.0.1", unharmed.ports.http, timeout=5)
        try:
            connection.request("POST", path, body=b"x" * 5_000_000, headers=FORM)
            assert connection.getresponse().status == 405
        except (ConnectionError, BrokenPipeError):
            pass  # refused before all was sent
        finally:
            connection.close()
    with socket.create_connection(("127.0.0.1", unharmed.ports.http), timeout=5) as raw:
        raw.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        try:
            for _ in range(1000):
                raw.sendall(b"1\r\nx\r\n" * 1000)
        except OSError:
            pass
    assert unharmed.find_server("tritonserver") == triton
    assert ask_all(unharmed)
    assert get_health(unharmed) == 200


@pytest.fixture(scope="module")
def open_over_http(repositories, tmp_path_factory):
    directory = tmp_path_factory.mktemp("http") / "serve"
    with ServedProcess(repositories["latency"], directory, options=["--http-inference"]) as served:
        served.wait_ready(90)
        yield served


@pytest.mark.parametrize("document", ["docs/serving.md"])
def test_the_safe_call_over_http(open_over_http, document):
    """As the document shows it, with `--http-inference`; 5 MB of an honest content type are refused and end nothing."""
    found = re.search(
        r"^curl (-H 'Content-Type.*?\n.*?)\n```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL
    )
    arguments = shlex.split(found[1].replace("\\\n", " "))
    headers = dict([arguments[arguments.index("-H") + 1].split(": ")])
    path = "/v2/" + next(word for word in arguments if word.startswith("http")).partition("/v2/")[2]
    body = arguments[arguments.index("-d") + 1]
    triton = open_over_http.find_server("tritonserver")
    connection = http.client.HTTPConnection("127.0.0.1", open_over_http.ports.http, timeout=30)
    connection.request("POST", path, body=body, headers=headers)
    answer = connection.getresponse()
    assert answer.status == 200
    assert b"probabilities" in answer.read()
    big = {"Content-Type": "application/octet-stream"}
    connection.request("POST", path, body=b"x" * 5_000_000, headers=big)
    assert connection.getresponse().status >= 400
    connection.close()
    assert open_over_http.find_server("tritonserver") == triton
    assert get_health(open_over_http) == 200  # Triton's own


def test_slow_clients_do_not_stand_in_the_way_of_health(unharmed):
    slow = [socket.create_connection(("127.0.0.1", unharmed.ports.http)) for _ in range(64)]
    try:
        for entry in slow:
            entry.sendall(b"GET /v2/heal")
        assert wait_for(lambda: _answers(unharmed), 10)
    finally:
        for entry in slow:
            entry.close()


def _answers(served: ServedProcess) -> bool:
    try:
        return get_health(served) == 200
    except (OSError, http.client.HTTPException):
        return False


OWNER = """
import os, signal, sys
from client import CxrClient
from bench.faults.good_clients import draw_cases
client = CxrClient(sys.argv[1], transport="shared_memory", timeout_s=30, shrink=False)
client.predict(next(case.image for case in draw_cases(3) if case.image))
print("has a region", flush=True)
signal.pause()
"""


def test_nine_clients_that_are_killed_leave_nothing(unharmed):
    """By TERM, KILL and HUP, three each; one that lives keeps its regions."""
    owners = [
        subprocess.Popen([sys.executable, "-c", OWNER, unharmed.triton_url], cwd=ROOT, stdout=subprocess.PIPE)
        for _ in range(10)
    ]
    try:
        for owner in owners:
            assert owner.stdout.readline() == b"has a region\n"
        with grpc_client.InferenceServerClient(unharmed.triton_url) as client:
            names = set(client.get_system_shared_memory_status().regions)
            assert len(names) >= 10
            for place, owner in enumerate(owners[:9]):
                # The tracker of multiprocessing, which would remove the names, ends too, as with a container.
                _kill_children(owner.pid)
                owner.send_signal((signal.SIGTERM, signal.SIGKILL, signal.SIGHUP)[place % 3])
            assert wait_for(lambda: len(client.get_system_shared_memory_status().regions) <= 1, 15)
            (kept,) = client.get_system_shared_memory_status().regions
            assert {path.name for path in SHARED_MEMORY.iterdir()} & names == {kept}
            time.sleep(6)  # nobody sweeps what is owned
            assert list(client.get_system_shared_memory_status().regions) == [kept]
    finally:
        for owner in owners:
            owner.kill()
            owner.communicate()


def _kill_children(pid: int) -> None:
    for entry in Path("/proc").iterdir():
        process = read_process(int(entry.name)) if entry.name.isdigit() else None
        if process is not None and process.parent == pid:
            os.kill(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "names",
    [
        ("a b", "it's", 'say "x"', "(brackets) & more; $(touch RAN)", "Röntgen-胸"),
        (b"not utf-8 \xff\xfe", "new\nline"),
    ],
)
def test_any_path_serves(repository, tmp_path, names):
    """Each name is a folder in the one before, and so all of them stand in every path."""
    place = Path(os.fsdecode(b"/".join(os.fsencode(name) for name in (tmp_path, *names))))
    place.mkdir(parents=True)
    copy = shutil.copytree(repository, place / "models")
    began = time.monotonic()
    with ServedProcess(copy, place / "serve") as served:
        served.wait_ready(60)
        assert ask_all(served)
        assert served.stop() == 0
    assert time.monotonic() - began < 60
    assert not list(ROOT.glob("RAN")) + list(place.rglob("RAN")) + list(Path.cwd().glob("RAN"))
