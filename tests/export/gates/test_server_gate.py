"""The third gate: a server is held to what the graphs answered, and sees weights that were exchanged or rounded."""

import hashlib
import json
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest

from contract.errors import ArtifactError, ServerError
from contract.report.tokens import TokenLimits
from contract.repository import read_published
from contract.tensors import FUSED, LENGTH_BUCKETS, MODELS
from contract.training_data import WAYS
from export import pipeline
from export.gates.precision import ServedGraphs
from export.gates.requests import draw_requests
from export.gates.server import StoredAnswers, collect_answers, compare_answers, run_request
from export.gates.server_precision import MOST_CASES, check_server, draw_requests_for, store_answers
from export.graphs.checks import read_sizes
from export.graphs.fuse import fuse_graphs
from export.profiles import load_profile

FP32 = load_profile("fp32")


def serve(graphs):
    """Stands for a server that has loaded these graphs: name, inputs -> outputs."""
    sessions = {}

    def run(name, inputs):
        if name not in sessions:
            sessions[name] = onnxruntime.InferenceSession(
                str(graphs[name]), providers=["CPUExecutionProvider"]
            )
        names = [tensor.name for tensor in (MODELS.get(name) or FUSED[name]).outputs]
        return dict(zip(names, sessions[name].run(names, inputs), strict=True))

    return run


