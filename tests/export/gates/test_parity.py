"""The gate opens for faithful graphs and closes for anything else."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from contract.errors import ConfigError, FingerprintError, ParityError, TensorError
from contract.tensors import GRAPHS, MODELS
from export.gates.parity import OutputParity, ParityCase, check_parity


def perturb(source, target, *, value=None):
    """Copy a graph with its largest weight matrix scaled by 1.05, or with one weight set to `value`."""
    model = onnx.load(source)
    matrices = [
        x for x in model.graph.initializer if len(x.dims) == 2 and x.data_type == onnx.TensorProto.FLOAT
    ]
    largest = max(matrices, key=lambda x: np.prod(x.dims))
    array = onnx.numpy_helper.to_array(largest).copy()
    if value is None:
        array *= 1.05
    else:
        array[0, 0] = value
    largest.CopyFrom(onnx.numpy_helper.from_array(array, largest.name))
    onnx.save(model, target)
    return target


@pytest.fixture(scope="module")
def report(bundle, graphs, cases):
    return check_parity(bundle, graphs, cases)


def test_faithful_graphs_pass_and_every_output_is_in_the_report(report, bundle):
    assert report.passed
    expected = [(name, tensor.name) for name in GRAPHS for tensor in MODELS[name].outputs]
    assert [(output.graph, output.output) for output in report.outputs] == expected
    assert report.fingerprint == bundle.fingerprint
    assert all(output.answers >= 2 for output in report.outputs)


def test_batches_and_both_ends_of_the_text_lengths_were_tried(report):
    assert report.cases == 3
    assert report.batch_sizes == (1, 2, 4, 5)
    assert {32, 256} <= set(report.text_lengths)


def test_report_reads_as_json_and_as_table(report):
    values = json.loads(json.dumps(report.to_dict()))
    assert values["passed"] is True
    assert values["outputs"][0]["graph"] == "image_encoder"
    table = report.to_markdown()
    assert table.count("| ok |") == len(report.outputs)
    assert "cosine distance" in table
    assert report.versions["onnxruntime"] in table
    assert "random pixels" not in table
    assert report.to_sentence().startswith("15 outputs of 5 graphs agree with PyTorch on 3 cases")


@pytest.mark.parametrize("name", GRAPHS)
def test_perturbed_weight_closes_the_gate_and_names_the_graph(name, bundle, graphs, cases, tmp_path):
    changed = {**graphs, name: perturb(graphs[name], tmp_path / f"{name}.onnx")}
    with pytest.raises(ParityError, match=rf"Graph {name} answers differently .* differs by .* the limit is"):
        check_parity(bundle, changed, cases[:1])


@pytest.mark.parametrize("name", ["fusion_image", "fusion_study"])
def test_another_view_head_alone_closes_the_gate(name, bundle, graphs, cases, tmp_path):
    model = onnx.load(graphs[name])
    [head] = [x for x in model.graph.initializer if x.name.endswith("lateral.weight")]
    array = onnx.numpy_helper.to_array(head) * 1.5
    head.CopyFrom(onnx.numpy_helper.from_array(array, head.name))
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(ParityError, match=rf"Graph {name} .*: lateral differs by"):
        check_parity(bundle, {**graphs, name: tmp_path / "changed.onnx"}, cases[:1])


def test_answer_that_is_not_a_number_closes_the_gate(bundle, graphs, cases, tmp_path):
    changed = {**graphs, "fusion_image": perturb(graphs["fusion_image"], tmp_path / "x.onnx", value=np.nan)}
    with pytest.raises(ParityError, match=r"fusion_image .* differs by nan"):
        check_parity(bundle, changed, cases[:1])


def test_nan_is_never_within_a_tolerance():
    assert not OutputParity("g", "o", "difference", float("nan"), 1.0, 1).passed
    assert OutputParity("g", "o", "difference", 1.0, 1.0, 1).passed


def test_graphs_of_another_bundle_are_refused(other_bundle, graphs, cases):
    with pytest.raises(FingerprintError, match=other_bundle.fingerprint[:12]):
        check_parity(other_bundle, graphs, cases)


def test_cases_without_a_report_are_refused(bundle, graphs, cases):
    for chosen in ([], [replace(cases[0], text=None)], [replace(cases[0], text="  ")]):
        with pytest.raises(ConfigError, match="at least one case with a report"):
            check_parity(bundle, graphs, chosen)


def test_every_graph_is_asked_even_where_no_case_has_both(bundle, graphs, cases):
    apart = [replace(cases[0], text=None), cases[2]]
    report = check_parity(bundle, graphs, apart)
    assert not report.drawn_pixels
    assert min(output.answers for output in report.outputs) > 0
    reports_alone = check_parity(bundle, graphs, [cases[2]])
    assert reports_alone.drawn_pixels
    assert "random pixels" in reports_alone.to_markdown()
    assert [x.output for x in reports_alone.outputs] == [x.output for x in report.outputs]


def test_pixels_of_another_size_are_refused(bundle, graphs):
    with pytest.raises(TensorError, match="pixels must have shape"):
        check_parity(bundle, graphs, [ParityCase(np.zeros((1, 64, 64), np.uint8), "clear")])
