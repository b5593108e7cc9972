"""After a swap the cases are indexed beside the old index; a failed or repeated command never flips the repository."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cli.export import Publication, prepare_servers, roll_back, take_version
from cli.export_servers import Servers
from client import CxrClient
from contract.errors import ConfigError, CxrError, FingerprintError, UnavailableError
from contract.repository import MARKER, read_published, verify

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
TEXTS = ("The heart is enlarged.", "Lungs are clear.", "Small left effusion.")


@contextmanager
def serve_first(models, place: Path):
    """Serve the first model."""
    pytest.importorskip("pytriton")
    from export.publish import publish
    from serving.stack import Ports, Stack

    repository = publish(*models[0], place / "repository")
    with Stack(repository, place / "store", ports=Ports.free(), log_dir=place / "logs") as stack:
        stack.wait_ready(90)
        yield stack


@pytest.fixture
def stack(models, tmp_path):
    with serve_first(models, tmp_path) as stack:
        yield stack


@pytest.fixture(scope="module")
def often_swapped(models, tmp_path_factory):
    """One stack for the tests at whose end the first model answers again."""
    with serve_first(models, tmp_path_factory.mktemp("often_swapped")) as stack:
        yield stack


def index(client: CxrClient) -> None:
    from client.cases import CaseInput

    cases = [CaseInput(f"case-{number}", f"study-{number}", report=text) for number, text in enumerate(TEXTS)]
    assert client.index(cases).refused == ()


def find(client: CxrClient) -> list[str]:
    return [case.id for case in client.search(report=TEXTS[1], k=3).cases]


def quiet():
    from rich.console import Console

    return Console(quiet=True)


def find_servers(stack, *, url: str | None = None, key: Path | None = None) -> Servers:
    return Servers([url or stack.triton_url], stack.repository, [key or stack.admin_key_path])


def test_index_beside_then_back(stack, models, tmp_path):
    from export.publish import publish
    from serving.reload import reload_models
    from serving.stack import Ports, Stack
    from serving.triton import read_admin_key

    key = read_admin_key(stack.admin_key_path)
    with CxrClient(stack.triton_url, stack.retrieval_url) as client:
        index(client)
        assert find(client)[0] == "case-1"
        old = client.info().fingerprint
        before = client.predict(report=TEXTS[1])
        publish(*models[1], stack.repository)
        reload_models(stack.triton_url, stack.repository, key)
        with pytest.raises(FingerprintError, match=r"none of model .*\. Run `cxr index TABLE`"):
            find(client)
        assert "run `cxr index TABLE`" in client.health().retrieval
        found = client.search_embedding(before.embedding, fingerprint=old, k=3)
        assert found[0].id == "case-1"  # who began with the old model still finds its index
        index(client)
        assert find(client)[0] == "case-1"
        assert client.health().retrieval is None
        roll_back(quiet(), stack.repository, servers=find_servers(stack))
        assert client.info().fingerprint == old
        assert find(client)[0] == "case-1"
        assert client.health().retrieval is None
        client.delete(["case-1"])
        assert "case-1" not in find(client)
        roll_back(quiet(), stack.repository, to=2, servers=find_servers(stack))
        assert "case-1" not in find(client)
    stack.stop()
    with Stack(stack.repository, stack.store, ports=Ports.free(), log_dir=tmp_path / "again") as second:
        second.wait_ready(90)
        with CxrClient(second.triton_url, second.retrieval_url) as client:
            assert sorted(find(client)) == ["case-0", "case-2"]


def test_a_load_is_checked_first_and_repeated_without_flipping(often_swapped, models, tmp_path):
    from export.publish import publish
    from serving.stack import Ports

    stack = often_swapped
    repository = stack.repository
    publish(*models[1], repository)  # the server is not told: it answers with version 1
    wrong = tmp_path / "wrong-key"
    wrong.write_text("wrong")
    marker = (repository / MARKER).read_bytes()
    nobody = f"127.0.0.1:{Ports.free().grpc}"
    for url, key, error in ((None, wrong, ConfigError), (nobody, None, UnavailableError)):
        for _ in range(2):
            with pytest.raises(error):
                roll_back(quiet(), repository, servers=find_servers(stack, url=url, key=key))
            with pytest.raises(error):
                prepare_servers(find_servers(stack, url=url, key=key))
            assert (repository / MARKER).read_bytes() == marker
    other = publish(*models[0], tmp_path / "other")  # the very model that is served, from another place
    servers = Servers([stack.triton_url], other, [stack.admin_key_path])
    with pytest.raises(ConfigError, match="was started with another repository"):
        roll_back(quiet(), other, to=1, servers=servers)
    # The first completes what was never loaded, the others change nothing.
    for changed in (True, False, False):
        done = roll_back(quiet(), repository, to=2, servers=find_servers(stack))
        assert (done.published.version, done.changed) == (2, changed)
    for changed in (True, False):
        done = roll_back(quiet(), repository, servers=find_servers(stack))
        assert (done.published.version, done.changed) == (1, changed)
    with CxrClient(stack.triton_url, stack.retrieval_url) as client:
        assert client.info().fingerprint == models[0][0].fingerprint


def test_a_version_that_cannot_load_is_withdrawn_and_the_old_one_answers(stack, models):
    from contract.repository import hash_version, render_marker
    from export.publish import publish
    from export.versions import apply_state, render

    publication, repository = Publication(servers=find_servers(stack)), stack.repository
    prepare_servers(publication.servers)
    publish(*models[1], repository, standby=True)
    (repository / "text_encoder" / "2" / "model.onnx").write_bytes(b"broken when it was published")
    state = read_published(repository)
    state.versions[2]["files"] = hash_version(repository, 2)
    (repository / MARKER).write_text(render_marker(state, render(state)))
    apply_state(state)
    verify(repository)
    with pytest.raises(CxrError, match=r"could not load text_encoder.*The change was undone"):
        take_version(quiet(), publication, repository, 2, lambda _: pytest.fail("it was asked"))
    assert list(verify(repository).versions) == [1]
    with CxrClient(stack.triton_url, stack.retrieval_url) as client:
        assert client.predict(report=TEXTS[0]).fingerprint == models[0][0].fingerprint


def test_a_killed_rollback_is_completed_by_its_repetition(often_swapped, models):
    """kill -9 at several moments: the repository is whole each time, and what was asked for answers in the end."""
    from export.publish import publish
    from export.versions import settle

    stack, repository = often_swapped, often_swapped.repository
    if read_published(repository).newest == 1:
        publish(*models[1], repository)
    command = [sys.executable, "-c", "import cxr; cxr.main()", "export", "rollback", str(repository)]
    command += ["--load", stack.triton_url, "--admin-key", str(stack.admin_key_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for target, delay_s in ((2, 0.5), (1, 0.9), (2, 1.2), (1, 1.6)):
        with subprocess.Popen(
            [*command, "--to", str(target)], env=environment, stdout=subprocess.DEVNULL
        ) as process:
            time.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
        settle(repository)
        verify(repository)
        for _ in range(2):
            done = roll_back(quiet(), repository, to=target, servers=find_servers(stack))
            assert done.published.version == target
        with CxrClient(stack.triton_url, stack.retrieval_url) as client:
            assert client.info().fingerprint == models[target - 1][0].fingerprint


def test_serve_on_a_store_of_another_model_starts_and_says_what_to_run(stack, models, tmp_path):
    from export.publish import publish
    from serving.stack import Ports

    with CxrClient(stack.triton_url, stack.retrieval_url) as client:
        index(client)
    stack.stop()
    publish(*models[1], stack.repository)
    ports = Ports.free()
    command = [
        sys.executable,
        "-u",
        "-c",
        "import cxr; cxr.main()",
        "serve",
        "--repository",
        str(stack.repository),
    ]
    command += [
        "--store",
        str(stack.store),
        "--logs",
        str(tmp_path / "second"),
        "--http-port",
        str(ports.http),
    ]
    command += ["--grpc-port", str(ports.grpc), "--metrics-port", str(ports.metrics)]
    command += ["--retrieval-port", str(ports.retrieval)]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
    )
    try:
        text = ""
        for line in process.stdout:
            text += line
            if "Ready after" in line:
                break
        assert "run `cxr index TABLE`" in text, text
        with CxrClient(f"127.0.0.1:{ports.grpc}", f"127.0.0.1:{ports.retrieval}") as client:
            assert np.isfinite(client.predict(report=TEXTS[0]).embedding).all()
            index(client)
            assert find(client)[0] == "case-1"
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
