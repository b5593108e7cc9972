"""A published repository answered in this process."""

import io
import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest

from contract.errors import ArtifactError, ConfigError, FingerprintError, ImageError, TensorError
from contract.labels import LABELS
from contract.steps import pack
from contract.tensors import ADDED_OUTPUTS, MODELS
from serving.inprocess import InProcess, read_config

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("tritonclient.grpc")
REPORTS = [b"FINDINGS: The heart is enlarged. There is a left effusion.", b"The lungs are clear."]


@pytest.fixture(scope="module")
def repository(make_model, tmp_path_factory) -> Path:
    """The smallest model that has every part, published."""
    from export.publish import publish

    return publish(*make_model(1), tmp_path_factory.mktemp("inprocess") / "repository")


@pytest.fixture
def own_copy(repository, tmp_path) -> Path:
    return Path(shutil.copytree(repository, tmp_path / "repository"))


@pytest.fixture(scope="module")
def model(repository):
    return InProcess(repository)


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    image_module = pytest.importorskip("PIL.Image")
    found = []
    for seed, shape in enumerate([(90, 70), (64, 128)]):
        file = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        image_module.fromarray(pixels).save(file, format="PNG")
        found.append(file.getvalue())
    return found


def make_inputs(name: str, files, batch: int = 2):
    values = {
        "image_bytes": pack(files[:batch]),
        "report": pack(REPORTS[:batch]),
        "pixels": np.random.default_rng(3).integers(0, 256, (batch, 1, 56, 56), dtype=np.uint8),
        "input_ids": np.random.default_rng(4).integers(5, 100, (batch, 32)),
        "attention_mask": np.ones((batch, 32), np.int64),
    }
    return {tensor.name: values[tensor.name] for tensor in MODELS[name].inputs}


def break_config(repository: Path, name: str, old: str, new: str) -> None:
    path = repository / name / "config.pbtxt"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("predict_")])
def test_every_ensemble_answers_what_the_table_says(model, files, name):
    answer = model.run(name, make_inputs(name, files))
    assert list(answer) == [tensor.name for tensor in MODELS[name].outputs]
    for tensor in MODELS[name].outputs:
        tensor.check(answer[tensor.name])
        assert len(answer[tensor.name]) == 2


def forget_outputs(repository: Path, lacking: Collection[str]) -> None:
    """Make of a repository what an older version published: neither graphs nor configs know of some outputs."""
    onnx = pytest.importorskip("onnx")
    for path in repository.glob("*/config.pbtxt"):
        named = rf'\s*output(_map)? \{{\s*(name|key): "({"|".join(lacking)})"[^{{}}]*\}}'
        path.write_text(re.sub(named, "", path.read_text()))
        assert not any(name in path.read_text() for name in lacking)
    for path in repository.glob("fusion_*/*/model.onnx"):
        graph = onnx.load(path)
        kept = [output for output in graph.graph.output if output.name not in lacking]
        del graph.graph.output[:]
        graph.graph.output.extend(kept)
        onnx.save(graph, path)


@pytest.mark.parametrize("lacking", [ADDED_OUTPUTS, ("image_share",)], ids=["the oldest", "with views"])
def test_a_repository_of_an_older_version_answers_without_what_it_lacks(model, own_copy, files, lacking):
    forget_outputs(own_copy, lacking)
    older = InProcess(own_copy)
    for name in ("predict_image", "predict_study", "predict_study_tensors"):
        inputs = make_inputs(name, files)
        found, expected = older.run(name, inputs), model.run(name, inputs)
        assert set(expected) - set(found) == set(lacking) & set(expected)
        np.testing.assert_array_equal(found["probabilities"], expected["probabilities"])
    tokens = model.run("image_encoder", {"pixels": make_inputs("predict_image_tensors", files)["pixels"]})
    assert not set(lacking) & set(older.run("fusion_image", tokens))


def test_the_view_is_that_of_the_image_alone_and_of_the_study(model, files):
    alone = model.run("predict_image", make_inputs("predict_image", files))["lateral"]
    np.testing.assert_allclose(
        model.run("predict_study", make_inputs("predict_study", files))["lateral"], alone
    )
    assert alone[0] != alone[1]


def test_the_share_of_the_image_is_served_with_a_study(model, files):
    found = model.run("predict_study", make_inputs("predict_study", files))["image_share"]
    assert found.shape == (2, len(LABELS))
    assert ((found > 0) & (found < 1)).all()
    assert not np.allclose(found[0], found[1])  # the reports differ in length


