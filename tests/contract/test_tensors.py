"""The tensor table, the models made of it, and what importing the contract costs."""

import pkgutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import contract
from contract.errors import TensorError
from contract.labels import LABELS
from contract.tensors import (
    EMBEDDING,
    FUSED,
    FUSED_PARTS,
    GRAPHS,
    IMAGE_BYTES,
    IMAGE_TOKENS,
    INPUT_IDS,
    LAYOUTS,
    LENGTH_BUCKETS,
    MODELS,
    NUMPY_DTYPES,
    PIXELS,
    PROBABILITIES,
    TEXT_ATTENTION,
    TEXT_GATE,
    TOKEN_SPANS,
    VIEWS,
    ModelSpec,
    drop_checks,
)

SIZES = {"S": 224, "N": 49, "C": 256, "D": 128, "L": 64}
ENSEMBLES = [model for model in MODELS.values() if model.backend == "ensemble"]
TENSORS = {tensor for model in MODELS.values() for tensor in (*model.inputs, *model.outputs)}


@pytest.mark.parametrize(
    ("spec", "known", "unknown"),
    [
        (PIXELS, (1, 224, 224), (1, -1, -1)),
        (INPUT_IDS, (-1,), (-1,)),
        (TOKEN_SPANS, (-1, 2), (-1, 2)),
        (VIEWS, (-1, 224, 224), (-1, -1, -1)),
        (IMAGE_TOKENS, (-1, 256), (-1, -1)),
        (PROBABILITIES, (22,), (22,)),
        (EMBEDDING, (128,), (-1,)),
        (TEXT_ATTENTION, (22, -1), (22, -1)),
        (IMAGE_BYTES, (-1,), (-1,)),
    ],
)
def test_dims(spec, known, unknown):
    assert spec.dims(SIZES) == known
    assert spec.dims() == unknown


@pytest.mark.parametrize("spec", sorted(TENSORS, key=lambda spec: spec.name), ids=lambda spec: spec.name)
def test_an_array_that_fits(spec):
    shape = (3, *(7 if size == -1 else size for size in spec.dims(SIZES)))
    array = np.zeros(shape, NUMPY_DTYPES[spec.dtype])
    spec.check(array, SIZES)
    spec.check(array)
    spec.check(array[:0], SIZES)
    with pytest.raises(TensorError, match=spec.name):
        spec.check(array[0], SIZES)
    with pytest.raises(TensorError, match=spec.name):
        spec.check(array[None], SIZES)
    with pytest.raises(TensorError, match=spec.name):
        spec.check(array.astype(np.float64), SIZES)


@pytest.mark.parametrize(
    ("spec", "array", "message"),
    [
        (PIXELS, np.zeros((1, 1, 8, 8), np.float32), "Tensor pixels must be UINT8, not float32."),
        (
            PIXELS,
            np.zeros((2, 3, 224, 224), np.uint8),
            "Tensor pixels must have shape [-1, 1, 224, 224], not [2, 3, 224, 224].",
        ),
        (
            EMBEDDING,
            np.zeros((2, 64), np.float32),
            "Tensor embedding must have shape [-1, 128], not [2, 64].",
        ),
        (INPUT_IDS, np.zeros((2, 64), np.int32), "Tensor input_ids must be INT64, not int32."),
        (INPUT_IDS, np.zeros(64, np.int64), "Tensor input_ids must have shape [-1, -1], not [64]."),
        (PROBABILITIES, np.zeros((1, 22), ">f4"), "Tensor probabilities must be FP32, not >f4."),
        (IMAGE_BYTES, np.array([[b"x"]]), "Tensor image_bytes must be BYTES, not |S1."),
    ],
)
def test_an_array_that_does_not_fit(spec, array, message):
    with pytest.raises(TensorError) as info:
        spec.check(array, SIZES)
    assert str(info.value) == message


def test_what_differs_from_request_to_request_is_never_fixed():
    INPUT_IDS.check(np.zeros((2, 32), np.int64), {"L": 256})
    IMAGE_BYTES.check(np.zeros((2, 3), np.object_), {"V": 1})
    IMAGE_TOKENS.check(np.zeros((2, 98, 256), np.float32), SIZES | {"I": 49})
    assert tuple(sorted(set(LENGTH_BUCKETS))) == LENGTH_BUCKETS


