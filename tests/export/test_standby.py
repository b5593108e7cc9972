"""A version waits beside the one that answers until it is promoted; the one that is no longer wanted is retired."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from contract.errors import ArtifactError, ConfigError, DeadlineError
from contract.repository import MARKER, read_published, verify
from contract.runtime.embedded import needs_embedded
from contract.tensors import GRAPHS, MODELS
from contract.training_data import WAYS
from export.configs import Deployment
from export.gates.server import STORED, StoredAnswers
from export.profiles import load_profile
from export.publish import publish
from export.targets import make_optimization
from export.versions import lock, promote, retire, rollback, withdraw

ENSEMBLES = [name for name, spec in MODELS.items() if spec.backend == "ensemble"]
GATE = {"runtime": "Triton 2.51.0, embedded onnxruntime", "provider": "CPU", "precision": "fp32", "cases": 64}


@pytest.fixture(scope="module")
def models(bundle, tmp_path_factory):
    """Four bundles of one architecture, with graphs that hold a fingerprint and nothing else."""
    made = {}
    for number in (1, 2, 3, 4):
        root, fingerprint = tmp_path_factory.mktemp("graphs"), f"{number:064x}"
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        graph = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [value]))
        onnx.helper.set_model_props(graph, {"fingerprint": fingerprint})
        for name in GRAPHS:
            onnx.save(graph, root / f"{name}.onnx")
        made[number] = (
            replace(bundle, fingerprint=fingerprint),
            {name: root / f"{name}.onnx" for name in GRAPHS},
        )
    return made


@pytest.fixture
def repository(models, tmp_path):
    return publish(*models[1], tmp_path / "repository")


def read_config(repository, name):
    text = (repository / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def read_versions(repository) -> tuple[set, set]:
    """The versions that ensembles answer with, and those that graphs and preprocessing serve."""
    policies = {
        name: tuple(read_config(repository, name).version_policy.specific.versions) for name in MODELS
    }
    return (
        {policies[name] for name in ENSEMBLES},
        {policies[name] for name in MODELS if name not in ENSEMBLES},
    )


def read_tree(repository) -> dict:
    return {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}


def test_a_version_that_waits_is_loaded_and_does_not_answer(repository, models):
    publish(*models[2], repository, standby=True)
    assert read_versions(repository) == ({(1,)}, {(1, 2)})
    state = verify(repository)
    assert (state.version, state.newest, state.fingerprint) == (1, 2, f"{1:064x}")
    promote(repository, 2, GATE)
    assert read_versions(repository) == ({(2,)}, {(1, 2)})
    state = verify(repository)
    assert state.version == 2
    assert state.versions[2]["gates"]["server"] == GATE
    assert "gates" not in json.loads((repository / MARKER).read_text())  # a version's own


def test_the_first_version_answers_in_any_case(models, tmp_path):
    assert read_published(publish(*models[1], tmp_path / "new", standby=True)).version == 1


def test_a_version_that_waits_for_nothing_makes_room_for_the_next(repository, models):
    publish(*models[2], repository, standby=True)
    publish(*models[3], repository, standby=True)
    assert sorted(read_published(repository).versions) == [1, 3]
    assert not (repository / "text_encoder" / "2").exists()
    assert withdraw(repository, 3).version == 1
    assert read_versions(repository) == ({(1,)}, {(1,)})


def test_only_a_version_that_is_there_is_promoted(repository, models):
    with pytest.raises(ConfigError, match="has no version 2"):
        promote(repository, 2)
    with lock(repository), pytest.raises(ConfigError, match="Another process"):
        promote(repository, 1)


def test_a_full_disk_at_the_promotion_leaves_all_as_it_was(repository, models, monkeypatch):
    publish(*models[2], repository, standby=True)
    before = read_tree(repository)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("export.versions._write_synced", fail)
    with pytest.raises(ArtifactError, match="No space left"):
        promote(repository, 2, GATE)
    assert read_tree(repository) == before


def test_what_the_gates_ran_on_and_what_they_were_answered_travels_with_a_version(models, bundle, tmp_path):
    rows = np.arange(60, dtype=np.float32).reshape(2, 30)
    stored = StoredAnswers("fp32", load_profile("fp32").limits, dict.fromkeys(WAYS, rows))
    repository = publish(*models[1], tmp_path / "r", gates={"parity": GATE}, stored=stored)
    assert read_published(repository).versions[1]["gates"] == {"parity": GATE}
    publish(*models[2], repository)  # the configs of one version are its own
    for name in ENSEMBLES:
        for version, holds in ((1, name.endswith("_tensors")), (2, False)):
            path = repository / name / str(version) / "config.pbtxt"
            config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
            assert (STORED in config.parameters) is holds
    rollback(repository)
    given = {
        kind: read_config(repository, f"predict_{kind}_tensors").parameters[STORED].string_value
        for kind in WAYS
    }
    read = StoredAnswers.read(given, source="r")
    assert all((read.answers[kind] == rows).all() for kind in WAYS)


def test_the_version_that_does_not_answer_is_retired(repository, models):
    publish(*models[2], repository)
    seen = []

    def look():
        seen.append((read_versions(repository), (repository / "text_encoder" / "1" / "model.onnx").is_file()))

    state, gone = retire(repository, tell=look)
    assert (state.version, sorted(state.versions), gone) == (2, [2], 1)
    assert seen == [(({(2,)}, {(2,)}), True)]  # a server unloads it before its files go
    assert not list(repository.glob("*/1"))
    verify(repository)
    publish(*models[3], repository)
    assert sorted(read_published(repository).versions) == [2, 3]
    assert retire(repository, 2)[1] == 2


def test_a_version_that_waits_can_be_retired(repository, models):
    publish(*models[2], repository, standby=True)
    assert retire(repository)[0].version == 1
    assert read_versions(repository) == ({(1,)}, {(1,)})


@pytest.mark.parametrize(
    ("version", "words"), [(2, "Version 2 is the current version"), (7, r"has no version 7\. It holds 1, 2")]
)
def test_what_answers_is_never_retired(version, words, repository, models):
    publish(*models[2], repository)
    before = read_tree(repository)
    with pytest.raises(ConfigError, match=words):
        retire(repository, version)
    assert read_tree(repository) == before


def test_there_must_be_another_version_to_retire(repository):
    with pytest.raises(ConfigError, match=r"holds only version 1\. The current version cannot"):
        retire(repository)


@pytest.mark.parametrize("error", [DeadlineError, KeyboardInterrupt])
def test_a_server_that_does_not_unload_keeps_the_version(error, repository, models):
    publish(*models[2], repository)
    before = read_tree(repository)

    def fail():
        raise error("No.")

    with pytest.raises(error):
        retire(repository, tell=fail)
    assert read_tree(repository) == before


@pytest.mark.parametrize("profile", ["fp32", "int8", "bf16"])
def test_a_profile_of_the_embedded_backend_alone_says_so_to_clients(profile, models, tmp_path):
    optimization = make_optimization("cpu", load_profile(profile))
    deployment = Deployment(profile=profile, optimization=optimization)
    repository = publish(*models[1], tmp_path / "r", deployment)
    special = profile != "fp32"
    assert needs_embedded({"backend": "onnxruntime", "optimization": optimization}) is special
    assert needs_embedded({"backend": "openvino", "optimization": optimization}) is False
    for name in ENSEMBLES:
        parameters = read_config(repository, name).parameters
        assert parameters["profile"].string_value == profile
        assert ("required_backend" in parameters) is special