def test_raw_and_tensor_ensembles_agree_and_preprocessing_is_the_contract(model, repository, files):
    from contract.image.read import load_pixels
    from contract.report.text import ReportTokenizer, read_report

    config = read_config(repository / "preprocess_text" / "config.pbtxt")
    mode = config["parameters"]["text_mode"]["string_value"]
    tokenizer = ReportTokenizer.load(next(repository.glob("preprocess_text/*/tokenizer.json")))
    tokens = tokenizer.encode([read_report(report, mode) for report in REPORTS], 64)
    pixels = np.stack([load_pixels(data, size=56) for data in files])
    given = {"pixels": pixels, "input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    raw = model.run("predict_study", make_inputs("predict_study", files))
    expected = model.run("predict_study_tensors", given)
    for name in expected:
        np.testing.assert_array_equal(raw[name], expected[name])
    assert json.loads(raw["report_notes"][0, 0])["tokens"] == int(tokens.attention_mask[0].sum())
    assert raw["report_text"][1, 0] == b"The lungs are clear."


def test_single_steps_answer(model, files):
    notes = model.run("preprocess_image", {"image_bytes": pack(files[:1])})
    tokens = model.run("image_encoder", {"pixels": notes["pixels"]})
    assert list(tokens) == ["image_tokens"]


def test_steps_at_once_answer_as_steps_in_turn(model, repository, files):
    inputs = make_inputs("predict_study", files)
    in_turn, at_once = model.run("predict_study", inputs), InProcess(repository, concurrent=True)
    for _ in range(3):
        for name, array in at_once.run("predict_study", inputs).items():
            np.testing.assert_array_equal(array, in_turn[name])


def test_only_what_a_model_needs_is_loaded(own_copy, files):
    shutil.rmtree(own_copy / "text_encoder")
    model = InProcess(own_copy)
    model.run("predict_image", make_inputs("predict_image", files))
    with pytest.raises(ConfigError, match="text_encoder"):
        model.run("predict_text", make_inputs("predict_text", files))


def test_runtime_and_threads_come_from_the_config(own_copy):
    with (own_copy / "image_encoder" / "config.pbtxt").open("a") as config:
        config.write('\nparameters { key: "intra_op_thread_count" value { string_value: "1" } }\n')
    said = InProcess(own_copy).describe("predict_image_tensors")
    assert list(said) == ["image_encoder", "fusion_image"]
    assert said["image_encoder"].endswith("CPU, 1 thread")


def test_the_newest_version_counts_where_no_step_names_one(own_copy, files):
    for path in own_copy.glob("predict_*/config.pbtxt"):
        lines = path.read_text().splitlines()
        path.write_text("\n".join(line for line in lines if "model_version" not in line))
    first = next(path for path in (own_copy / "image_encoder").iterdir() if path.name.isdecimal())
    for number in ("9", "10"):
        shutil.copytree(first, own_copy / "image_encoder" / number)
    (own_copy / "image_encoder" / "9" / "model.onnx").write_bytes(b"not this one")
    InProcess(own_copy).run("predict_image", make_inputs("predict_image", files))
    (own_copy / "image_encoder" / "10" / "model.onnx").write_bytes(b"this one")
    with pytest.raises(ArtifactError, match="cannot load"):
        InProcess(own_copy).run("predict_image", make_inputs("predict_image", files))


def test_a_graph_of_another_model_is_refused(own_copy, files):
    (own_copy / "fusion_image" / "1" / "fingerprint").write_text("b" * 64)
    with pytest.raises(FingerprintError, match="bbbbbbbbbbbb"):
        InProcess(own_copy).run("predict_image", make_inputs("predict_image", files))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given.pop("report"), "report"),
        (lambda given: given.update(report=given["report"][:1]), "same number"),
        (lambda given: given.update(report=given["report"][:0], image_bytes=given["report"][:0]), "same"),
        (lambda given: given.update(report=np.ones((2, 1), np.float32)), "report must be BYTES"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(model, files, change, message):
    given = make_inputs("predict_study", files)
    change(given)
    with pytest.raises(TensorError, match=message):
        model.run("predict_study", given)


def test_what_is_no_radiograph_is_refused(model):
    with pytest.raises(ImageError):
        model.run("predict_image", {"image_bytes": pack([b"no image"])})


def test_unknown_model_and_missing_or_damaged_repository(own_copy, tmp_path):
    with pytest.raises(ConfigError, match="no model predict_all"):
        InProcess(own_copy).run("predict_all", {})
    with pytest.raises(ArtifactError, match="was not published by cxr"):
        InProcess(tmp_path)
    (own_copy / "predict_image" / "config.pbtxt").write_text("input ?")
    with pytest.raises(ArtifactError, match=r"predict_image/config\.pbtxt"):
        InProcess(own_copy).run("predict_image", {})


def test_a_repository_of_an_older_version_is_refused(own_copy):
    """Its ensembles ran two steps side by side."""
    shutil.rmtree(own_copy / "preprocess_study")
    with pytest.raises(ArtifactError, match=r"older version of cxr.*Publish it again"):
        InProcess(own_copy)


@pytest.mark.parametrize(
    "name", ["predict_study_tensors", "predict_text_tensors", "text_encoder", "fusion_study"]
)
def test_token_ids_that_the_model_cannot_read(model, name):
    sizes = {"image_tokens": (2, 49, 32), "text_tokens": (2, 32, 32)}
    values = {
        "pixels": np.zeros((2, 1, 56, 56), np.uint8),
        "input_ids": np.full((2, 32), 2000, np.int64),
        "attention_mask": np.ones((2, 32), np.int64),
        **{tensor: np.zeros(shape, np.float32) for tensor, shape in sizes.items()},
    }
    given = {tensor.name: values[tensor.name] for tensor in MODELS[name].inputs}
    with pytest.raises(TensorError, match="ids from 0 to 1999"):
        model.run(name, given)
