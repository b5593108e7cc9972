"""The hub folder is a bundle, whole or not there, and holds nothing that the bundle does not list."""

import hashlib
import json
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import cli.cases
import training.data.rows
from cli.app import app
from contract.bundle import MANIFEST, MODEL_CARD, REQUIRED_FILES, compute_sha256, load_bundle, seal_bundle
from contract.errors import ArtifactError, ConfigError, FingerprintError
from contract.labels import LABELS
from contract.tensors import GRAPHS
from export import pipeline
from export.hub import write_hub_folder

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

CARD = "---\nlicense: other\nlicense_link: LICENSE.md\n---\n# Model\n\n## Licence\n\nAsk first.\n\n## Methods\n\nX.\n"
BESIDE = {"README.md", "LICENSE.md", ".gitattributes"}


@pytest.fixture(scope="module")
def small(write_bundle, small_config, tmp_path_factory):
    """A bundle with random weights, a card with metadata and a plot in a folder."""
    path = tmp_path_factory.mktemp("hub") / "bundle"
    texts = ("The heart is enlarged.", "Lungs are clear.")
    write_bundle(path, small_config, seed=1, texts=texts, thresholds=[0.4] * len(LABELS))
    (path / MODEL_CARD).write_text(CARD)
    (path / "evaluation").mkdir()
    (path / "evaluation" / "roc.png").write_bytes(b"\x89PNG")
    seal_bundle(path, {"seed": 1})
    (path / "notes-of-mine.txt").write_text("not for others")  # not in the manifest
    return load_bundle(path)


def list_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def predict(bundle) -> list[np.ndarray]:
    import torch

    from training.model.model import load_model

    model = load_model(bundle).eval()
    size = bundle.config["sizes"]["S"]
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 1, size, size), dtype=np.uint8))
    ids = torch.arange(2, 34).repeat(2, 1)
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        out = model.fusion(model.image_encoder(pixels), model.text_encoder(ids, mask), mask)
    return [out.logits.numpy(), out.embedding.numpy()]


def write_repository(directory: Path, fingerprint: str, *, big: str = "") -> Path:
    """Write what the folder takes of a repository: one small graph per model, `big` with weights beside it."""
    for name in GRAPHS:
        version = directory / name / "1"
        version.mkdir(parents=True)
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        graph = onnx.helper.make_model(onnx.helper.make_graph([node], name, [value], [out]))
        onnx.helper.set_model_props(graph, {"fingerprint": fingerprint})
        onnx.save(graph, version / "model.onnx")
        if name == big:
            (version / f"{name}.onnx.data").write_bytes(b"weights")
    return directory


@contextmanager
def full_disk(limit_bytes: int):
    """Make the operating system refuse to write files beyond a size, as it does when a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_folder_holds_what_the_manifest_lists_and_what_the_hub_shows(small, tmp_path):
    written = write_hub_folder(small, tmp_path / "folder")
    expected = {*REQUIRED_FILES, MANIFEST, "evaluation/roc.png", *BESIDE}
    assert list_files(tmp_path / "folder") == expected == set(written.files)
    assert "notes-of-mine.txt" not in expected
    assert not any(path.is_symlink() for path in (tmp_path / "folder").rglob("*"))
    for name in (*REQUIRED_FILES, MANIFEST, "evaluation/roc.png"):
        assert (tmp_path / "folder" / name).read_bytes() == (small.path / name).read_bytes()
        assert written.files[name] == (small.path / name).stat().st_size
    assert (tmp_path / "folder" / "README.md").read_text() == CARD
    assert (tmp_path / "folder" / "LICENSE.md").read_text() == "# Licence\n\nAsk first.\n"
    attributes = (tmp_path / "folder" / ".gitattributes").read_text().splitlines()
    assert attributes[0] == "* -text", "git must not change line endings of what the manifest hashes"
    assert "*.safetensors filter=lfs diff=lfs merge=lfs -text" in attributes
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_folder_is_the_same_model(small, tmp_path):
    written = write_hub_folder(str(small.path), tmp_path / "folder")
    again = load_bundle(tmp_path / "folder")
    assert again.fingerprint == written.fingerprint == small.fingerprint
    assert (again.decisions, again.config, again.manifest) == (small.decisions, small.config, small.manifest)
    for before, after in zip(predict(small), predict(again), strict=True):
        assert np.array_equal(before, after)


def test_a_folder_of_a_folder_is_the_same(small, tmp_path):
    """What was downloaded can be written for the hub again."""
    first = write_hub_folder(small, tmp_path / "first")
    assert write_hub_folder(tmp_path / "first", tmp_path / "second").files == first.files


def link_as_cache(folder: Path, root: Path) -> Path:
    """Lay a folder out as the hub's cache does: files are blobs, a snapshot holds relative links to them."""
    repository = root / "models--owner--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / ("a" * 40)
    for name in list_files(folder):
        blob = repository / "blobs" / hashlib.sha1(name.encode()).hexdigest()
        shutil.copyfile(folder / name, blob)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        depth = len(link.parent.relative_to(repository).parts)
        link.symlink_to(Path(*[".."] * depth, "blobs", blob.name))
    return snapshot


