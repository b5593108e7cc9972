"""No Docker engine is needed: what each Dockerfile installs goes into a clean environment, and its entry point runs."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def read_instruction(dockerfile: str, name: str) -> str:
    text = (ROOT / "docker" / dockerfile).read_text().replace("\\\n", " ")
    found = re.findall(rf"^{name} (.+)$", text, flags=re.MULTILINE)
    return found[-1]


def install(dockerfile: str, directory: Path, python: str = sys.executable) -> Path:
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
    if python == sys.executable:
        venv.create(directory / "env", with_pip=True)
    else:
        subprocess.run([python, "-m", "venv", str(directory / "env")], check=True)
    made = directory / "env" / "bin" / "python"
    target = f"{source}{requirement.group(1) or ''}"
    subprocess.run([made, "-m", "pip", "install", "--quiet", target], check=True, cwd=directory)
    return made


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_every_dockerfile_pins_its_base_and_drops_root(path: Path):
    text = path.read_text()
    base = re.search(r"^FROM (\S+)$", text, flags=re.MULTILINE).group(1)
    assert re.search(r":\S*\d", base), "a base image without a version changes under your feet"
    assert re.search(r"^USER (?!root)", text, flags=re.MULTILINE)
    assert text.index("USER cxr") < text.index("ENTRYPOINT")
    json.loads(read_instruction(path.name, "ENTRYPOINT"))


def test_triton_image_is_the_release_of_the_bundled_server():
    """NGC 24.10 ships Triton 2.51.0 (NVIDIA's release notes); the wheel names its version in its METADATA."""
    assert read_instruction("triton.Dockerfile", "FROM").endswith("tritonserver:24.10-py3")


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
def test_triton_image(tmp_path: Path):
    """The python models' imports work with what the image adds, on the Python of the image where it is at hand."""
    python = install("triton.Dockerfile", tmp_path, shutil.which("python3.10") or sys.executable)
    code = (
        "from contract.dicom import load_pixels\n"
        "from contract.text import ReportTokenizer, read_report, train_tokenizer\n"
        "import io, numpy, pathlib\n"
        "from PIL import Image\n"
        "file = io.BytesIO(); Image.fromarray(numpy.eye(64, dtype='uint8') * 255).save(file, 'PNG')\n"
        "assert load_pixels(file.getvalue(), size=32).shape == (1, 32, 32)\n"
        "path = pathlib.Path('tokenizer.json'); train_tokenizer(['small effusion'] * 3, path)\n"
        "tokens = ReportTokenizer.load(path).encode([read_report('Small effusion.', 'findings')], 64)\n"
        "assert tokens.input_ids.shape == (1, 32)\n"
    )
    result = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
