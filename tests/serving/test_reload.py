"""A running Triton takes a new version, only from who has the key, and keeps the old one if it must."""

import contextlib
import http.client
import http.server
import json
import shutil
import socket
import stat
import threading
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest

from contract.errors import ArtifactError, ConfigError, FingerprintError, ServerError, UnavailableError
from serving.reload import check_server, find_models, reload_models
from serving.stack import Ports, Stack
from serving.triton import ADMIN_HEADER, make_admin_key, read_admin_key

grpc_client = pytest.importorskip("tritonclient.grpc")

OLD, NEW = "f" * 64, "a" * 64
POLICY = "version_policy { specific { versions: %s } }\n"


@pytest.fixture
def served(own_repository, tmp_path, mark_published):
    """A running stack over a repository that a test may change, and a client of it."""
    pytest.importorskip("pytriton")
    for name in ("graph", "step"):
        change_config(own_repository, name, policy="[1]")
    change_config(own_repository, "predict", ("model_version: -1", "model_version: 1"), policy="[1]")
    mark_published(own_repository, OLD)
    options = {"ports": Ports.free(), "log_dir": tmp_path / "logs", "http_inference": True}
    with Stack(own_repository, tmp_path / "store", **options) as stack:
        stack.wait_ready(60)
        client = grpc_client.InferenceServerClient(stack.triton_url)
        yield stack, client
        client.close()


def change_config(repository: Path, name: str, *changes: tuple[str, str], policy: str) -> None:
    path = repository / name / "config.pbtxt"
    text = path.read_text().partition("version_policy")[0]
    for old, new in changes:
        text = text.replace(old, new)
    path.write_text(text + POLICY % policy)


def publish_second(repository: Path, mark) -> None:
    """Add version 2, a graph that gives the double, as `export.publish` lays it out."""
    onnx = pytest.importorskip("onnx")
    for name in ("graph", "step", "predict"):
        shutil.copytree(repository / name / "1", repository / name / "2")
    graph = onnx.load(repository / "graph" / "2" / "model.onnx")
    table = onnx.numpy_helper.from_array(2 * np.arange(10, dtype=np.float32) ** 2, "table")
    graph.graph.initializer[0].CopyFrom(table)
    onnx.helper.set_model_props(graph, {"fingerprint": NEW})
    onnx.save(graph, repository / "graph" / "2" / "model.onnx")
    (repository / "graph" / "2" / "fingerprint").write_text(NEW)
    for name in ("graph", "step"):
        change_config(repository, name, policy="[1, 2]")
    change_config(repository, "predict", (OLD, NEW), ("model_version: 1", "model_version: 2"), policy="[2]")
    mark(repository, OLD, second=NEW)


def ask(client, text: bytes = b"3") -> tuple[float, str]:
    """Return what the ensemble answers and which version of it answered."""
    tensor = grpc_client.InferInput("text", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text]], dtype=np.object_))
    answer = client.infer("predict", [tensor])
    return float(answer.as_numpy("values")[0, 1]), answer.get_response().model_version


@pytest.mark.e2e
def test_new_version_is_taken_under_traffic(served, mark_published):
    stack, client = served
    assert ask(client) == (9, "1")
    publish_second(stack.repository, mark_published)
    assert ask(client) == (9, "1")  # until it is told
    answers, failures, stop = set(), [], threading.Event()

    def call():
        own = grpc_client.InferenceServerClient(stack.triton_url)
        while not stop.is_set():
            try:
                answers.add(ask(own))
            except grpc_client.InferenceServerException as error:  # noqa: PERF203
                failures.append(error)
        own.close()

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    result = reload_models(stack.triton_url, stack.repository, read_admin_key(stack.admin_key_path))
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert answers <= {(9, "1"), (18, "2")}
    assert ask(client) == (18, "2")
    assert result.fingerprint == NEW
    assert list(result.seconds) == ["graph", "step", "predict"]  # the switch comes last
    assert json.loads(json.dumps(result.to_dict()))["fingerprint"] == NEW
    log = (stack.log_dir / "triton.log").read_text()
    for name in ("graph", "step"):  # version 1 is not loaded again: the requests would wait for the cores
        assert log.count(f"InstanceInitialize: {name}_0_0 ") == 2, name


