"""The Triton image's first process: what its backend would not run as it was gated is refused before the start."""

import os
import shutil
import signal
import site
import subprocess
import sys
import time
from pathlib import Path

import pytest

from contract.connection import TLS, Connection
from contract.errors import ConfigError
from contract.runtime.embedded import SERVER_NAME, is_embedded
from contract.tls_trouble import find_tls_error
from serving import container
from serving.ports import Ports
from serving.probe import is_triton_ready, make_own_connection
from serving.process import ChildProcess, wait_until
from serving.reload import check_server, find_embedded_only
from serving.triton import (
    TritonAddresses,
    TritonInstallation,
    assemble_backends,
    assemble_python,
    build_command,
    build_environment,
    find_triton,
    list_import_paths,
)

grpc_client = pytest.importorskip("tritonclient.grpc")

ROOT = Path(__file__).resolve().parents[2]
OPENVINO = """
optimization { execution_accelerators { cpu_execution_accelerator {
  name: "openvino" parameters { key: "quantization_group" value: "128" } } } }
"""


@pytest.fixture
def backends(tmp_path):
    """The backend directory of NVIDIA's image."""
    directory = tmp_path / "backends" / "onnxruntime"
    directory.mkdir(parents=True)
    (directory / "libtriton_onnxruntime.so").touch()
    return directory.parent


@pytest.fixture
def int8_repository(own_repository, mark_published):
    with (own_repository / "graph" / "config.pbtxt").open("a") as config:
        config.write(OPENVINO)
    mark_published(own_repository, "f" * 64)
    return own_repository


def name_server(repository: Path, backends: Path, *more: str) -> list[str]:
    words = ("tritonserver", f"--model-repository={repository}", f"--backend-directory={backends}", *more)
    return container._name_server(words)


def test_a_repository_that_the_backend_would_not_run_is_refused(int8_repository, backends):
    assert find_embedded_only(int8_repository) == ["graph"]
    with pytest.raises(ConfigError) as info:
        name_server(int8_repository, backends)
    assert str(info.value).startswith(f"The repository {int8_repository} holds graphs of the profile")
    assert str(info.value).count(". ") == 1  # two sentences


def test_any_backend_runs_float32(own_repository, backends):
    assert find_embedded_only(own_repository) == []
    assert name_server(own_repository, backends) == []


def test_the_embedded_backend_is_named(int8_repository, backends):
    shutil.rmtree(backends / "onnxruntime")
    (backends / "onnxruntime").mkdir()
    assert not is_embedded(backends)
    (backends / "onnxruntime" / "model.py").touch()
    assert name_server(int8_repository, backends) == [f"--id={SERVER_NAME}"]
    assert name_server(int8_repository, backends, "--id=mine") == []
    (backends / "onnxruntime" / "libtriton_onnxruntime.so").touch()  # Triton takes the library first
    with pytest.raises(ConfigError):
        name_server(int8_repository, backends)


def test_a_graph_of_another_backend_is_left_alone(int8_repository):
    path = int8_repository / "graph" / "config.pbtxt"
    path.write_text(path.read_text().replace('backend: "onnxruntime"', 'backend: "openvino"'))
    assert find_embedded_only(int8_repository) == []


def test_the_process_ends_with_the_sentence_before_anything_starts(int8_repository, backends, tmp_path):
    started = tmp_path / "started"
    command = [
        "touch",
        str(started),
        f"--model-repository={int8_repository}",
        f"--backend-directory={backends}",
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "serving.container", *command], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "would run differently than at the gates" in ended.stderr
    assert not started.exists()


def test_the_entry_of_the_image_refuses_before_triton_starts(int8_repository, backends, tmp_path):
    program = tmp_path / "bin" / "tritonserver"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    (program.parent / "python3").symlink_to(sys.executable)
    environment = {
        "PATH": f"{program.parent}:/usr/bin:/bin",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *site.getsitepackages()]),
        "CXR_MODELS": str(int8_repository),
    }
    command = [ROOT / "docker" / "serve_triton.sh", f"--backend-directory={backends}"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"The repository {int8_repository} holds graphs of the profile")
    assert not (tmp_path / "started").exists()
    shutil.rmtree(backends / "onnxruntime")
    shutil.copytree(ROOT / "serving" / "backends" / "onnxruntime", backends / "onnxruntime")
    assert subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode == 0
    assert (tmp_path / "started").exists()