def round_weights(source, path) -> None:
    """Write a graph whose weights keep the 8 bits of a bfloat16 fraction."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            bits = onnx.numpy_helper.to_array(tensor).view(np.uint32)
            rounded = ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(rounded, tensor.name))
    onnx.save(model, path)


def exchange_weights(source, path) -> None:
    """Write a graph whose matrices hold their values in another order: weights as another seed draws them."""
    model, generator = onnx.load(source), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            values = onnx.numpy_helper.to_array(tensor)
            mixed = generator.permutation(values.ravel()).reshape(values.shape)
            tensor.CopyFrom(onnx.numpy_helper.from_array(mixed, tensor.name))
    onnx.save(model, path)


@pytest.fixture(scope="module")
def stored(bundle, graphs):
    return store_answers(bundle, graphs, FP32)


@pytest.fixture(scope="module")
def spoilt(graphs, tmp_path_factory):
    """Graphs that say that they are of the bundle: with other weights, and with rounded weights."""
    root = tmp_path_factory.mktemp("spoilt")
    found = {}
    for how, spoil in (("exchanged", exchange_weights), ("rounded", round_weights)):
        (root / how).mkdir()
        found[how] = {name: root / how / f"{name}.onnx" for name in graphs}
        for name, path in graphs.items():
            spoil(path, found[how][name])
    return found


def ask(bundle, run, layout="split"):
    return collect_answers(partial(run_request, run, layout=layout), draw_requests_for(bundle))


def test_requests_are_the_same_for_ever_and_can_be_read_by_the_model():
    requests = draw_requests(112, 4000, 256)
    digest = hashlib.sha256()
    for request in requests:
        if (request.kind, request.views, request.batch_size) == ("image", 2, 1):  # the first of several views
            assert digest.hexdigest()[:16] == "f8b92a40ec5c6533"
        for name, array in sorted(request.inputs.items()):
            digest.update(f"{request.kind} {name} {array.dtype} {array.shape}".encode() + array.tobytes())
        if request.kind != "image":
            TokenLimits(4000, 256).check(request.inputs["input_ids"], request.inputs["attention_mask"])
    assert digest.hexdigest()[:16] == "62885b268f5de927"
    views = [(request.kind, request.views, request.batch_size) for request in requests[-8:]]
    assert views == [
        (kind, *shape) for shape in ((2, 1), (3, 1), (4, 1), (2, 2)) for kind in ("image", "study")
    ]
    assert {request.kind for request in requests} == set(WAYS)
    for kind in ("text", "study"):
        asked = [request.inputs["input_ids"].shape for request in requests if request.kind == kind]
        assert {length for _, length in asked} == set(LENGTH_BUCKETS)
        assert {batch for batch, _ in asked} == {1, 2}
    masks = [q.inputs["attention_mask"] for q in requests if q.kind == "text" and q.batch_size > 1]
    assert all(mask.all(axis=1).tolist() == [True, False] for mask in masks)
    short = [q.inputs["input_ids"].shape[1] for q in draw_requests(56, 120, 64) if q.kind == "text"]
    assert sorted(set(short)) == [32, 64]


def test_stored_answers_come_back_as_they_were(stored):
    parameters = {kind: stored.write(kind) for kind in WAYS}
    read = StoredAnswers.read(parameters, source="here")
    assert (read.profile, read.limits) == ("fp32", FP32.limits)
    for kind in WAYS:
        np.testing.assert_array_equal(read.answers[kind], stored.answers[kind])
        assert len(parameters[kind]) < 40_000
    one = json.loads(parameters["text"])
    alone = StoredAnswers.read({"text": parameters["text"], "image": ""}, source="here")
    assert list(alone.answers) == ["text"]  # of a model that was trained for nothing else
    for broken in ({}, dict.fromkeys(WAYS, ""), {**parameters, "text": "[]"}):
        with pytest.raises(ArtifactError, match="here holds no readable answers"):
            StoredAnswers.read(broken, source="here")
    for change in ({"answers": "%"}, {"shape": [1, 2]}, {"answers": one["answers"][:-8]}):
        with pytest.raises(ArtifactError, match="Publish the bundle again"):
            StoredAnswers.read({**parameters, "text": json.dumps(one | change)}, source="here")


def test_the_graphs_themselves_pass_split_and_fused(bundle, graphs, stored, tmp_path):
    for layout, files in (("split", graphs), ("fused", fuse_graphs(graphs, tmp_path))):
        report = compare_answers(
            stored, ask(bundle, serve(files), layout), bundle.decisions, "ORT", bundle.label_part
        )
        assert report.passed, report.to_markdown()
        assert [row.kind for row in report.kinds] == list(WAYS)
        assert "| limit |" in report.to_markdown()
        assert "FAILED" not in report.to_markdown()
        assert json.loads(json.dumps(report.to_dict()))["passed"] is True


@pytest.mark.parametrize("how", ["exchanged", "rounded"])
def test_other_weights_are_seen(how, bundle, spoilt, stored):
    report = compare_answers(
        stored, ask(bundle, serve(spoilt[how])), bundle.decisions, "ORT", bundle.label_part
    )
    assert not report.passed
    assert "probability_difference of study" in report.failures[0]
    assert report.to_markdown().count("FAILED") == 3


@pytest.mark.parametrize(
    "graph", ["image_encoder", "text_encoder", "fusion_study", "fusion_image", "fusion_text"]
)
def test_one_rounded_graph_is_enough(graph, bundle, graphs, spoilt, stored):
    mixed = {**graphs, graph: spoilt["rounded"][graph]}
    assert not compare_answers(
        stored, ask(bundle, serve(mixed)), bundle.decisions, "ORT", bundle.label_part
    ).passed


WRONG_FUSIONS = {
    "only the first view": lambda tokens, count: tokens[:, :count],
    "the first two views": lambda tokens, count: tokens[:, : 2 * count],
    "the first view twice": lambda tokens, count: np.concatenate(
        [tokens[:, :count], *[tokens[:, :count]] * (tokens.shape[1] // count - 1)], axis=1
    ),
}


@pytest.mark.parametrize("how", WRONG_FUSIONS)
def test_a_graph_that_fuses_views_wrongly_is_stopped(how, bundle, graphs, stored):
    """With one view of each study it answers as it should."""
    right, count = serve(graphs), read_sizes(bundle)["N"]

    def run(name, inputs):
        tokens = inputs.get("image_tokens")
        if tokens is not None and tokens.shape[1] > count:
            inputs = {**inputs, "image_tokens": np.ascontiguousarray(WRONG_FUSIONS[how](tokens, count))}
        return right(name, inputs)

    report = compare_answers(stored, ask(bundle, run), bundle.decisions, "ORT", bundle.label_part)
    failed = [row.kind for row in report.kinds if row.list_failures(FP32.limits)]
    assert failed == ["study", "image"]


def test_answers_that_are_no_numbers_fail(bundle, stored):
    found = {kind: rows.copy() for kind, rows in stored.answers.items()}
    found["text"][0, 3] = np.nan
    found["image"][0, -1] = np.inf
    report = compare_answers(stored, found, bundle.decisions, "ORT", bundle.label_part)
    assert [row.kind for row in report.kinds if row.list_failures(FP32.limits)] == ["image", "text"]
    assert json.dumps(report.to_dict(), allow_nan=False)


def test_flips_are_counted(bundle, stored):
    wide = replace(
        stored, limits=replace(FP32.limits, probability_difference=1.0, embedding_cosine=0.0, flip_share=0.0)
    )
    found = {kind: rows.copy() for kind, rows in stored.answers.items()}
    threshold = bundle.decisions.of("text")[0].threshold
    rows = found["text"][:2, 0]
    found["text"][:2, 0] = np.where(rows >= threshold, 0.0, 1.0)
    report = compare_answers(wide, found, bundle.decisions, "ORT", bundle.label_part)
    assert report.failures == [f"2 of {report.kinds[2].decisions} decisions of text flip"]


def test_answers_of_another_shape_are_the_server_s_fault(bundle, stored):
    with pytest.raises(ServerError, match=r"answers to study requests have the shape"):
        compare_answers(
            stored,
            {k: rows[:, :-1] for k, rows in stored.answers.items()},
            bundle.decisions,
            "ORT",
            bundle.label_part,
        )
    one_row = {"probabilities": np.zeros((1, 22), np.float32), "embedding": np.zeros((1, 8), np.float32)}
    with pytest.raises(ServerError, match=r"a request of 4 cases with tensors of shape \[1, 22\], \[1, 8\]"):
        collect_answers(lambda _: one_row, draw_requests_for(bundle))


@pytest.mark.parametrize("layout", ["split", "fused"])
def test_real_cases_go_through_the_server_too(layout, bundle, graphs, cases, stored, spoilt, tmp_path):
    def check(files):
        made = (
            fuse_graphs(files, tmp_path / str(len(list(tmp_path.iterdir())))) if layout == "fused" else files
        )
        served = ServedGraphs(serve(made), layout, "Triton of the test")
        return check_server(bundle, graphs, FP32, cases * MOST_CASES, served, reference=graphs, stored=stored)

    report = check(graphs)
    assert report.passed
    assert report.precision.cases == MOST_CASES
    assert set(report.precision.runtimes.values()) == {"Triton of the test"}
    text = report.to_markdown()
    assert "against the graphs that passed the gates" in text
    assert "Profile fp32 against float32 graphs" in text
    assert json.loads(json.dumps(report.to_dict()))["passed"] is True
    broken = check({**graphs, "text_encoder": spoilt["exchanged"]["text_encoder"]})
    assert not broken.passed
    assert not broken.precision.passed
    assert any("text, in batches" in failure for failure in broken.failures)


def test_export_hands_the_version_that_waits_to_the_server(bundle, graphs, cases, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "export.graphs.from_torch.export_graphs", lambda *_: graphs
    )  # spares the time, changes nothing
    repository = pipeline.export(bundle.path, tmp_path / "repository", cases).repository
    seen = []

    def take(path, version, check):
        state = read_published(path)
        files = {name: path / name / str(version) / "model.onnx" for name in graphs}
        seen.append((state.version, state.newest, version))
        return check(ServedGraphs(serve(files), "split", "Triton of the test"))

    result = pipeline.export(bundle.path, repository, cases, take=take)
    assert seen == [(1, 2, 2)]
    assert result.version == 2
    assert result.taken.passed
    assert read_published(repository).version == 1  # to switch is up to who takes it
    gates = read_published(repository).versions[2]["gates"]
    runtime = f"ONNX Runtime {onnxruntime.__version__} CPU"
    assert gates["parity"] == {
        "runtime": runtime,
        "provider": "CPU",
        "precision": "fp32",
        "cases": len(cases),
    }
    assert gates["precision"]["runtime"].startswith(runtime)
    assert (gates["precision"]["provider"], gates["precision"]["precision"]) == ("CPU", "fp32")
    assert pipeline._name_provider("OpenVINO 2026.1 int8 in groups of 128, 2 threads") == "OpenVINO"
