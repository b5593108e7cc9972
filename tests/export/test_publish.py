"""The repository is complete, stamped, replaced in one step, and never half there."""

import json
import resource
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from contract.bundle import METRICS, amend_bundle, compute_sha256, load_bundle, write_json
from contract.decisions import Decisions
from contract.errors import ArtifactError, ConfigError, FingerprintError, ParityError
from contract.labels import LABEL_KEYS
from contract.report.tokens import TokenLimits
from contract.repository import MARKER, read_published
from contract.tensors import FUSED, GRAPHS, INPUT_IDS, LAYOUTS, MODELS, REPORT
from export import pipeline
from export.configs import TEMPLATES, Deployment, fill_config, read_token_limits
from export.gates import parity
from export.graphs.checks import read_sizes
from export.publish import publish


def read_config(repository: Path, name: str):
    text = (repository / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@contextmanager
def full_disk(limit_bytes: int):
    """Make the operating system refuse to write files beyond a size, as it does when a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def repository(bundle, graphs, tmp_path):
    return publish(bundle, graphs, tmp_path / "repository")


def test_repository_is_complete(repository, bundle, graphs):
    assert sorted(path.name for path in repository.iterdir() if path.is_dir()) == sorted(MODELS)
    for name, spec in MODELS.items():
        files = {path.name for path in (repository / name / "1").iterdir()}
        assert {"config.pbtxt", "fingerprint"} <= files
        files -= {"config.pbtxt", "fingerprint"}
        reads_ids = INPUT_IDS in spec.inputs and spec.backend != "ensemble" and name != "text_gate"
        assert ("token_limits.json" in files) is reads_ids
        files -= {"token_limits.json"}
        if spec.backend == "onnxruntime":
            assert files == {"model.onnx"}
            assert compute_sha256(repository / name / "1" / "model.onnx") == compute_sha256(graphs[name])
        elif spec.backend == "ensemble":
            assert not files
        else:
            reads_reports = REPORT in spec.inputs
            assert files == {"model.py"} | ({"tokenizer.json"} if reads_reports else set())
            code = TEMPLATES / "model.py"
            assert (repository / name / "1" / "model.py").read_bytes() == code.read_bytes()
    for name in ("preprocess_text", "preprocess_study"):
        tokenizer = repository / name / "1" / "tokenizer.json"
        assert tokenizer.read_bytes() == bundle.tokenizer_path.read_bytes()
    limits = TokenLimits.read(repository / "text_encoder" / "1")
    assert limits == TokenLimits(bundle.config["model"]["vocabulary_size"], bundle.config["max_length"])
    assert repository.stat().st_mode & 0o777 == 0o755


def test_marker_lists_every_file_of_a_version(repository, bundle):
    marker = json.loads((repository / MARKER).read_text())
    assert (marker["fingerprint"], marker["version"]) == (bundle.fingerprint, 1)
    assert (marker["target"], marker["variant"], marker["profile"]) == ("cpu", "latency", "fp32")
    version = marker["versions"]["1"]
    assert version["created"].endswith("+00:00")
    files = {p.relative_to(repository).as_posix() for p in repository.glob("*/1/**/*") if p.is_file()}
    assert set(version["files"]) == files
    assert all(compute_sha256(repository / name) == value for name, value in version["files"].items())


@pytest.mark.parametrize("name", MODELS)
def test_sizes_and_fingerprint_are_stamped(name, repository, bundle):
    config, spec, sizes = read_config(repository, name), MODELS[name], read_sizes(bundle)
    for entries, tensors in ((config.input, spec.inputs), (config.output, spec.outputs)):
        assert [tuple(entry.dims) for entry in entries] == [tensor.dims(sizes) for tensor in tensors]
        for entry, tensor in zip(entries, tensors, strict=True):
            assert (-1 in entry.dims) == bool({"L", "V", "I"} & set(tensor.shape))
    assert (repository / name / "1" / "fingerprint").read_text() == f"{bundle.fingerprint}\n"
    if spec.backend == "ensemble":
        assert config.parameters["fingerprint"].string_value == bundle.fingerprint
    else:  # its versions share this config
        assert "fingerprint" not in config.parameters
    assert list(config.version_policy.specific.versions) == [1]
    assert all(step.model_version == 1 for step in config.ensemble_scheduling.step)


@pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if spec.backend == "ensemble"])
def test_ensembles_tell_a_client_how_to_read_the_answers(name, repository, bundle):
    parameters = {key: x.string_value for key, x in read_config(repository, name).parameters.items()}
    decisions = json.loads(parameters.pop("decisions"))
    assert list(decisions) == ["study", "image", "text"]
    assert [label["key"] for label in decisions["image"]] == list(LABEL_KEYS)
    assert parameters.pop("repository_id") == read_published(repository).details["repository_id"]
    for way, labels in decisions.items():
        served = bundle.decisions.of(way)
        assert [label["threshold"] for label in labels] == [label.threshold for label in served]
        assert set(labels[0]) == {"key", "name", "threshold"}
    assert parameters == {
        "fingerprint": bundle.fingerprint,
        "text_mode": "findings",
        "trained_views": "1",
        "most_views": "4",
        "max_length": "256",
        "vocabulary_size": str(bundle.config["model"]["vocabulary_size"]),
        "image_size": "112",
        "embedding_size": "150",
        "embedding_labels": "22",
        "image_tokens_grid": "7",
        "trained_on": "unknown",  # the manifest of this bundle names no collection
        "trained_ways": "study,image,text",
        "profile": "fp32",
        "image_reading": "2",
    }


@pytest.mark.parametrize("recorded", ["phantom", "openi", "Our hospital, 2024"])
def test_what_a_model_was_trained_on_travels_with_it(bundle, recorded):
    named = replace(bundle, manifest={**bundle.manifest, "data_source": recorded})
    for spec in MODELS.values():
        parameters = fill_config(named, spec).parameters
        if spec.backend == "ensemble":
            assert parameters["trained_on"].string_value == recorded
        else:  # shared by versions, which may be trained on different collections
            assert "trained_on" not in parameters


def test_labels_that_were_not_measured_travel_with_it(bundle, tmp_path):
    copied = load_bundle(shutil.copytree(bundle.path, tmp_path / "bundle"))
    with amend_bundle(copied, changed=(METRICS,)) as scratch:
        labels = {key: {} for key in LABEL_KEYS if key not in {"air_leak", "malignancy"}}
        write_json(scratch / METRICS, {"test": {"text": {"labels": labels}}})
    parameters = fill_config(load_bundle(copied.path), MODELS["predict_text"]).parameters
    assert parameters["unmeasured"].string_value == "malignancy,air_leak"


def test_labels_that_were_held_out_travel_with_it(bundle):
    data = {"held_out": ["pleural", "cardiac"]}
    held = replace(bundle, config={**bundle.config, "training": {"data": data}})
    parameters = fill_config(held, MODELS["predict_text"]).parameters
    assert parameters["held_out"].string_value == "cardiac,pleural"
    assert "held_out" not in fill_config(bundle, MODELS["predict_text"]).parameters


def test_what_a_label_states_travels_with_it(bundle):
    stated = {
        "uncertain_low": 0.1,
        "uncertain_high": 0.9,
        "stated_missed": 0.1,
        "include": 0.05,
        "stated_recall": 0.9,
    }
    plain = bundle.decisions.of("image")
    decisions = Decisions({"image": (replace(plain[0], **stated), *plain[1:]), "study": plain})
    config = fill_config(replace(bundle, decisions=decisions), MODELS["predict_text"])
    said = json.loads(config.parameters["decisions"].string_value)
    assert list(said) == ["study", "image"]
    first, second = said["image"][:2]
    assert {name: first[name] for name in stated} == stated
    assert set(second) == set(said["study"][0]) == {"key", "name", "threshold"}


def test_preprocessing_gets_its_settings(repository):
    image, text = {"image_size": "112"}, {"text_mode": "findings", "max_length": "256"}
    for name, expected in {
        "preprocess_image": image,
        "preprocess_text": text,
        "preprocess_study": image | text,
        "check_study": {},
        "check_text": {},
        "text_gate": {},
    }.items():
        parameters = read_config(repository, name).parameters
        assert {key: value.string_value for key, value in parameters.items()} == expected


@pytest.mark.parametrize(
    ("target", "kind"), [("cpu", "KIND_CPU"), ("gpu", "KIND_GPU"), ("tensorrt", "KIND_GPU")]
)
def test_target_moves_only_the_graphs(target, kind, bundle, graphs, tmp_path):
    repository = publish(bundle, graphs, tmp_path / "r", Deployment(target))
    kinds = model_config_pb2.ModelInstanceGroup.Kind
    for name, spec in MODELS.items():
        groups = [kinds.Name(group.kind) for group in read_config(repository, name).instance_group]
        assert groups == {"ensemble": [], "python": ["KIND_CPU"], "onnxruntime": [kind]}[spec.backend]


@pytest.mark.parametrize(
    ("deployment", "words"),
    [
        (Deployment("tpu"), "cpu, gpu or tensorrt, not tpu"),
        (Deployment(variant="speed"), "latency or throughput, not speed"),
        (Deployment(layout="whole"), "split or fused, not whole"),
        (Deployment(optimization={"execution_accelerator": []}), "does not know this optimization"),
    ],
)
def test_unknown_settings_are_refused(deployment, words, bundle, graphs, tmp_path):
    with pytest.raises(ConfigError, match=words):
        publish(bundle, graphs, tmp_path / "r", deployment)
    assert list(tmp_path.iterdir()) == []


def test_replaced_whole_when_asked(repository, bundle, graphs):
    publish(bundle, graphs, repository)
    (repository / "image_encoder" / "1" / "model.onnx").write_bytes(b"old")
    publish(bundle, graphs, repository, replace=True)
    assert (repository / "image_encoder" / "1" / "model.onnx").stat().st_size > 1000
    assert list(read_published(repository).versions) == [1]
    assert not (repository / "image_encoder" / "2").exists()
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]


def test_fused_graphs_take_the_place_of_the_others(bundle, graphs, tmp_path):
    from export.graphs.fuse import fuse_graphs

    fused = fuse_graphs(graphs, tmp_path / "fused")
    repository = publish(bundle, fused, tmp_path / "repository", Deployment(layout="fused"))
    assert sorted(path.name for path in repository.iterdir() if path.is_dir()) == sorted(LAYOUTS["fused"])
    for name in FUSED:
        assert compute_sha256(repository / name / "1" / "model.onnx") == compute_sha256(fused[name])
    steps = read_config(repository, "predict_study").ensemble_scheduling.step
    assert {step.model_name for step in steps} == {"preprocess_study", "fused_study"}
    with pytest.raises(
        ConfigError, match=r"its models have layout fused, but this model has layout split.*--replace"
    ):
        publish(bundle, graphs, repository)


def test_graphs_of_a_backend_that_checks_token_ids_have_no_check_before_them(bundle, graphs, tmp_path):
    from export.graphs.fuse import fuse_graphs

    fused = fuse_graphs(graphs, tmp_path / "fused")
    openvino = {"execution_accelerators": {"cpu_execution_accelerator": [{"name": "openvino"}]}}
    deployment = Deployment(layout="fused", optimization=openvino)
    repository = publish(bundle, fused, tmp_path / "repository", deployment)
    assert not list(repository.glob("check_*"))
    (step,) = read_config(repository, "predict_study_tensors").ensemble_scheduling.step
    assert (step.model_name, step.model_version) == ("fused_study", 1)
    assert dict(step.input_map) == {x: x for x in ("pixels", "input_ids", "attention_mask")}
    for name in ("fused_study", "fused_text"):  # what it checks them by
        assert TokenLimits.read(repository / name / "1") == read_token_limits(bundle)


def test_empty_directory_is_filled(bundle, graphs, tmp_path):
    (tmp_path / "empty").mkdir()
    assert (publish(bundle, graphs, tmp_path / "empty") / MARKER).is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_anything_else_is_left_alone(bundle, graphs, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    for name in ("thesis", "file", "link"):
        with pytest.raises(ConfigError, match=name):
            publish(bundle, graphs, tmp_path / name)
    with pytest.raises(ConfigError, match="was not published"):
        publish(bundle, graphs, TEMPLATES)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "thesis"]


def test_graph_of_another_bundle_is_refused(repository, other_bundle, graphs, tmp_path):
    with pytest.raises(FingerprintError, match=other_bundle.fingerprint[:12]):
        publish(other_bundle, graphs, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_missing_graph_is_named(bundle, graphs, tmp_path):
    with pytest.raises(ArtifactError, match="fusion_text"):
        publish(bundle, {name: graphs[name] for name in GRAPHS[:-1]}, tmp_path / "r")


def test_weights_beside_a_graph_come_along(bundle, graphs, tmp_path):
    copies = {name: Path(shutil.copy(path, tmp_path)) for name, path in graphs.items()}
    (tmp_path / "image_encoder.onnx.data").write_bytes(b"weights")
    repository = publish(bundle, copies, tmp_path / "repository")
    assert (repository / "image_encoder" / "1" / "image_encoder.onnx.data").read_bytes() == b"weights"


def test_full_disk_leaves_nothing(bundle, graphs, tmp_path):
    with full_disk(1_000_000), pytest.raises(ArtifactError, match="Could not write"):
        publish(bundle, graphs, tmp_path / "repository")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_keeps_the_older_repository(repository, bundle, graphs):
    before = (repository / MARKER).read_text()
    with full_disk(1_000_000), pytest.raises(ArtifactError, match="Could not write"):
        publish(bundle, graphs, repository, replace=True)
    assert (repository / MARKER).read_text() == before
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]


def test_failed_swap_puts_the_older_repository_back(repository, bundle, graphs, monkeypatch):
    before, rename = (repository / MARKER).read_text(), Path.rename

    def refuse(self, target):
        if Path(target) == repository and not self.name.endswith("-old"):
            raise OSError(16, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ArtifactError, match=r"Could not replace .* busy"):
        publish(bundle, graphs, repository, Deployment("gpu"), replace=True)
    assert (repository / MARKER).read_text() == before
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]


@pytest.mark.parametrize("change", [{"text_mode": None}, {"max_length": None}])
def test_bundle_without_a_setting_is_refused(change, bundle, graphs, tmp_path):
    with pytest.raises(ConfigError, match=next(iter(change))):
        publish(replace(bundle, config={**bundle.config, **change}), graphs, tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exports", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_export_goes_the_whole_way_and_leaves_no_scratch(
    exports, bundle, graphs, cases, tmp_path, monkeypatch
):
    def copy_graphs(_bundle, out, progress):
        """Stand for the exporter, which takes a minute."""
        progress(0, 1)
        out.mkdir(exist_ok=True)
        return {name: Path(shutil.copy(path, out)) for name, path in graphs.items()}

    if not exports:
        monkeypatch.setattr("export.graphs.from_torch.export_graphs", copy_graphs)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(pipeline.tempfile, "tempdir", str(tmp_path / "tmp"))
    seen = []
    result = pipeline.export(
        bundle.path, tmp_path / "repository", cases, lambda done, total: seen.append((done, total))
    )
    assert result.repository == tmp_path / "repository"
    assert result.parity.passed
    assert result.version == 1
    assert result.fingerprint == bundle.fingerprint
    assert set(result.graph_bytes) == set(GRAPHS)
    assert min(result.graph_bytes.values()) > 100_000
    assert json.loads(json.dumps(result.to_dict()))["parity"]["passed"] is True
    assert seen == sorted(seen)
    assert seen[-1] == (100, 100)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_failed_gate_publishes_nothing(bundle, graphs, cases, repository, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(pipeline.tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(
        "export.graphs.from_torch.export_graphs", lambda *_: graphs
    )  # spares the time, changes nothing
    monkeypatch.setitem(parity.TOLERANCES, "probabilities", -1.0)
    before = (repository / MARKER).read_text()
    for target in (repository, tmp_path / "new"):
        with pytest.raises(ParityError, match="probabilities"):
            pipeline.export(bundle.path, target, cases[:1])
    assert (repository / MARKER).read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repository", "tmp"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_wrong_place_is_refused_before_the_work(bundle, cases, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr("export.graphs.from_torch.export_graphs", lambda *_: pytest.fail("it began to work"))
    with pytest.raises(ConfigError, match="was not published"):
        pipeline.export(bundle.path, tmp_path, cases)


def test_missing_extra_names_its_install_command(bundle, cases, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'cxr-serving\[export\]'"):
        pipeline.export(bundle.path, tmp_path / "r", cases)