EARLY_SIGNAL = """
import os, signal, sys
from serving import container

def find_nothing(repository):
    os.kill(os.getpid(), signal.SIGTERM)
    return []

container.find_embedded_only = find_nothing
sys.exit(container.main(["sleep", "60"]))
"""


def test_a_signal_before_triton_starts_ends_it_too(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", EARLY_SIGNAL]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=60)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr


def test_options_are_found_in_both_of_their_forms():
    command = ["tritonserver", "--grpc-port", "1", "--grpc-port=2", "--id", "mine"]
    assert container._find_option(command, "grpc-port", "8001") == "2"
    assert container._find_option([*command, "--grpc-port", "3"], "grpc-port", "8001") == "3"
    assert container._find_option(command, "id", "") == "mine"
    assert container._find_option(command, "http-port", "8000") == "8000"


def test_cxr_serve_names_its_server():
    """Its backend directory holds the embedded backend and nothing else of that name."""
    nowhere = Path("/nowhere")
    installation = TritonInstallation("0", *[nowhere] * 5)
    command = build_command(installation, nowhere, nowhere, TritonAddresses(1, 2, 3), "p")
    assert f"--id={SERVER_NAME}" in command
    backends = Path(container.__file__).parent / "backends"
    assert is_embedded(backends)


@pytest.mark.e2e
def test_the_image_serves_mutual_tls_and_keeps_its_calls_closed(small_repository, certificates, tmp_path):
    """With the bundled Triton; its options are those of the images."""
    pytest.importorskip("pytriton")
    installation, ports, folder = find_triton(), Ports.free(), certificates / "good"
    assemble_backends(installation, tmp_path / "backends")
    python = assemble_python(tmp_path / "python", list_import_paths())
    environment = build_environment(installation, python)
    environment["PATH"] = f"{installation.server.parent}:{environment['PATH']}"
    environment |= {"PYTHONPATH": str(ROOT), "CXR_MODELS": str(small_repository), "CXR_ADMIN_KEY": "k" * 20}
    environment |= {"CXR_TLS_DIR": str(folder), "CXR_TLS_REQUIRE_CLIENT": "1"}
    options = (f"--backend-directory={tmp_path / 'backends'}", f"--cache-directory={installation.caches}")
    addresses = [f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")]
    addresses += [f"--{name}-port={getattr(ports, name)}" for name in ("http", "grpc", "metrics")]
    command = [str(ROOT / "docker" / "serve_triton.sh"), *options, *addresses]
    server = ChildProcess("Triton", command, log_path=tmp_path / "triton.log", environment=environment)
    server.start()
    url, connection = f"127.0.0.1:{ports.grpc}", make_own_connection(folder)
    try:
        deadline = time.monotonic() + 60
        while not is_triton_ready(url, connection):
            assert server.running, server.read_tail()
            assert wait_until(deadline), server.read_tail()
        stranger = Connection(TLS(folder / "ca.crt"))
        assert not is_triton_ready(url)
        assert not is_triton_ready(url, stranger)
        assert "speaks TLS" in str(find_tls_error(url, Connection(), "Triton"))
        assert "requires a client certificate" in str(find_tls_error(url, stranger, "Triton"))
        client = connection.open_triton(grpc_client.InferenceServerClient, url, ())
        for call in (
            client.get_model_repository_index,
            client.get_system_shared_memory_status,
            client.get_log_settings,
            client.get_trace_settings,
        ):
            with pytest.raises(grpc_client.InferenceServerException, match="restricted"):
                call()
        client.close()
        assert check_server(url, small_repository, "k" * 20, connection) is None
        with pytest.raises(ConfigError, match="does not accept this admin key"):
            check_server(url, small_repository, "x" * 20, connection)
    finally:
        server.stop()
