"""The real server process, started as `serving.stack` starts it."""

import ctypes
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract.errors import ConfigError
from retrieval.listener import require_usable
from retrieval.server import main, parse_arguments
from retrieval.store import CaseStore

from .store_files import change


def test_serves_until_sigterm_and_keeps_its_cases(run_server, make, tmp_path):
    vectors = make.vectors(10)
    server = run_server("--fingerprint", make.MODEL, "--threads", "1", "--device", "cpu")
    assert server.ready_line.endswith(": 0 cases, no model yet, index on cpu.\n")
    assert server.client.health() == server.client.health("cxr.retrieval.v1.Retrieval") == "SERVING"
    assert server.client.add(vectors).added == 10
    assert server.client.find_ids(vectors[4], k=1) == ["4"]
    assert server.end(signal.SIGTERM) == (0, "")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["cases.sqlite", "lock"]

    server = run_server()  # takes the model it holds
    assert f"10 cases, model {make.MODEL[:12]}," in server.ready_line
    assert server.client.find_ids(vectors[4], k=1) == ["4"]
    assert server.end(signal.SIGINT) == (0, "")


def test_nobody_watches_the_health(run_server, expect_status):
    server = run_server()
    watch = health_pb2_grpc.HealthStub(server.client.channel).Watch(health_pb2.HealthCheckRequest())
    with expect_status("UNIMPLEMENTED"):
        next(watch)
    assert server.client.health() == "SERVING"


def test_a_signal_that_does_not_wake_the_main_thread_ends_it_too(run_server):
    """One that comes just before the main thread blocks does not; nor does one that another thread receives."""
    server = run_server()
    pid = server.process.pid
    threads = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    other = next(thread for thread in threads if thread != pid)
    assert ctypes.CDLL(None).tgkill(pid, other, signal.SIGTERM) == 0
    assert server.process.wait(60) == 0


def is_answered(client) -> bool:
    try:
        client.info()
    except grpc.RpcError:
        return False
    return True


def test_stopping_waits_for_the_request_under_way_and_refuses_new_ones(sidecar, make, monkeypatch):
    begun, go = threading.Event(), threading.Event()
    put = sidecar.store.put

    def put_slowly(*arguments):
        begun.set()
        assert go.wait(60)
        return put(*arguments)

    monkeypatch.setattr(sidecar.store, "put", put_slowly)
    with ThreadPoolExecutor(2) as pool:
        adding = pool.submit(sidecar.client.add, make.vectors(3))
        assert begun.wait(60)
        stopping = pool.submit(sidecar.server.stop, 10.0)
        while is_answered(sidecar.client):
            pass  # until the stop has begun
        assert not stopping.done()
        go.set()
        assert adding.result().added == 3
        stopping.result()
    assert sidecar.store.count() == 3


def test_acknowledged_cases_survive_kill_9(run_server, make):
    server = run_server()
    acknowledged = []
    enough = threading.Event()

    def add_batches():
        number = 0
        while True:
            ids = [f"{number}-{place}" for place in range(20)]
            try:
                server.client.add(make.vectors(20, seed=number), ids=ids)
            except grpc.RpcError:
                return
            acknowledged.append(number)
            number += 1
            if number == 15:
                enough.set()

    thread = threading.Thread(target=add_batches)
    thread.start()
    assert enough.wait(60)
    server.process.kill()
    server.process.wait()
    thread.join()

    client = run_server().client
    stored = client.info().case_count
    assert stored % 20 == 0  # no batch is there by half
    assert 0 <= stored // 20 - len(acknowledged) <= 1  # the last one may have been stored unacknowledged
    for number in acknowledged:
        results = client.search(make.vectors(20, seed=number), k=1)
        found = [(result.hits[0].case.id, round(result.hits[0].score, 5)) for result in results]
        assert found == [(f"{number}-{place}", 1.0) for place in range(20)]
    assert len(client.find_ids(make.vectors(1)[0], k=1000)) == min(stored, 1000)


