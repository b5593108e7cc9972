"""Each change of a signed repository is signed again, and nothing serves one without its signature."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from contract.bundle import MANIFEST
from contract.errors import ArtifactError, ConfigError, SignatureError
from contract.repository import MARKER, SIGNATURE, verify
from contract.repository import main as check_repository
from contract.signatures import ENVIRONMENT, name_signature
from export.signing import sign_repository
from export.versions import promote, restore, retire, rollback, settle, withdraw

minisign = pytest.importorskip("minisign")

ROOT = Path(__file__).resolve().parents[3]


def test_each_change_of_a_signed_repository_is_signed_again(repository, keys, trust):
    sign_repository(repository, keys[0])
    assert verify(repository, trust).version == 1
    promote(repository, 2, key=keys[0])
    assert verify(repository, trust).version == 2
    rollback(repository, key=keys[0])
    assert verify(repository, trust).version == 1
    settle(repository)  # as `cxr serve` does; without a key
    assert verify(repository, trust).version == 1

    def fail() -> None:
        assert list(verify(repository, trust).versions) == [1]
        raise OSError

    with pytest.raises(OSError, match=r"^$"):
        retire(repository, tell=fail, key=keys[0])
    assert list(verify(repository, trust).versions) == [1, 2]
    withdraw(repository, 2, key=keys[0])
    assert list(verify(repository, trust).versions) == [1]


@pytest.mark.parametrize(
    "change",
    [
        lambda path: promote(path, 2),
        lambda path: rollback(path, 2),
        retire,
        lambda path: withdraw(path, 1),
    ],
)
def test_a_signed_repository_does_not_change_without_a_key(change, repository, keys, trust):
    sign_repository(repository, keys[0])
    files = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="is signed, and a change would make its signature invalid"):
        change(repository)
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == files
    assert verify(repository, trust)


def test_a_marker_with_right_hashes_of_other_weights_is_refused(repository, keys, trust, mark_published):
    sign_repository(repository, keys[0])
    signature = (repository / SIGNATURE).read_bytes()
    (repository / "graph" / "1" / "model.onnx").write_text("other weights")
    with pytest.raises(ArtifactError, match="differs from the published file"):
        verify(repository, trust)
    mark_published(repository, "1" * 64, second="2" * 64)
    assert verify(repository)  # hashes alone do not notice
    (repository / SIGNATURE).write_bytes(signature)
    with pytest.raises(SignatureError, match=r"is the signature of model 1{12}, but .* is of model 2{12}"):
        verify(repository, trust)
    (repository / SIGNATURE).unlink()
    with pytest.raises(SignatureError, match="has no signature"):
        verify(repository, trust)


def test_the_signature_of_a_bundle_is_none_of_a_repository(repository, signed, trust):
    shutil.copy(name_signature(signed / MANIFEST), repository / SIGNATURE)
    with pytest.raises(SignatureError, match="is the signature of model"):
        verify(repository, trust)


def test_a_damaged_repository_is_not_signed(repository, keys):
    (repository / "graph" / "2" / "model.onnx").write_text("other weights")
    with pytest.raises(ArtifactError, match="differs from the published file"):
        sign_repository(repository, keys[0])
    assert not (repository / SIGNATURE).exists()


def test_an_interrupted_change_leaves_a_repository_that_is_refused(repository, keys, trust, monkeypatch):
    """The process is killed between the marker and its signature."""
    sign_repository(repository, keys[0])
    signature = (repository / SIGNATURE).read_bytes()
    promote(repository, 2, key=keys[0])
    (repository / SIGNATURE).write_bytes(signature)
    with pytest.raises(SignatureError, match=r"is the signature of model 1{12}"):
        verify(repository, trust)
    sign_repository(repository, keys[0])
    assert verify(repository, trust).version == 2


def test_leftovers_are_removed_but_not_the_signature(repository, keys, trust):
    sign_repository(repository, keys[0])
    (repository / f"{MARKER}.old").write_text("left")
    restore(repository)
    assert not (repository / f"{MARKER}.old").exists()
    assert verify(repository, trust)


def test_the_check_of_the_container_reads_the_environment(repository, keys, trust, monkeypatch, capsys):
    monkeypatch.setenv(ENVIRONMENT, trust.keys[0])
    assert check_repository([str(repository)]) == 3
    assert "has no signature" in capsys.readouterr().err
    sign_repository(repository, keys[0])
    assert check_repository([str(repository)]) == 0
    other = keys[1].trust.keys[0]
    assert check_repository([str(repository), "--require-signature", other]) == 3
    monkeypatch.setenv(ENVIRONMENT, "nothing")
    assert check_repository([str(repository)]) == 2


def start_image(repository: Path, place: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the entry point of the image. Its tritonserver notes that it was started."""
    (place / "tritonserver").write_text(f"#!/bin/sh\ntouch {place}/started\n")
    (place / "tritonserver").chmod(0o755)
    environment = {**os.environ, "CXR_MODELS": str(repository), "PYTHONPATH": str(ROOT), **settings}
    # The script asks for python3, which must be the one with this project's packages.
    environment["PATH"] = f"{place}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = ROOT / "docker" / "serve_triton.sh"
    return subprocess.run([script], env=environment, capture_output=True, text=True, cwd=place, check=False)


def test_the_image_starts_no_triton_without_the_signature(repository, tmp_path, keys, trust):
    key = {ENVIRONMENT: trust.keys[0]}
    ended = start_image(repository, tmp_path, **key)
    assert (ended.returncode, "has no signature" in ended.stderr) == (3, True)
    sign_repository(repository, keys[0])
    ended = start_image(repository, tmp_path, **key, CXR_ADMIN_KEY="k")
    assert (ended.returncode, "exclude each other" in ended.stderr) == (2, True)
    assert not (tmp_path / "started").exists()
    assert start_image(repository, tmp_path, **key).returncode == 0
    assert (tmp_path / "started").exists()


def test_a_new_repository_and_a_new_version_are_signed(bundle, tmp_path, keys, trust):
    onnx = pytest.importorskip("onnx")
    from contract.tensors import GRAPHS
    from export.publish import check_fits, publish

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [value]))
    onnx.helper.set_model_props(graph, {"fingerprint": bundle.fingerprint})
    onnx.save(graph, tmp_path / "graph.onnx")
    graphs = dict.fromkeys(GRAPHS, tmp_path / "graph.onnx")
    made = publish(bundle, graphs, tmp_path / "repository", key=keys[0])
    assert verify(made, trust).version == 1
    with pytest.raises(ConfigError, match="is signed"):
        publish(bundle, graphs, made)
    from export.configs import Deployment

    with pytest.raises(ConfigError, match="is signed"):
        check_fits(bundle, made, Deployment())
    publish(bundle, graphs, made, key=keys[0])
    assert verify(made, trust).version == 2
    publish(bundle, graphs, made, replace=True)  # another repository, which nobody signed
    assert not (made / SIGNATURE).exists()
    assert json.loads((made / MARKER).read_text())["version"] == 1