@pytest.mark.e2e
def test_broken_version_leaves_the_old_one_and_can_be_taken_back(served, mark_published):
    stack, client = served
    key = read_admin_key(stack.admin_key_path)
    paths = (*stack.repository.glob("*/config.pbtxt"), stack.repository / ".published.json")
    before = {path: path.read_text() for path in paths}
    publish_second(stack.repository, mark_published)
    (stack.repository / "graph" / "2" / "model.onnx").write_bytes(b"no graph")
    mark_published(stack.repository, OLD, second=NEW)  # it was broken when it was published
    with pytest.raises(ServerError, match=r"could not load graph: .*version 2.*cannot load") as info:
        reload_models(stack.triton_url, stack.repository, key)
    assert "At:" not in str(info.value)
    assert ask(client) == (9, "1")
    for path, text in before.items():
        path.write_text(text)
    reload_models(stack.triton_url, stack.repository, key)
    assert ask(client) == (9, "1")
    assert (
        not client.is_server_ready()
    )  # Triton 2.51 remembers the failed version until a good one of its number
    for name in ("graph", "step", "predict"):
        shutil.rmtree(stack.repository / name / "2")
    publish_second(stack.repository, mark_published)
    reload_models(stack.triton_url, stack.repository, key)
    assert ask(client) == (18, "2")
    assert client.is_server_ready()


@pytest.mark.e2e
def test_models_change_only_with_the_key(served, tmp_path, mark_published):
    stack, client = served
    key = read_admin_key(stack.admin_key_path)
    for call in (client.load_model, client.unload_model):
        with pytest.raises(grpc_client.InferenceServerException, match="restricted"):
            call("graph")
    with pytest.raises(ConfigError, match="does not accept this admin key"):
        reload_models(stack.triton_url, stack.repository, f"{key}x")
    connection = http.client.HTTPConnection(stack.http_url, timeout=5)
    for headers in ({}, {ADMIN_HEADER: "x"}, {ADMIN_HEADER: key}, {ADMIN_HEADER: "closed"}):
        for path in ("/v2/repository/models/graph/load", "/v2/repository/index", "/v2/logging"):
            connection.request("POST", path, body="{}", headers=headers)
            response = connection.getresponse()
            response.read()
            assert response.status != http.HTTPStatus.OK, (path, headers)
    connection.close()
    # With obsolete line folding too.
    for value in (b"closed\n", b"closed\r\n ", b"closed\r\n\t\n", b"closed\\n", b"closed%0A"):
        head = (
            f"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n{ADMIN_HEADER}: ".encode()
        )
        with socket.create_connection(("127.0.0.1", stack.ports.http), timeout=5) as raw:
            raw.settimeout(2)
            raw.sendall(head + value + b"\r\n\r\n{}")
            with contextlib.suppress(TimeoutError, ConnectionError):
                assert b" 200 " not in raw.recv(100), value
    assert key not in Path(f"/proc/{stack.pids['Triton']}/cmdline").read_text()
    assert ask(client) == (9, "1")
    other = tmp_path / "other"
    shutil.copytree(stack.repository, other)
    mark_published(other, NEW)
    with pytest.raises(FingerprintError, match=r"serves model ffffffffffff in predict.*aaaaaaaaaaaa"):
        reload_models(stack.triton_url, other, key)


def test_nobody_at_the_address(small_repository):
    with pytest.raises(UnavailableError, match="does not answer"):
        reload_models(f"127.0.0.1:{Ports.free().grpc}", small_repository, "key")


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:8000", "127.0.0.1:99999", ""])
def test_an_address_that_is_none_names_the_option(url, small_repository):
    for change in (reload_models, check_server):
        with pytest.raises(ConfigError, match=r"--load must be host:port of Triton's gRPC service"):
            change(url, small_repository, "key")


def test_another_service_at_the_address_is_told_from_a_server_that_is_down(small_repository):
    """Triton's HTTP port, and the sidecar's gRPC."""
    sidecar = grpc.server(futures.ThreadPoolExecutor(1))
    port = sidecar.add_insecure_port("127.0.0.1:0")
    sidecar.start()
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        for number in (port, web.server_port):
            with pytest.raises(
                ConfigError, match=rf"service at 127.0.0.1:{number} is not Triton's gRPC service.*--load"
            ):
                check_server(f"127.0.0.1:{number}", small_repository, "key")
    finally:
        sidecar.stop(None)
        web.shutdown()
        web.server_close()


def test_models_are_told_apart(own_repository, tmp_path):
    assert find_models(own_repository) == (["graph", "step"], ["predict"])
    (own_repository / "step" / "config.pbtxt").write_text("no config")
    with pytest.raises(ArtifactError, match="step"):
        find_models(own_repository)
    with pytest.raises(ArtifactError, match="holds no model"):
        find_models(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="Run `cxr export` first"):
        reload_models("127.0.0.1:1", tmp_path, "key")


def test_key_is_for_this_user_alone_and_new_each_time(tmp_path):
    path = tmp_path / "runtime" / "admin_key"
    first = make_admin_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (tmp_path / "mine").write_text("precious")
    path.unlink()
    path.symlink_to(tmp_path / "mine")
    second = make_admin_key(path)
    assert read_admin_key(path) == second != first
    assert len(second) >= 32
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, r"no admin key.*--admin-key"), (b"\n", "empty"), (b"\xff", "cannot be read")],
)
def test_unusable_key_file_is_named(content, words, tmp_path):
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_admin_key(tmp_path / "key")