def test_two_servers_never_share_a_store(run_server, make):
    first = run_server()
    first.client.add(make.vectors(3))
    second = run_server(wait=False)
    output, errors = second.process.communicate(timeout=60)
    assert (second.process.returncode, output) == (2, "")
    assert errors.count("\n") == 1
    assert "in use by another server" in errors
    assert first.client.info().case_count == 3
    first.end(signal.SIGKILL)
    assert "3 cases" in run_server().ready_line


def test_a_store_of_another_model_is_kept_and_told_of(run_server, make):
    vectors = make.vectors(1)
    server = run_server("--fingerprint", make.MODEL)
    server.client.add(vectors)
    server.end(signal.SIGTERM)
    other = run_server("--fingerprint", make.OTHER_MODEL)
    assert f"1 cases, model {'a' * 12}" in other.ready_line
    assert len(other.client.search(vectors)[0].hits) == 1
    assert other.client.add(vectors, ids=["new"], fingerprint=make.OTHER_MODEL).added == 1
    code, errors = other.end(signal.SIGTERM)
    assert (code, errors.count("\n")) == (0, 1)
    assert f"index of model {'a' * 12}, but none of model {'b' * 12}. Run `cxr index TABLE`" in errors
    both = run_server("--fingerprint", make.OTHER_MODEL)
    assert f"1 cases, model {'b' * 12}" in both.ready_line
    assert both.end(signal.SIGTERM) == (0, "")


def test_an_address_in_use_ends_the_start(run_server, tmp_path):
    first = run_server()
    second = run_server(name="other", address=first.address, wait=False)
    output, errors = second.process.communicate(timeout=60)
    assert (second.process.returncode, output, errors.count("\n")) == (2, "", 1)
    assert first.address in errors
    assert "in use" in errors
    CaseStore(tmp_path / "other").close()  # not left locked


def test_a_disk_quota_that_is_reached_leaves_a_working_server(run_server, make, expect_status):
    """The kernel refuses to let a file of this process grow beyond 400 KiB."""
    prlimit = shutil.which("prlimit")
    if not prlimit:
        pytest.skip("prlimit (util-linux) is not installed")
    server = run_server(wrap=[prlimit, "--fsize=409600"])
    server.client.add(make.vectors(50))
    with expect_status("INTERNAL", "cannot be written"):
        server.client.add(make.vectors(600, seed=1), ids=range(50, 650), report="r" * 2000)
    assert server.client.info().case_count == 50
    assert server.client.find_ids(make.vectors(50)[7], k=1) == ["7"]
    assert server.client.add(make.vectors(1, seed=3), ids=["new"]).added == 1
    assert len(server.client.find_ids(make.vectors(1)[0], k=1000)) == 51
    code, errors = server.end(signal.SIGTERM)
    assert code == 0
    assert errors.count("\n") == 1
    assert "51 cases" in run_server().ready_line


