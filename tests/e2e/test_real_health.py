"""Health says what a real inference says: the client, the doctor, the probe and the image's entry."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.faults.served_process import wait_for
from client import CxrClient
from serving.probe import ask_all, is_triton_ready
from serving.stack import Ports, Stack
from serving.stubs import list_stubs

pytest.importorskip("pytriton")
pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def repository(random_model, tmp_path_factory) -> Path:
    from export.publish import publish

    return publish(*random_model, tmp_path_factory.mktemp("health") / "repository")


@pytest.fixture
def stack(repository, tmp_path):
    """A stack that nobody supervises: what is broken stays so."""
    with Stack(repository, tmp_path / "store", ports=Ports.free(), log_dir=tmp_path / "logs") as stack:
        stack.wait_ready(90)
        yield stack


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, env=environment, timeout=120
    )


def kill_image_stub(server_pid: int) -> None:
    name = next(x for x in list_stubs(server_pid) if "image_encoder" in x.model)
    os.kill(name.process.pid, signal.SIGKILL)


def test_a_dead_python_process_is_told_by_all(stack):
    addresses = ("--triton", stack.triton_url)
    with CxrClient(stack.triton_url, stack.retrieval_url, timeout_s=20) as client:
        assert client.health().triton is None
        assert run("serving.probe", *addresses).returncode == 0
        kill_image_stub(stack.pids["Triton"])
        assert wait_for(lambda: client.health().triton is not None)
        assert is_triton_ready(stack.triton_url)  # what Triton says of itself
        assert "image_encoder" in client.health().triton
        assert not client.health().ready
        probed = run("serving.probe", *addresses)
        assert probed.returncode == 4
        assert "predict_study fails: " in probed.stderr
        seen = run("cxr", "doctor", *addresses, "--retrieval", stack.retrieval_url)
        assert "triton server          answers" not in seen.stdout
        assert "image_encoder" in seen.stdout


def test_the_entry_of_the_image_ends_when_triton_no_longer_infers(repository, tmp_path):
    """With the bundled Triton in the place of the image's: the same release."""
    ports = Ports.free()
    stack = Stack(repository, tmp_path / "store", ports=ports, log_dir=tmp_path / "logs")
    servers = stack._prepare()
    try:
        # The image has no relay: its Triton listens at a port itself.
        command = [x for x in servers.build_triton()._command if not x.startswith(("--grpc-a", "--grpc-p"))]
        command += ["--grpc-address=127.0.0.1", f"--grpc-port={ports.grpc}"]
        with (tmp_path / "out").open("w") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "serving.container", *command],
                env={**servers.assembly.environment, "PYTHONPATH": str(ROOT)},
                stdout=out,
                stderr=out,
            )
        deadline = time.monotonic() + 60
        while not is_triton_ready(stack.triton_url):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        ask_all(stack.triton_url, 30)
        time.sleep(2)  # the watch has asked too
        (server,) = (
            int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        )
        kill_image_stub(server)
        assert process.wait(60) == 1
        assert "Stopping Triton: " in (tmp_path / "out").read_text()
        assert not Path(f"/proc/{server}").exists()
    finally:
        stack.stop()
