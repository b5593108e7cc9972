"""A new version takes over whole, the old one can be had back, and no interruption leaves a mixture."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from contract.decisions import Decisions
from contract.errors import ArtifactError, ConfigError
from contract.repository import MARKER, read_published, verify
from contract.tensors import GRAPHS, MODELS
from export.configs import Deployment
from export.publish import check_fits, publish
from export.versions import find_version, lock, rollback, settle, withdraw

ENSEMBLES = [name for name, spec in MODELS.items() if spec.backend == "ensemble"]
SHARED = [name for name in MODELS if name not in ENSEMBLES]


class Killed(BaseException):
    """The process is gone: nothing tidies up after it."""


@pytest.fixture(scope="module")
def models(bundle, tmp_path_factory):
    """Three bundles of one architecture, with graphs that hold a fingerprint and nothing else."""

    def make(number: int) -> tuple:
        fingerprint = f"{number:064x}"
        labels = tuple(replace(label, threshold=number / 10) for label in bundle.decisions.of("image"))
        decisions = Decisions.repeat(labels)
        return replace(bundle, fingerprint=fingerprint, decisions=decisions), write_graphs(fingerprint)

    def write_graphs(fingerprint: str) -> dict[str, Path]:
        root = tmp_path_factory.mktemp("graphs")
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        graph = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [value]))
        onnx.helper.set_model_props(graph, {"fingerprint": fingerprint})
        for name in GRAPHS:
            onnx.save(graph, root / f"{name}.onnx")
        return {name: root / f"{name}.onnx" for name in GRAPHS}

    return {number: make(number) for number in (1, 2, 3)}


@pytest.fixture
def repository(models, tmp_path):
    return publish(*models[1], tmp_path / "repository")


def read_config(repository: Path, name: str):
    text = (repository / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def read_tree(repository: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(repository).as_posix(): path.read_bytes() if path.is_file() else None
        for path in repository.rglob("*")
    }


def list_versions(repository: Path) -> set[tuple[str, ...]]:
    """The version directories that models have: one entry when all have the same."""
    return {
        tuple(sorted(path.name for path in (repository / name).iterdir() if path.is_dir())) for name in MODELS
    }


def check_whole(repository: Path) -> dict[str, int]:
    """Check that Triton could load it and that no ensemble mixes models; return the version of each ensemble."""
    found = {}
    for name in SHARED:
        for version in read_config(repository, name).version_policy.specific.versions:
            assert (repository / name / str(version) / "config.pbtxt").is_file()
    for name in ENSEMBLES:
        config = read_config(repository, name)
        (version,) = config.version_policy.specific.versions
        assert (repository / name / str(version)).is_dir()
        assert config.parameters["fingerprint"].string_value == f"{version:064x}"
        threshold = json.loads(config.parameters["decisions"].string_value)["text"][0]["threshold"]
        assert threshold == version / 10
        for step in config.ensemble_scheduling.step:
            assert step.model_version == version
            own = repository / step.model_name / str(version) / "fingerprint"
            assert own.read_text() == f"{version:064x}\n"
            assert version in read_config(repository, step.model_name).version_policy.specific.versions
        found[name] = version
    return found


def test_second_publish_adds_a_version_beside_the_first(repository, models):
    first, before = read_tree(repository), {name: read_config(repository, name) for name in SHARED}
    assert publish(*models[2], repository) == repository
    assert list_versions(repository) == {("1", "2")}
    assert {name: value for name, value in read_tree(repository).items() if "/1" in name} == {
        name: value for name, value in first.items() if "/1" in name
    }
    assert set(check_whole(repository).values()) == {2}
    for name in SHARED:  # else Triton would load the first version again
        config = read_config(repository, name)
        assert list(config.version_policy.specific.versions) == [1, 2]
        config.version_policy.CopyFrom(before[name].version_policy)
        assert config == before[name]
    state = read_published(repository)
    assert (state.version, state.fingerprint, state.previous) == (2, f"{2:064x}", 1)
    assert find_version(repository) == 2
    assert {path.name for path in repository.iterdir()} == {*MODELS, MARKER}


def test_two_versions_are_kept(repository, models):
    publish(*models[2], repository)
    publish(*models[3], repository)
    assert list_versions(repository) == {("2", "3")}
    assert set(check_whole(repository).values()) == {3}


def test_what_answers_is_kept_when_a_version_follows_a_rollback(repository, models):
    publish(*models[2], repository)
    rollback(repository)
    publish(*models[3], repository)
    assert list_versions(repository) == {("1", "3")}
    assert set(check_whole(repository).values()) == {3}
    assert rollback(repository).version == 1
    assert set(check_whole(repository).values()) == {1}


def test_rollback_and_back(repository, models):
    publish(*models[2], repository)
    before = read_tree(repository)
    state = rollback(repository)
    assert (state.version, state.fingerprint) == (1, f"{1:064x}")
    assert set(check_whole(repository).values()) == {1}
    marker = json.loads((repository / MARKER).read_text())
    assert (marker["version"], marker["fingerprint"]) == (1, f"{1:064x}")
    changed = {name for name, value in read_tree(repository).items() if before[name] != value}
    assert changed == {MARKER, *(f"{name}/config.pbtxt" for name in ENSEMBLES)}  # no graph is loaded again
    rolled_back = read_tree(repository)
    assert rollback(repository) == state  # repeated, it changes nothing
    assert rollback(repository, to=1) == state
    assert read_tree(repository) == rolled_back
    rollback(repository, to=2)
    assert read_tree(repository) == before
    with pytest.raises(ConfigError, match=r"no version 3\. It holds 1, 2"):
        rollback(repository, to=3)


def test_rollback_needs_another_version(repository, tmp_path):
    with pytest.raises(ConfigError, match="holds only version 1"):
        rollback(repository)
    with pytest.raises(ArtifactError, match="was not published"):
        rollback(tmp_path)
    with pytest.raises(ArtifactError, match="was not published"):
        settle(tmp_path / "nowhere")


def test_withdrawn_version_is_gone(repository, models):
    before = read_tree(repository)
    publish(*models[2], repository)
    assert withdraw(repository, 2).version == 1
    assert read_tree(repository) == before
    with pytest.raises(ConfigError, match="no version 1 beside"):
        withdraw(repository, 1)


def change(bundle, **sizes):
    return replace(bundle, config={**bundle.config, "sizes": {**bundle.config["sizes"], **sizes}})


def test_other_categories_are_refused(repository, models, monkeypatch):
    before, (bundle, graphs) = read_tree(repository), models[2]
    monkeypatch.setattr("export.publish.LABEL_KEYS", ("normal",))
    with pytest.raises(
        ConfigError, match=r"its models have labels .* this model has labels \['normal'\].*--replace"
    ):
        publish(bundle, graphs, repository)
    assert read_tree(repository) == before


@pytest.mark.parametrize(
    ("spoil", "deployment", "words"),
    [
        (lambda x: change(x, D=64), Deployment(), r"its models have sizes .*'D': 128.*'D': 64"),
        (
            lambda x: replace(x, config={**x.config, "text_mode": "all"}),
            Deployment(),
            "its preprocess_text and that of this model differ in parameters",
        ),
        (lambda x: x, Deployment("gpu"), "its models have target cpu, but this model has target gpu"),
        (
            lambda x: x,
            Deployment(
                optimization={
                    "execution_accelerators": {"cpu_execution_accelerator": [{"name": "openvino"}]},
                }
            ),
            "its image_encoder and that of this model differ in optimization",
        ),
    ],
)
def test_models_that_cannot_share_a_config_are_refused(
    spoil, deployment, words, repository, models, tmp_path
):
    before, (bundle, graphs) = read_tree(repository), models[2]
    with pytest.raises(ConfigError, match=rf"{words}.*new directory.*--replace"):
        publish(spoil(bundle), graphs, repository, deployment)
    with pytest.raises(ConfigError, match=words):
        check_fits(spoil(bundle), repository, deployment)
    assert read_tree(repository) == before
    check_fits(spoil(bundle), tmp_path / "new", deployment)


def test_variant_may_change(repository, models):
    publish(*models[2], repository, Deployment(variant="throughput"))
    assert read_config(repository, "image_encoder").dynamic_batching.max_queue_delay_microseconds > 1000


def count_renames(monkeypatch, repository, models) -> int:
    """How many renames a publish consists of."""
    copy, seen = repository.with_name("copy"), []
    shutil.copytree(repository, copy)
    with monkeypatch.context() as patch:
        for name in ("rename", "replace"):
            real = getattr(Path, name)
            patch.setattr(Path, name, lambda self, to, real=real: (seen.append(to), real(self, to))[1])
        publish(*models[2], copy)
    shutil.rmtree(copy)
    assert len(seen) == 2 * len(MODELS) + 1  # directories, configs, marker
    return len(seen)


def choose_renames(count: int) -> list[int]:
    """Some while directories and shared configs come, every one from the first ensemble's to the marker's."""
    return [0, len(MODELS) - 1, len(MODELS), *range(count - len(ENSEMBLES) - 2, count)]


def break_rename(patch, at: int, error: BaseException, *, ends: bool) -> None:
    """Let one rename fail; where the process `ends` there, whatever it does to the disk afterwards fails too."""
    count, dead = [0], [False]

    def wrap(real, *, counts):
        def call(*arguments, **options):
            count[0] += counts
            if (counts and count[0] == at + 1) or dead[0]:
                dead[0] = ends
                raise error
            return real(*arguments, **options)

        return call

    for name, counts in (("rename", True), ("replace", True), ("unlink", False), ("mkdir", False)):
        patch.setattr(Path, name, wrap(getattr(Path, name), counts=counts))
    patch.setattr(shutil, "rmtree", wrap(shutil.rmtree, counts=False))


def test_a_failure_at_any_rename_leaves_all_as_it_was(repository, models, monkeypatch):
    before = read_tree(repository)
    for at in choose_renames(count_renames(monkeypatch, repository, models)):
        with monkeypatch.context() as patch:
            break_rename(patch, at, OSError(5, "Input/output error"), ends=False)
            with pytest.raises(ArtifactError, match=r"Input/output error\. It is unchanged"):
                publish(*models[2], repository)
        assert read_tree(repository) == before, at
    publish(*models[2], repository)
    assert set(check_whole(repository).values()) == {2}


def test_an_interrupt_at_any_rename_leaves_all_as_it_was(repository, models, monkeypatch):
    before = read_tree(repository)
    for at in choose_renames(count_renames(monkeypatch, repository, models)):
        with monkeypatch.context() as patch:
            break_rename(patch, at, KeyboardInterrupt(), ends=False)
            with pytest.raises(KeyboardInterrupt):
                publish(*models[2], repository)
        assert read_tree(repository) == before, at


def test_a_kill_at_any_rename_leaves_what_can_be_served_and_settled(
    repository, models, monkeypatch, tmp_path
):
    before, seen = read_tree(repository), set()
    for at in choose_renames(count_renames(monkeypatch, repository, models)):
        work = tmp_path / f"killed-{at}"
        shutil.copytree(repository, work)
        with monkeypatch.context() as patch:
            break_rename(patch, at, Killed(), ends=True)
            with pytest.raises(Killed):
                publish(*models[2], work)
        seen |= set(check_whole(work).values())
        settle(work)
        verify(work)
        assert read_tree(work) == before, at
        shutil.rmtree(work)
    assert seen == {1, 2}  # it was tried before and after the switch


def test_rollback_survives_a_failure_at_any_rename(repository, models, monkeypatch):
    publish(*models[2], repository)
    before = read_tree(repository)
    for at in range(len(ENSEMBLES) + 1):
        with monkeypatch.context() as patch:
            break_rename(patch, at, OSError(28, "No space left on device"), ends=False)
            with pytest.raises(ArtifactError, match="No space left"):
                rollback(repository)
        assert read_tree(repository) == before, at


def test_settled_repository_is_not_written(repository, models):
    """It may lie on a disk that can only be read."""
    publish(*models[2], repository)

    def look() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in repository.rglob("*")}

    before = look()
    settle(repository)
    assert look() == before


def test_two_cannot_publish_at_once(repository, models):
    with lock(repository), pytest.raises(ConfigError, match="Another process is publishing"):
        publish(*models[2], repository)
    assert list_versions(repository) == {("1",)}


def test_repository_of_an_older_version_says_what_to_do(repository, models):
    marker = {"fingerprint": f"{1:064x}", "target": "cpu", "sizes": {}, "files": {}}
    (repository / MARKER).write_text(json.dumps(marker))
    settle(repository)  # served as it is
    assert find_version(repository) == 1
    with pytest.raises(ArtifactError, match=r"older version of cxr.*--replace"):
        publish(*models[2], repository)
    publish(*models[2], repository, replace=True)
    assert read_published(repository).fingerprint == f"{2:064x}"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"versions": 3}', '{"versions": {"1": {}}, "version": 2}', '{"versions": {"a": {}}}'],
)
def test_damaged_marker_is_named(content, repository):
    (repository / MARKER).write_text(content)
    with pytest.raises(ArtifactError, match=r"published\.json"):
        read_published(repository)


def test_version_without_its_config_is_named(repository, models):
    publish(*models[2], repository)
    (repository / "predict_text" / "1" / "config.pbtxt").unlink()
    before = read_tree(repository)
    with pytest.raises(ArtifactError, match=r"predict_text/1/config\.pbtxt is missing"):
        rollback(repository)
    assert read_tree(repository) == before