def test_a_snapshot_of_links_in_the_cache_is_the_same_model(small, tmp_path):
    write_hub_folder(small, tmp_path / "folder")
    snapshot = link_as_cache(tmp_path / "folder", tmp_path / "cache")
    assert (snapshot / MANIFEST).is_symlink()
    again = load_bundle(snapshot)
    assert again.fingerprint == small.fingerprint
    for before, after in zip(predict(small), predict(again), strict=True):
        assert np.array_equal(before, after)
    write_hub_folder(snapshot, tmp_path / "copy")
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))


def test_graphs_go_along_with_their_weights(small, tmp_path):
    repository = write_repository(tmp_path / "repository", small.fingerprint, big="image_encoder")
    written = write_hub_folder(small, tmp_path / "folder", repository=repository)
    graphs = {name for name in written.files if name.startswith("onnx/")}
    assert graphs == {f"onnx/{name}.onnx" for name in GRAPHS} | {"onnx/image_encoder.onnx.data"}
    for name in GRAPHS:
        copy = compute_sha256(tmp_path / "folder" / "onnx" / f"{name}.onnx")
        assert copy == compute_sha256(repository / name / "1" / "model.onnx")
    assert load_bundle(tmp_path / "folder").fingerprint == small.fingerprint


def test_graphs_of_another_model_or_missing_ones_write_nothing(small, tmp_path):
    other = write_repository(tmp_path / "other", "f" * 64)
    with pytest.raises(FingerprintError, match=f"ffffffffffff.*{small.fingerprint[:12]}"):
        write_hub_folder(small, tmp_path / "folder", repository=other)
    with pytest.raises(ArtifactError, match="There is no graph"):
        write_hub_folder(small, tmp_path / "folder", repository=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
def test_what_exists_is_refused_and_kept(kind, small, tmp_path):
    out = tmp_path / "folder"
    if kind == "directory":
        out.mkdir()
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="exists already"):
        write_hub_folder(small, out)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert out.is_symlink() or out.is_file() or not any(out.iterdir())


