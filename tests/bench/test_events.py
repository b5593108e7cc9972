"""The event that corrupts the newest version: what it asks for, and that it leaves the file whole."""

from types import SimpleNamespace

import pytest

from bench.faults import events
from contract.errors import ArtifactError, ServerError


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """A repository with two versions of one graph, and a server that is down."""
    for version in (1, 2):
        (tmp_path / "graph" / str(version)).mkdir(parents=True)
        (tmp_path / "graph" / str(version) / "model.onnx").write_bytes(b"weights")
    files = {"graph/config.pbtxt": "", "graph/2/model.onnx": ""}
    state = SimpleNamespace(newest=2, versions={2: {"files": files}})
    monkeypatch.setattr(events, "read_published", lambda _: state)
    monkeypatch.setattr(events, "_CORRUPT_S", 0.0)
    monkeypatch.setattr(events, "kill_triton", lambda _: None)
    return SimpleNamespace(repository=tmp_path, served=SimpleNamespace(find_server=lambda _: None))


def read(scene) -> list[bytes]:
    return [(scene.repository / "graph" / version / "model.onnx").read_bytes() for version in "12"]


def refuse(seen: list):
    def reload(_, repository):
        seen.append([path.read_bytes() for path in sorted(repository.glob("graph/*/model.onnx"))])
        raise ArtifactError("damaged")

    return reload


def test_a_load_of_the_damaged_version_is_refused(scene, monkeypatch):
    seen: list = []
    monkeypatch.setattr(events, "_reload", refuse(seen))
    events.corrupt(scene.served, scene.repository)
    assert seen == [[b"weights", b"weifhts"]]  # the byte in the middle
    assert read(scene) == [b"weights", b"weights"]


def test_a_damaged_version_that_was_loaded_fails_the_event(scene, monkeypatch):
    monkeypatch.setattr(events, "_reload", lambda *_: None)
    with pytest.raises(ServerError, match="damaged version was loaded"):
        events.corrupt(scene.served, scene.repository)
    assert read(scene) == [b"weights", b"weights"]


def test_a_triton_that_starts_with_a_damaged_file_fails_the_event(scene, monkeypatch):
    monkeypatch.setattr(events, "_reload", refuse([]))
    scene.served.find_server = lambda _: 7
    with pytest.raises(ServerError, match="started with a damaged file"):
        events.corrupt(scene.served, scene.repository)
    assert read(scene) == [b"weights", b"weights"]
