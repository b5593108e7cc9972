"""Programs of the same machine that mean no good to a server: what they can see and change, and what it survives."""

import contextlib
import os
import secrets
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bench.faults.good_clients import draw_cases
from bench.faults.served_process import ServedProcess, wait_for
from client import CxrClient
from contract.errors import CxrError
from contract.probe_case import PROBE_IMAGE, PROBE_REPORT
from serving.triton import name_regions

grpc_client = pytest.importorskip("tritonclient.grpc")
pytest.importorskip("pytriton")
pytestmark = [pytest.mark.e2e, pytest.mark.alone]

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def served(trained, tmp_path_factory):
    with ServedProcess(trained.repository, tmp_path_factory.mktemp("strangers") / "serve") as served:
        served.wait_ready(90)
        yield served


@pytest.fixture
def stranger(served):
    with grpc_client.InferenceServerClient(served.triton_url) as client:
        yield client


def answers(served: ServedProcess) -> bool:
    try:
        with CxrClient(served.triton_url, served.retrieval_url, timeout_s=3) as client:
            client.predict(PROBE_IMAGE, PROBE_REPORT)
    except CxrError:
        return False
    return True


def list_modes(served: ServedProcess) -> set[int]:
    regions = SHARED_MEMORY.glob(f"{name_regions(served.logs)}*")
    return {path.stat().st_mode & 0o777 for path in regions}


def test_nobody_changes_the_log_or_tracing(stranger):
    """A client could fill the disk with `log_verbose_level`, or silence errors."""
    for change in (
        lambda: stranger.update_log_settings({"log_verbose_level": 5}),
        lambda: stranger.update_log_settings({"log_error": False}),
        lambda: stranger.update_trace_settings("predict_image", {"trace_level": ["TENSORS"]}),
        lambda: stranger.unload_model("predict_image"),
    ):
        with pytest.raises(grpc_client.InferenceServerException, match="restricted"):
            change()


def test_other_users_do_not_see_what_passes_through_shared_memory(served):
    """The python backend's own regions hold radiographs; it makes them readable by everybody."""
    assert list_modes(served) == {0o600}
    os.kill(served.find_server("tritonserver"), signal.SIGKILL)
    assert wait_for(lambda: answers(served))
    assert list_modes(served) == {0o600}


def test_clients_whose_regions_a_stranger_unregisters_get_right_answers(served, stranger):
    image = next(case.image for case in draw_cases(3) if case.image)
    with CxrClient(served.triton_url, timeout_s=20, transport="grpc", shrink=False) as client:
        expected = client.predict(image, PROBE_REPORT).embedding
    differences, end = [], time.monotonic() + 3

    def ask() -> None:
        with CxrClient(served.triton_url, timeout_s=20, transport="shared_memory", shrink=False) as client:
            while time.monotonic() < end:
                difference = client.predict(image, PROBE_REPORT).embedding - expected
                differences.append(float(np.abs(difference).max()))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with contextlib.suppress(grpc_client.InferenceServerException):  # those in use stay
            stranger.unregister_system_shared_memory("")  # all of them
        time.sleep(0.01)
    assert len(differences) > 10
    assert max(differences) < 1e-5


def test_temporary_files_that_were_tidied_up_are_made_again(served):
    """Programs that clean /tmp remove what is old; the next start needs it."""
    triton = served.find_server("tritonserver")
    command = Path(f"/proc/{triton}/cmdline").read_text().split("\0")
    (backends,) = (word.partition("=")[2] for word in command if word.startswith("--backend-directory="))
    shutil.rmtree(Path(backends).parent)
    os.kill(triton, signal.SIGKILL)
    assert wait_for(lambda: served.find_server("tritonserver") not in (None, triton)), served.read_output()
    assert wait_for(lambda: answers(served)), served.read_output()


def test_a_region_that_its_owner_cuts_short_ends_triton_which_comes_back(served, stranger):
    """Nothing in Triton can prevent that (SIGBUS); the others see typed errors for some seconds."""
    path = SHARED_MEMORY / f"cxr_test_{secrets.token_hex(8)}"
    pixels = stranger.get_model_config("predict_image_tensors").config.input[0]
    size = int(np.prod(pixels.dims))
    triton = served.find_server("tritonserver")
    try:
        path.write_bytes(bytes(size))
        stranger.register_system_shared_memory("cut", f"/{path.name}", size)
        os.truncate(path, 0)
        given = grpc_client.InferInput("pixels", [1, *pixels.dims], "UINT8")
        given.set_shared_memory("cut", size)
        with pytest.raises(grpc_client.InferenceServerException):
            stranger.infer("predict_image_tensors", [given], client_timeout=20)
    finally:
        path.unlink()
    assert wait_for(lambda: served.find_server("tritonserver") not in (None, triton)), served.read_output()
    assert wait_for(lambda: answers(served)), served.read_output()
    assert "Triton was killed (signal 7)" in served.read_output()
