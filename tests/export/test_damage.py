"""A repository is served only if every file is what was published; each message names the file and the way out."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from contract.errors import ArtifactError
from contract.repository import MARKER, UnpublishedError, hash_files, read_published, verify
from contract.tensors import GRAPHS
from export.publish import publish
from export.versions import rollback, settle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def published(bundle, tmp_path_factory) -> Path:
    """A repository of two versions, whose image encoder keeps its weights beside the graph."""
    root = tmp_path_factory.mktemp("damage")
    for number in (1, 2):
        graphs = write_graphs(root / f"graphs-{number}", f"{number:064x}")
        publish(replace(bundle, fingerprint=f"{number:064x}"), graphs, root / "repository")
    return root / "repository"


def write_graphs(root: Path, fingerprint: str) -> dict[str, Path]:
    root.mkdir()
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [value]))
    onnx.helper.set_model_props(graph, {"fingerprint": fingerprint})
    for name in GRAPHS:
        onnx.save(graph, root / f"{name}.onnx")
    (root / "image_encoder.onnx.data").write_bytes(bytes(5000))
    return {name: root / f"{name}.onnx" for name in GRAPHS}


@pytest.fixture
def repository(published, tmp_path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "repository"))


def flip(path: Path, at: float = 0.5) -> None:
    """Flip the lowest bit of one byte."""
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


FILES = (
    "image_encoder/2/model.onnx",
    "image_encoder/2/image_encoder.onnx.data",
    "preprocess_text/2/tokenizer.json",
    "preprocess_image/2/model.py",
    "predict_study/2/config.pbtxt",
    "text_encoder/2/fingerprint",
    "text_encoder/1/model.onnx",  # Triton loads the version before, too
    "predict_study/config.pbtxt",
    "image_encoder/config.pbtxt",
)


def test_what_was_published_is_intact(published, repository):
    assert verify(repository) == replace(read_published(published), repository=repository)
    (repository / "image_encoder" / ".new-3").mkdir()  # what an interrupted publish leaves is not loaded
    (repository / "image_encoder" / "3").mkdir()
    (repository / "image_encoder" / "3" / "model.onnx").write_bytes(b"x")
    verify(repository)


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("name", FILES)
def test_changed_file_is_named_with_both_hashes(name, damage, repository):
    before = hash_files(repository, [name])[name]
    damage(repository / name)
    now = hash_files(repository, [name])[name]
    with pytest.raises(ArtifactError) as info:
        verify(repository)
    message = str(info.value)
    assert str(repository / name) in message
    assert before[:12] in message
    assert now[:12] in message
    assert "--replace" in message or "cxr export rollback" in message
    assert info.value.exit_code == 3


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(name, repository):
    (repository / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        verify(repository)


@pytest.mark.parametrize(
    "name", ["preprocess_image/2/__pycache__/model.pyc", "image_encoder/1/model.plan", "predict_text/2/x"]
)
def test_file_that_was_not_published_is_named(name, repository):
    (repository / name).parent.mkdir(exist_ok=True)
    (repository / name).write_bytes(b"x")
    with pytest.raises(ArtifactError, match=f"{name} was not published"):
        verify(repository)


@pytest.mark.parametrize("name", ["another", ".ipynb_checkpoints", "lost+found"])
def test_model_that_was_not_published_is_named(repository, name):
    (repository / name).mkdir()
    with pytest.raises(
        ArtifactError, match=rf"{re.escape(name)} was not published, and Triton would load it"
    ):
        verify(repository)


def test_every_flip_in_the_marker_is_found_or_changes_nothing(repository):
    """White space is all that may differ."""
    intact, data = read_published(repository), (repository / MARKER).read_bytes()
    for at in range(0, len(data), 7):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 7
        (repository / MARKER).write_bytes(changed)
        try:
            found = verify(repository)
        except ArtifactError:
            continue
        assert (found, found.configs) == (intact, intact.configs), at


@pytest.mark.parametrize("key", ["checksum", "configs"])
def test_marker_that_lost_a_key_is_damaged(key, repository):
    content = json.loads((repository / MARKER).read_text())
    content.pop(key)
    (repository / MARKER).write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"published\.json is damaged.*--replace"):
        verify(repository)


def test_marker_from_before_there_was_a_checksum_is_made_new(repository):
    content = json.loads((repository / MARKER).read_text())
    for key in ("checksum", "configs", "repository_id"):
        content.pop(key)
    (repository / MARKER).write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=rf"older version.*cxr export rollback {repository} --to 2"):
        verify(repository)
    rollback(repository, to=2)
    assert verify(repository).version == 2


def test_no_marker_is_no_damage(tmp_path):
    with pytest.raises(UnpublishedError, match="Run `cxr export` first"):
        verify(tmp_path)


def test_damaged_version_gives_way_to_the_intact_one(repository):
    flip(repository / "image_encoder" / "2" / "model.onnx")
    with pytest.raises(ArtifactError, match=rf"cxr export rollback {repository} --to 1"):
        verify(repository)
    with pytest.raises(ArtifactError, match=r"image_encoder/2/model\.onnx"):
        rollback(repository, to=2)
    rollback(repository, to=1)
    assert list(verify(repository).versions) == [1]
    assert not (repository / "image_encoder" / "2").exists()


def test_damaged_config_of_triton_is_rendered_again(repository):
    flip(repository / "image_encoder" / "config.pbtxt")
    with pytest.raises(ArtifactError, match=rf"cxr export rollback {repository} --to 2` writes"):
        verify(repository)
    settle(repository)  # as `cxr serve` does
    verify(repository)


def test_damage_is_not_published_on(repository, bundle, tmp_path):
    """Neither the config of a version nor its weights become good by the next publish."""
    graphs = write_graphs(tmp_path / "graphs", f"{3:064x}")
    for name in ("predict_study/2/config.pbtxt", "image_encoder/2/model.onnx"):
        intact = (repository / name).read_bytes()
        flip(repository / name, 0.02)
        marker = (repository / MARKER).read_bytes()
        with pytest.raises(ArtifactError, match=f"{name} differs from the published file"):
            publish(replace(bundle, fingerprint=f"{3:064x}"), graphs, repository)
        assert (repository / MARKER).read_bytes() == marker
        (repository / name).write_bytes(intact)
    verify(repository)


def start_stack(repository: Path, place: Path) -> str:
    from serving.stack import Ports, Stack

    pytest.importorskip("pytriton")
    stack = Stack(repository, place / "store", ports=Ports.free(), log_dir=place / "logs")
    with pytest.raises(ArtifactError) as info:
        stack.start()
    assert stack.pids == {}
    return str(info.value)


def start_image(repository: Path, place: Path) -> str:
    environment = {
        **os.environ,
        "CXR_MODELS": str(repository),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    }
    result = subprocess.run(
        [ROOT / "docker" / "serve_triton.sh"],
        env=environment,
        capture_output=True,
        text=True,
        cwd=place,
        check=False,
    )
    assert result.returncode == 3, result.stderr
    return result.stderr


def load_it(repository: Path, place: Path) -> str:
    from serving.reload import reload_models

    with pytest.raises(ArtifactError) as info:
        reload_models("127.0.0.1:9", repository, "key")  # nothing listens there: it is not asked
    return str(info.value)


@pytest.mark.parametrize("start", [start_stack, start_image, load_it])
def test_nothing_starts_on_a_flipped_bit(start: Callable[[Path, Path], str], repository, tmp_path):
    flip(repository / "image_encoder" / "2" / "image_encoder.onnx.data")
    assert "image_encoder.onnx.data differs from the published file" in start(repository, tmp_path)


def test_image_goes_on_to_triton_when_all_is_intact(repository, tmp_path):
    environment = {**os.environ, "CXR_MODELS": str(repository), "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    script = ROOT / "docker" / "serve_triton.sh"
    result = subprocess.run(
        [script], env=environment, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 127  # there is no tritonserver outside of the image
    assert "tritonserver" in result.stderr