def run_main(capsys, *arguments) -> tuple[int, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return code, captured.err


@pytest.fixture(autouse=True)
def restore_signals():
    """`main` runs in this process in some tests."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def damage_row(path: Path) -> None:
    change(path, "UPDATE cases SET embedding = x'00' WHERE id = 'b'")


def test_a_damaged_row_is_told_of_and_the_others_are_served(run_server, make, tmp_path):
    with CaseStore(tmp_path / "store") as store:
        store.put(make.MODEL, make.records("abc"), make.vectors(3))
    damage_row(tmp_path / "store" / "cases.sqlite")
    server = run_server()
    assert "2 cases" in server.ready_line
    assert sorted(server.client.find_ids(make.vectors(3)[1])) == ["a", "c"]
    assert (server.client.info().case_count, server.client.info().damaged_count) == (2, 1)
    code, errors = server.end(signal.SIGTERM)
    assert (code, errors.count("\n")) == (0, 1)
    assert "1 of its rows (2) differ from what was written" in errors
    assert main(["--store", str(tmp_path / "store"), "--remove-damaged"]) == 0
    assert run_server().end(signal.SIGTERM) == (0, "")


def test_the_index_of_a_model_is_removed_only_when_told(run_server, make, tmp_path, capsys):
    server = run_server()
    for number, model in enumerate((make.MODEL, make.OTHER_MODEL)):
        server.client.add(make.vectors(2, seed=number), fingerprint=model)
    store = str(tmp_path / "store")
    code, message = run_main(capsys, "--store", store, "--forget", make.MODEL)
    assert (code, "in use by another server" in message) == (2, True)
    server.end(signal.SIGTERM)
    code, message = run_main(capsys, "--store", store, "--forget", "c" * 64)
    assert (code, "It holds aaaaaaaaaaaa, bbbbbbbbbbbb" in message) == (2, True)
    code, message = run_main(capsys, "--store", str(tmp_path / "nowhere"), "--forget", "c" * 64)
    assert (code, "There is no case store" in message) == (2, True)
    assert main(["--store", store, "--forget", make.MODEL[:12]]) == 0
    assert "2 cases" in capsys.readouterr().out
    assert list(run_server().client.info().fingerprints) == [make.OTHER_MODEL]


def test_a_file_that_is_no_store_ends_the_start(capsys, tmp_path):
    (tmp_path / "cases.sqlite").write_bytes(np.random.default_rng(0).bytes(5000))
    code, message = run_main(capsys, "--store", str(tmp_path), "--address", "127.0.0.1:0")
    assert code == 3
    assert "not a database" in message


def test_a_missing_gpu_ends_the_start(capsys, tmp_path):
    faiss = pytest.importorskip("faiss")
    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this FAISS has GPU support")
    arguments = ["--store", str(tmp_path), "--address", "127.0.0.1:0", "--device", "gpu"]
    code, message = run_main(capsys, *arguments)
    assert code == 2
    assert "GPU" in message


def test_a_missing_package_names_its_install_command(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "retrieval.listener", None)
    code, message = run_main(capsys, "--store", str(tmp_path))
    assert code == 2
    assert "pip install" in message


@pytest.mark.parametrize("fingerprint", ["", "abc", "G" * 64])
def test_a_bad_fingerprint_ends_the_start(capsys, tmp_path, fingerprint):
    code, message = run_main(capsys, "--store", str(tmp_path / "store"), "--fingerprint", fingerprint)
    assert code == 2
    assert "--fingerprint" in message
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("address", ["8005", ":8005", "127.0.0.1:", "127.0.0.1:port", "127.0.0.1:70000"])
def test_a_malformed_address(address):
    with pytest.raises(ConfigError, match="must be host:port"):
        require_usable(address)


def test_an_address_of_another_machine():
    with pytest.raises(ConfigError, match=r"Cannot listen on 192\.0\.2\.1:8005"):  # RFC 5737
        require_usable("192.0.2.1:8005")
    assert require_usable("localhost:0") == "localhost"


def test_a_port_taken_since_it_was_probed(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr("retrieval.listener.require_usable", lambda address: "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["--store", str(tmp_path), "--address", address]) == 2
    assert address in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments", [[], ["--store", "s", "--threads", "0"], ["--store", "s", "--threads", "many"]]
)
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(arguments)
    assert caught.value.code == 2
    capsys.readouterr()


def test_help_explains_each_option(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    text = capsys.readouterr().out
    for option in ("--store", "--address", "--fingerprint", "--device", "--threads"):
        assert option in text


def test_stopping_while_the_index_is_built_is_quick(run_server, make, tmp_path):
    with CaseStore(tmp_path / "store") as store:
        for start in range(0, 20_000, 4000):
            ids = range(start, start + 4000)
            store.put(make.MODEL, make.records(ids), make.vectors(4000, dimension=256))
    server = run_server(wait=False)
    opened = tmp_path / "store" / "cases.sqlite-wal"  # by then it also minds signals
    deadline = time.monotonic() + 60
    while not opened.exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert server.end(signal.SIGTERM) == (0, "")
