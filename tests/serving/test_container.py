"""The Triton image's first process: what its backend would not run as it was gated is refused before the start."""

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

from contract.errors import ConfigError
from contract.runtime.embedded import SERVER_NAME, is_embedded
from serving import container
from serving.reload import find_embedded_only
from serving.triton import TritonAddresses, TritonInstallation, build_command

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


def test_cxr_serve_names_its_server():
    """Its backend directory holds the embedded backend and nothing else of that name."""
    nowhere = Path("/nowhere")
    installation = TritonInstallation("0", *[nowhere] * 5)
    command = build_command(installation, nowhere, nowhere, TritonAddresses(1, 2, 3), "p")
    assert f"--id={SERVER_NAME}" in command
    backends = Path(container.__file__).parent / "backends"
    assert is_embedded(backends)
