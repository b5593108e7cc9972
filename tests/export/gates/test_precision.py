"""Precision profiles: converted graphs are valid, small differences pass, and the gate names what does not."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from contract.bundle import load_bundle
from contract.decisions import ServedLabel
from contract.errors import ArtifactError, ConfigError, FingerprintError, ParityError, TensorError
from contract.labels import LABELS
from contract.runtime.openvino import has_bf16
from contract.runtime.session import open_session
from contract.tensors import GRAPHS
from export.gates.measures import (
    compute_cosines,
    count_flips,
    find_largest_difference,
    measure_overlap,
    score_labels,
)
from export.gates.parity import ParityCase
from export.gates.precision import check_precision, measure_precision, require_passed
from export.gates.precision_report import measure_kind, write_report
from export.graphs.checks import read_fingerprint
from export.graphs.convert import convert_graphs
from export.profiles import load_profile
from export.speed import SpeedReport, compare_speed, require_faster

K = len(LABELS)


@pytest.fixture(scope="module")
def labelled(cases):
    """14 cases, some with image, some with report, all with labels."""
    rng = np.random.default_rng(1)
    texts = [case.text for case in cases]
    drawn = [
        ParityCase(
            rng.integers(0, 256, (1, 112, 112), dtype=np.uint8) if index % 5 else None,
            texts[index % 3] if index % 4 else None,
            rng.random(K) < 0.4,
        )
        for index in range(1, 15)
    ]
    return [case for case in drawn if case.pixels is not None or case.has_text]


@pytest.fixture(scope="module")
def converted(bundle, graphs, tmp_path_factory):
    root = tmp_path_factory.mktemp("converted")
    return {
        name: convert_graphs(bundle, graphs, load_profile(name), root / name)
        for name in ("fp32", "bf16", "int8", "fp16")
    }


@pytest.fixture(scope="module")
def int8_report(bundle, graphs, converted, labelled):
    loose = replace(load_profile("int8"), limits=LOOSE)
    return measure_precision(bundle, converted["int8"].paths, loose, labelled, reference=graphs)


LOOSE = replace(
    load_profile("int8").limits,
    probability_difference=0.2,
    embedding_cosine=0.9,
    flip_share=0.1,
    auroc_change=0.2,
    ap_change=0.2,
    neighbour_overlap=0.3,
)


def needs_bf16():
    pytest.importorskip("openvino")
    if not has_bf16():
        pytest.skip("this processor has no bfloat16")


def count(path, op_type):
    return sum(node.op_type == op_type for node in onnx.load(path).graph.node)


def test_only_the_graphs_of_the_profile_are_converted(converted, graphs, bundle, tmp_path):
    assert converted["fp32"].converted == ()
    for name in ("bf16", "int8", "fp16"):
        assert converted[name].converted == GRAPHS
    encoders = replace(load_profile("int8"), graphs=("image_encoder", "text_encoder"))
    some = convert_graphs(bundle, graphs, encoders, tmp_path)
    assert some.converted == encoders.graphs
    assert some.paths["fusion_text"] == graphs["fusion_text"]
    for graphs_of_profile in converted.values():
        assert {read_fingerprint(path) for path in graphs_of_profile.paths.values()} == {bundle.fingerprint}


def test_openvino_and_tensorrt_get_no_operators_of_onnxruntime(converted, graphs, bundle, tmp_path):
    plain = convert_graphs(bundle, graphs, load_profile("fp16"), tmp_path, target="tensorrt")
    for found in (plain, converted["bf16"]):
        assert found.fusions == {}
        for path in found.paths.values():
            assert {node.domain for node in onnx.load(path).graph.node} == {""}
    assert converted["fp16"].fusions["text_encoder"]["MultiHeadAttention"] == 2


def test_weights_are_bfloat16_and_all_else_stays_float32(converted, graphs):
    for name in GRAPHS:
        model = onnx.load(converted["bf16"].paths[name])
        kinds = {value.name: value.data_type for value in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type in ("MatMul", "Gemm") and node.input[1] in kinds:
                assert kinds[node.input[1]] == TensorProto.BFLOAT16
                assert node.input[0].endswith("_narrow")
            elif node.op_type in ("MatMul", "Conv", "LayerNormalization") and node.input[0] not in kinds:
                assert not any(value.endswith(("_narrow", "_bfloat16")) for value in node.input)
        assert converted["bf16"].paths[name].stat().st_size < graphs[name].stat().st_size
        widened = {node.output[0] for node in model.graph.node if node.op_type == "Cast"}
        assert any(not value.endswith("_narrow") for value in widened)


def test_int8_quantises_the_products_with_weights_alone(converted, graphs):
    quantised, plain = converted["int8"].paths["text_encoder"], graphs["text_encoder"]
    before = {value.name: onnx.numpy_helper.to_array(value) for value in onnx.load(plain).graph.initializer}
    after = {
        value.name: onnx.numpy_helper.to_array(value) for value in onnx.load(quantised).graph.initializer
    }
    products = [node for node in onnx.load(plain).graph.node if node.op_type == "MatMul"]
    weights = [node.input[1] for node in products if node.input[1] in before]
    assert len(weights) >= 13
    assert not set(weights) & set(after)
    for name in weights:
        rounded, scales = after[f"{name}_int8"], after[f"{name}_scales"]
        assert rounded.dtype == np.int8
        assert len(scales) == (before[name].shape[0] // 128 if before[name].shape[0] % 128 == 0 else 1)
        wide = (rounded * scales).reshape(before[name].shape)
        off = np.abs(wide - before[name]).reshape(rounded.shape)
        assert (off <= 0.501 * scales).all()  # rounded to the nearest step
    assert sum(value.dtype == np.int8 for value in after.values()) == len(set(weights))


def test_int8_weights_answer_on_onnxruntime_too(converted, graphs, bundle, labelled):
    elsewhere = replace(load_profile("int8"), accelerator="", parameters={}, limits=LOOSE)
    report = check_precision(bundle, converted["int8"].paths, elsewhere, labelled, reference=graphs)
    assert report.runtimes["text_encoder"].startswith("ONNX Runtime")
    assert 0.99 < report.kinds[0].embedding_cosine < 0.99999999


def test_fp16_keeps_norms_and_softmax_in_float32_and_answers_on_the_cpu(converted, bundle, graphs, labelled):
    for path in converted["fp16"].paths.values():
        inferred = onnx.shape_inference.infer_shapes(onnx.load(path))
        types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
        types |= {value.name: value.data_type for value in inferred.graph.initializer}
        kept = [n for n in inferred.graph.node if n.op_type in ("LayerNormalization", "Softmax", "ReduceSum")]
        kept = [
            n for n in kept if types.get(n.input[0]) != TensorProto.INT32
        ]  # the lengths of texts are no floats
        assert kept
        for node in kept:
            assert types.get(node.input[0], TensorProto.FLOAT) == TensorProto.FLOAT
        halves = [value for value in inferred.graph.initializer if value.data_type == TensorProto.FLOAT16]
        assert len(halves) > 5
    on_cpu = replace(load_profile("fp16"), target="cpu")
    report = check_precision(bundle, converted["fp16"].paths, on_cpu, labelled, reference=graphs)
    assert max(row.probability_difference for row in report.kinds) > 0


def test_fp32_profile_agrees_with_pytorch(bundle, converted, labelled):
    report = check_precision(bundle, converted["fp32"].paths, load_profile("fp32"), labelled)
    assert report.reference == "PyTorch float32"
    assert max(row.flips for row in report.kinds) == 0
    assert max(row.relative_difference for row in report.graphs) < 1e-5


def test_report_goes_into_the_bundle_and_the_next_one_takes_its_place(bundle, converted, labelled, tmp_path):
    own = load_bundle(shutil.copytree(bundle.path, tmp_path / "bundle"))
    report = check_precision(bundle, converted["fp32"].paths, load_profile("fp32"), labelled)
    assert write_report(own, report) == own.path / "precision" / "fp32.md"
    again = load_bundle(own.path)
    assert again.fingerprint == own.fingerprint
    assert json.loads((own.path / "precision" / "fp32.json").read_text())["passed"] is True
    assert (own.path / "precision" / "fp32.md").read_text() == report.to_markdown()
    assert write_report(again, replace(report, cases=3)).read_text().count(": 3 cases") == 1
    assert write_report(load_bundle(own.path), replace(report, profile="bf16")).name == "bf16.md"
    assert {"precision/fp32.md", "precision/bf16.json"} <= set(load_bundle(own.path).manifest["files"])


def test_bf16_profile_passes_its_limits_where_the_processor_has_it(bundle, graphs, converted, labelled):
    needs_bf16()
    profile = load_profile("bf16")
    limits = replace(LOOSE, embedding_cosine=0.999, probability_difference=0.05)
    report = check_precision(
        bundle, converted["bf16"].paths, replace(profile, limits=limits), labelled, reference=graphs
    )
    assert report.runtimes["text_encoder"].startswith("OpenVINO")
    assert report.kinds[0].embedding_cosine < 0.99999999  # something was rounded


def test_openvino_in_float32_answers_as_onnxruntime_does(graphs, tmp_path):
    """OpenVINO 2026.4 gave probabilities off by .7 until the exporter kept the axes of reductions."""
    pytest.importorskip("openvino")
    model = onnx.load(graphs["fusion_image"])
    for value in model.graph.initializer:  # random weights are made with biases of 0
        if value.name in ("fusion.pooling.bias", "fusion.bias_image"):
            bias = np.linspace(-2, 2, K).astype(np.float32)
            value.CopyFrom(onnx.numpy_helper.from_array(bias, value.name))
    onnx.save(model, tmp_path / "biased.onnx")
    accelerated = replace(load_profile("fp32"), accelerator="openvino", parameters={"precision": "fp32"})
    feeds = {"image_tokens": np.random.default_rng(0).normal(size=(3, 49, 128)).astype(np.float32)}
    expected, found = (
        open_session(tmp_path / "biased.onnx", {"optimization": profile.make_optimization()}).run(
            ["probabilities", "embedding"], feeds
        )
        for profile in (load_profile("fp32"), accelerated)
    )
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


def test_every_kind_is_measured_in_batches_and_alone(int8_report, labelled):
    rows = [(row.kind, row.batch_size) for row in int8_report.kinds]
    assert rows == [(kind, size) for size in (32, 1) for kind in ("study", "image", "text")]
    study = int8_report.kinds[0]
    both = [case for case in labelled if case.pixels is not None and case.has_text]
    assert (study.cases, study.decisions) == (len(both), len(both) * K)
    assert study.neighbour_overlap is None  # fewer than 12
    assert (study.scored_labels, study.auroc_change) == (0, None)  # fewer than 50
    assert study.probability_difference > 0
    assert [x.graph for x in int8_report.graphs][:2] == ["image_encoder", "text_encoder"]


class Answers:
    """60 cases, of which a few may change."""

    def __init__(self, change):
        rng = np.random.default_rng(0)
        self.arrays = {"probabilities": rng.random((60, K)), "embedding": rng.normal(size=(60, 8))}
        self.change = change

    def read(self, output):
        before = self.arrays[output]
        return before, before + self.change * np.random.default_rng(1).normal(size=before.shape)


@pytest.mark.parametrize(("change", "moved"), [(0.0, False), (1e-9, False), (0.05, True)])
def test_enough_cases_with_labels_are_scored(change, moved, bundle):
    targets = list(np.random.default_rng(2).random((60, K)) < 0.3)

    def measure(count, size=32):
        cases = [
            ParityCase(None, "clear", truth if row < count else None) for row, truth in enumerate(targets)
        ]
        return measure_kind(bundle.decisions.of("text"), "text", size, Answers(change), cases, 0)

    row = measure(55)
    assert row.scored_labels == K
    assert (row.auroc_change > 1e-4) == (row.ap_change > 1e-4) == (row.neighbour_overlap < 1) == moved
    few = measure(49)
    assert (few.auroc_change, few.ap_change, few.scored_labels) == (None, None, 0)
    alone = measure(60, size=1)
    assert (alone.auroc_change, alone.neighbour_overlap) == (None, None)


def test_equal_cases_stay_equal_in_the_scores():
    """Ties that rounding breaks would move AUROC though no answer changed."""
    targets = np.array([[True], [False]] * 10)
    tied = np.full((20, 1), 0.25)
    assert score_labels(targets, tied + targets * 1e-8)[:2] == score_labels(targets, tied)[:2] == (0.5, 0.5)


def test_report_reads_as_json_as_table_and_as_sentence(int8_report):
    values = json.loads(json.dumps(int8_report.to_dict(), allow_nan=False))
    assert values["passed"] is True
    assert values["kinds"][0]["flip_share"] == int8_report.kinds[0].flip_share
    table = int8_report.to_markdown()
    assert table.count("| ok |") == 6
    assert "OpenVINO" in table
    assert "not measured with fewer than 12" in table
    assert "Profile int8 is within its limits" in int8_report.to_sentence()


@pytest.mark.parametrize(
    ("measure", "value", "allowed"),
    [
        ("probability_difference", 0.5, "at most 0.2"),
        ("probability_difference", float("nan"), "at most 0.2"),
        ("embedding_cosine", 0.5, "at least 0.9"),
        ("flips", 200, "at most 0.1"),
        ("auroc_change", 0.5, "at most 0.2"),
        ("auroc_change", float("nan"), "at most 0.2"),
        ("ap_change", 0.5, "at most 0.2"),
        ("neighbour_overlap", 0.1, "at least 0.3"),
    ],
)
def test_each_measure_beyond_its_limit_is_named(measure, value, allowed, int8_report):
    image = replace(int8_report.kinds[1], **{measure: value})
    report = replace(int8_report, kinds=(int8_report.kinds[0], image, *int8_report.kinds[2:]))
    named = "flip_share" if measure == "flips" else measure
    with pytest.raises(ParityError, match=rf"Profile int8 is not published: {named} of image.*{allowed}\."):
        require_passed(report)
    assert "beyond its limits" in report.to_sentence()
    assert "FAILED" in report.to_markdown()
    assert report.to_dict()["passed"] is False
    json.dumps(report.to_dict(), allow_nan=False)


def test_one_flip_among_few_decisions_is_no_failure_but_two_are(int8_report):
    strict = replace(int8_report.limits, flip_share=1e-6)
    one, two = (replace(int8_report.kinds[0], flips=flips) for flips in (1, 2))
    assert one.list_failures(strict) == []
    assert len(two.list_failures(strict)) == 1
    assert len(one.list_failures(replace(strict, flip_share=0.0))) == 1


def test_a_spoilt_graph_is_not_published(bundle, graphs, labelled, tmp_path):
    model = onnx.load(graphs["fusion_image"])
    weight = next(value for value in model.graph.initializer if value.name.endswith("pooling.weight"))
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, tmp_path / "spoilt.onnx")
    spoilt = {**graphs, "fusion_image": tmp_path / "spoilt.onnx"}
    with pytest.raises(ParityError, match=r"fp32 is not published: probability_difference of image"):
        check_precision(bundle, spoilt, load_profile("fp32"), labelled, reference=graphs)


def test_graphs_that_do_not_belong_are_refused(bundle, other_bundle, graphs, labelled):
    profile = load_profile("fp32")
    with pytest.raises(FingerprintError, match=other_bundle.fingerprint[:12]):
        measure_precision(other_bundle, graphs, profile, labelled)
    with pytest.raises(ArtifactError, match=r"No graph was given for fusion_study"):
        measure_precision(bundle, {n: p for n, p in graphs.items() if n != "fusion_study"}, profile, labelled)
    with pytest.raises(ConfigError, match=r"at least one case with a report"):
        measure_precision(bundle, graphs, profile, [])
    with pytest.raises(TensorError, match=r"pixels must have shape"):
        measure_precision(bundle, graphs, profile, [ParityCase(np.zeros((1, 8, 8), np.uint8), "clear")])


def test_progress_ends_at_the_end(bundle, graphs, cases):
    seen = []
    measure_precision(
        bundle, graphs, load_profile("fp32"), cases, lambda *at: seen.append(at), reference=graphs
    )
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def label(threshold, low=None, high=None):
    return ServedLabel("x", "X", threshold, uncertain_low=low, uncertain_high=high)


def test_flips_count_present_to_absent_and_not_the_uncertain():
    labels = [label(0.5), label(0.5, 0.4, 0.6)]
    before = np.array([[0.49, 0.39], [0.51, 0.61], [0.7, 0.5], [0.7, 0.39]])
    after = np.array([[0.51, 0.41], [0.49, 0.59], [0.8, 0.55], [0.6, 0.61]])
    assert count_flips(labels, before, after) == 3  # two of the first label; .39 -> .61 jumps over the band


def test_scores_use_the_labels_that_some_but_not_all_cases_have():
    targets = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 1]], bool)
    probabilities = np.array([[0.1, 0.1, 0.9], [0.2, 0.2, 0.3], [0.3, 0.3, 0.2]])
    auroc, ap, scored = score_labels(targets, probabilities)
    assert (auroc, scored) == (0.5, 1)
    assert ap == pytest.approx((1 + 2 / 3) / 2)
    assert score_labels(targets[:, :2], probabilities[:, :2])[2] == 0
    assert np.isnan(score_labels(targets, probabilities * np.nan)[0])


def test_overlap_allows_ties_and_sees_other_neighbours():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 8))
    assert measure_overlap(rows, rows * 3) == 1  # length does not count
    assert measure_overlap(rows, rng.normal(size=(40, 8))) < 0.5
    same = np.repeat(rng.normal(size=(2, 8)), 20, axis=0)  # 19 equal neighbours each: any ten of them will do
    assert measure_overlap(same, same + rng.normal(size=same.shape) * 1e-3) == 1
    assert measure_overlap(rows[:11], rows[:11]) is None


def test_differences_and_cosines():
    assert find_largest_difference(np.array([0.1, 0.5]), np.array([0.1, 0.2])) == pytest.approx(0.3)
    assert np.isnan(find_largest_difference(np.array([0.1]), np.array([np.inf])))
    np.testing.assert_allclose(compute_cosines(np.eye(2), np.array([[2, 0], [1, 1]]), 0), [1, 0.5**0.5])


def test_a_slower_profile_is_not_published(bundle, graphs, cases):
    profile = load_profile("fp32")
    report = compare_speed(bundle, [(profile, graphs), (profile, graphs)], cases, rounds=3)
    assert set(report.profile_ms) == {"image_encoder", "text_encoder", "fusion_study"}
    assert min(report.profile_ms.values()) > 0
    assert json.loads(json.dumps(report.to_dict()))["ratio"] == report.ratio
    require_faster(SpeedReport("int8", "fp32", "study", 32, {"a": 1.0}, {"a": 1.5}))
    with pytest.raises(
        ArtifactError, match=r"int8 is not published, .* 2.0 ms under int8, 1.5 ms under fp32"
    ):
        require_faster(SpeedReport("int8", "fp32", "study", 32, {"a": 2.0}, {"a": 1.5}))
    with pytest.raises(ConfigError, match=r"an image and a report"):
        compare_speed(bundle, [(profile, graphs), (profile, graphs)], cases[2:], rounds=3)


def test_the_cosine_of_embeddings_is_that_of_the_joint_space():
    """The label part is the longer one and does not change, and hides the angle in the joint space."""
    labels = np.full((1, 3), 5.0)
    first = np.concatenate([np.array([[1.0, 0.0]]), labels], axis=1)
    second = np.concatenate([np.array([[1.0, 1.0]]), labels], axis=1)
    assert compute_cosines(first, second, 0)[0] > 0.98
    np.testing.assert_allclose(compute_cosines(first, second, 3), [0.5**0.5])