def test_names_are_unique():
    assert len(TENSORS - {VIEWS}) == len({tensor.name for tensor in TENSORS})
    assert VIEWS.name == PIXELS.name  # of a caller's own pixels, one image alone
    assert all(name == model.name for name, model in MODELS.items())
    assert {size for tensor in TENSORS for size in tensor.shape if isinstance(size, str)} == set("VSILCDK")
    assert PROBABILITIES.dims() == (len(LABELS),)


def test_models_of_the_design():
    assert set(GRAPHS) == {"image_encoder", "text_encoder", "fusion_study", "fusion_image", "fusion_text"}
    assert {model.name for model in ENSEMBLES} == {
        f"predict_{kind}{suffix}" for kind in ("study", "image", "text") for suffix in ("", "_tensors")
    }
    assert {model.name for model in MODELS.values() if model.backend == "python"} == {
        "preprocess_study",
        "preprocess_image",
        "preprocess_text",
        "check_study",
        "check_text",
        "text_gate",
    }


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_only_ensembles_have_steps(model):
    assert bool(model.steps) is (model.backend == "ensemble")
    assert model.inputs
    assert model.outputs
    for tensors in (model.inputs, model.outputs):
        assert len(tensors) == len(set(tensors))


def test_layouts():
    """Clients see no difference: the ensembles have the same names, inputs and outputs."""
    split, fused = LAYOUTS["split"], LAYOUTS["fused"]
    assert split is MODELS
    assert set(split) - set(fused) == {*GRAPHS, TEXT_GATE}
    assert set(fused) - set(split) == set(FUSED) == {"fused_study", "fused_image", "fused_text"}
    for model in MODELS.values():
        if model.name not in (*GRAPHS, TEXT_GATE):
            assert replace(fused[model.name], steps=()) == replace(model, steps=())
    assert fused["predict_study"].steps == ("preprocess_study", "fused_study")
    assert fused["predict_image"].steps == ("preprocess_image", "fused_image")
    assert fused["predict_text_tensors"].steps == ("check_text", "fused_text")
    unchecked = drop_checks(fused)
    assert set(fused) - set(unchecked) == {"check_study", "check_text"}
    assert unchecked["predict_study_tensors"].steps == ("fused_study",)
    assert unchecked["predict_study"] == fused["predict_study"]


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_graph_stands_for_the_steps_between_tensors(name):
    ensemble = MODELS[f"{name.replace('fused', 'predict')}_tensors"]
    assert FUSED_PARTS[name] == tuple(step for step in ensemble.steps if step in GRAPHS)
    inputs = tuple(VIEWS if tensor == PIXELS else tensor for tensor in ensemble.inputs)
    assert FUSED[name] == ModelSpec(name, "onnxruntime", inputs, ensemble.outputs)


@pytest.mark.parametrize("ensemble", ENSEMBLES, ids=lambda model: model.name)
def test_an_ensemble_runs_what_its_kind_needs(ensemble):
    """How the steps are wired is in the configs: tests/model_repository/test_configs.py."""
    modality = ensemble.name.split("_")[1]
    for models in LAYOUTS.values():
        tensors = {x.name for step in models[ensemble.name].steps for x in models[step].inputs}
        assert bool(tensors & {"image_bytes", "pixels"}) is (modality != "text")
        assert bool(tensors & {"report", "input_ids"}) is (modality != "image")


def list_loaded(modules: list[str]) -> set[str]:
    script = f"import {', '.join(modules)}, sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_contract_loads_nothing_heavy():
    modules = [module.name for module in pkgutil.walk_packages(contract.__path__, "contract.")]
    assert {"contract.image.read", "contract.report.text", "contract.proto.retrieval_pb2_grpc"} <= set(
        modules
    )
    loaded = list_loaded(modules)
    assert "numpy" in loaded
    assert not loaded & {
        "torch",
        "faiss",
        "tritonclient",
        "training",
        "export",
        "client",
        "retrieval",
        "serving",
    }
    cheap = list_loaded([name for name in modules if not name.startswith("contract.proto")])
    assert not cheap & {"pydicom", "PIL", "cv2", "gdcm", "tokenizers", "defusedxml", "grpc", "google"}