def test_a_failure_half_way_leaves_nothing(small, tmp_path):
    with full_disk(20_000), pytest.raises(ArtifactError, match="Could not write"):
        write_hub_folder(small, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_a_bundle_that_changes_meanwhile_is_not_written(small, tmp_path):
    shutil.copytree(small.path, tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    with (tmp_path / "bundle" / "labels.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ArtifactError, match=r"labels\.json was changed"):
        write_hub_folder(bundle, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    "content", [b"---\nlicense: [\n---\n# X\n", b"---\n- a\n---\n", b"---\nx: \xff\n---\n"]
)
def test_a_card_that_the_hub_cannot_read_is_refused(content, small, tmp_path):
    shutil.copytree(small.path, tmp_path / "bundle")
    (tmp_path / "bundle" / MODEL_CARD).write_bytes(content)
    seal_bundle(tmp_path / "bundle", {})
    with pytest.raises(ArtifactError, match=r"The metadata of .*MODEL_CARD\.md cannot be read"):
        write_hub_folder(tmp_path / "bundle", tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_card_of_an_older_version_is_taken_as_it_is(small, tmp_path):
    shutil.copytree(small.path, tmp_path / "bundle")
    (tmp_path / "bundle" / MODEL_CARD).write_text("# Model\n")
    seal_bundle(tmp_path / "bundle", {})
    written = write_hub_folder(tmp_path / "bundle", tmp_path / "folder")
    assert (tmp_path / "folder" / "README.md").read_text() == "# Model\n"
    assert "LICENSE.md" not in written.files


def run(*arguments: object):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_command_writes_the_folder_alone(small, tmp_path):
    result = run(small.path, "--hub-folder", tmp_path / "folder")
    assert result.exit_code == 0, result.output
    assert f"hf upload OWNER/NAME {tmp_path / 'folder'}" in result.output
    assert load_bundle(tmp_path / "folder").fingerprint == small.fingerprint
    result = run(small.path, "--hub-folder", tmp_path / "second", "--json")
    told = json.loads(result.stdout)
    assert told["fingerprint"] == told["hub_folder"]["fingerprint"] == small.fingerprint
    assert set(told["hub_folder"]["files"]) == list_files(tmp_path / "second")
    assert "repository" not in told


def test_command_publishes_and_takes_the_graphs_along(small, tmp_path, monkeypatch):
    """The gate itself is tested elsewhere; here a stand-in publishes."""

    class Parity:
        def to_markdown(self) -> str:
            return "The graphs agree."

        def to_dict(self) -> dict:
            return {"passed": True}

    def publish(bundle, repository, cases, progress=None, *, target="cpu", **others):
        assert bundle == small  # verified by the command already, so its files are hashed once
        assert (cases, target) == (["a case"], "gpu")
        assert others["precision_cases"] == ["a test case"]
        write_repository(repository, small.fingerprint)
        return pipeline.ExportResult(repository, Parity(), {}, small.fingerprint)

    monkeypatch.setattr(pipeline, "export", publish)
    monkeypatch.setattr(training.data.rows, "read_rows", lambda table: [table])
    monkeypatch.setattr(cli.cases, "make_parity_cases", lambda rows, mode, size: ["a case"])
    monkeypatch.setattr(cli.cases, "make_precision_cases", lambda rows, ids, mode, size: ["a test case"])
    where = ("--table", "t.parquet", "--repository", tmp_path / "repository", "--target", "gpu")
    result = run(small.path, *where, "--hub-folder", tmp_path / "folder", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["repository"] == str(tmp_path / "repository")
    assert told["parity"] == {"passed": True}
    assert {f"onnx/{name}.onnx" for name in GRAPHS} <= set(told["hub_folder"]["files"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "Give --repository"),
        (("--table", "t"), "belong together"),
        (("--repository", "r", "--hub-folder", "f"), "belong together"),
        (("--hub-folder", "taken"), "exists already"),
        (("--table", "t", "--repository", "r", "--hub-folder", "taken"), "exists already"),
        (("--hub-folder", "f", "--target", "tpu"), "tpu"),
    ],
)
def test_command_refuses_before_the_work(options, words, tmp_path, monkeypatch):
    """The bundle is not even read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    result = run("missing-bundle", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_command_names_a_damaged_bundle(small, tmp_path):
    shutil.copytree(small.path, tmp_path / "bundle")
    (tmp_path / "bundle" / "tokenizer.json").unlink()
    result = run(tmp_path / "bundle", "--hub-folder", tmp_path / "folder")
    assert result.exit_code == 3
    assert "lacks tokenizer.json" in result.stderr
    assert not (tmp_path / "folder").exists()
