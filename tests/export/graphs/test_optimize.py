"""Fused operators: they are there, they are counted, the answers stay, and one that is missing is an error."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from contract.errors import ArtifactError
from contract.tensors import GRAPHS, MODELS
from export.gates.parity import check_parity
from export.graphs import optimize
from export.graphs.checks import read_fingerprint
from export.graphs.from_torch import keep_reduced_axes
from export.graphs.optimize import check_fusions, count_fusions, expect_fusions, optimize_graphs


def test_every_graph_for_a_gpu_holds_what_its_model_needs(optimized, bundle, graphs):
    assert list(optimized.fusions) == list(GRAPHS)
    assert optimized.fusions["text_encoder"] == {"MultiHeadAttention": 2, "LayerNormalization": 5, "Gelu": 2}
    assert optimized.fusions["image_encoder"] == {
        "MultiHeadAttention": 3,
        "LayerNormalization": 11,
        "Gelu": 4,
    }
    assert optimized.fusions["fusion_study"] == {"MultiHeadAttention": 4, "LayerNormalization": 8, "Gelu": 5}
    for name in GRAPHS:
        assert optimized.fusions[name] == expect_fusions(bundle, name, graphs[name])
        assert (
            count_fusions(graphs[name])["Gelu"] == 0
        )  # as exported, the only fused operator is LayerNormalization
        assert optimized.paths[name] != graphs[name]


def test_optimised_graphs_answer_as_the_model_does_alone_and_in_batches(optimized, bundle, cases):
    assert check_parity(bundle, optimized.paths, cases).passed


def test_opset_inputs_and_fingerprint_stay(optimized, bundle):
    for name, path in optimized.paths.items():
        model = onnx.load(path)
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        assert opsets[""] >= 17
        assert read_fingerprint(path) == bundle.fingerprint
        assert [value.name for value in model.graph.input] == [tensor.name for tensor in MODELS[name].inputs]
        assert not model.functions


def test_constants_are_folded(graphs):
    for path in graphs.values():
        model = onnx.load(path)
        weights = {value.name for value in model.graph.initializer}
        assert [node.op_type for node in model.graph.node if node.input and set(node.input) <= weights] == []
        assert not any(node.op_type == "Constant" for node in model.graph.node)


def test_on_a_processor_only_the_encoders_change(bundle, graphs, tmp_path):
    found = optimize_graphs(bundle, graphs, tmp_path / "new", target="cpu")
    changed = [name for name, path in found.paths.items() if path != graphs[name]]
    assert changed == ["image_encoder", "text_encoder"] == list(found.fusions)


def test_attention_gets_lengths_instead_of_an_expanded_mask(optimized):
    """ONNX Runtime before 1.20 runs no bias (B, 1, Q, L), and CUDA's fused kernels in float16 take none."""
    expected = {"text_encoder": 2, "fusion_study": 2, "fusion_text": 1, "fusion_image": 0, "image_encoder": 0}
    for name, path in optimized.paths.items():
        graph = onnx.load(path).graph
        weights = {weight.name for weight in graph.initializer}
        made_by = {output: node for node in graph.node for output in node.output}
        masked = 0
        for node in graph.node:
            if node.op_type != "MultiHeadAttention":
                continue
            _, _, _, _, padding, bias = [*node.input, *[""] * 6][:6]
            assert bias in weights | {""}, (name, node.name)
            if padding:
                masked += 1
                assert made_by[padding].op_type == "ReduceSum"
        assert masked == expected[name], name


def test_lengths_say_what_the_mask_says(optimized, graphs, bundle):
    """Texts of every length from one token to all, beside each other, as the graph without fused operators."""
    generator = np.random.default_rng(0)
    lengths = np.array([1, 2, 31, 32, 63, 64, 200, 256])
    mask = (np.arange(256) < lengths[:, None]).astype(np.int64)
    ids = generator.integers(0, bundle.config["model"]["vocabulary_size"], mask.shape)
    feed = {"input_ids": ids, "attention_mask": mask}
    answers = [
        onnxruntime.InferenceSession(str(files["text_encoder"]), providers=["CPUExecutionProvider"]).run(
            None, feed
        )[0]
        for files in (graphs, optimized.paths)
    ]
    np.testing.assert_allclose(*answers, rtol=0, atol=1e-5)


@pytest.mark.parametrize("operator", ["Unsqueeze", "Mul"])
def test_a_mask_that_is_written_in_a_new_way_is_an_error(operator, graphs):
    """Nobody may guess what a bias means."""
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model, _ = optimize_for_ort(ir.load(graphs["text_encoder"]))
    attention = next(node for node in model.graph if node.op_type == "MultiHeadAttention")
    value = attention.inputs[5]
    while (node := value.producer()).op_type != operator:
        value = node.inputs[0]
    between = ir.node("Identity", [value])
    model.graph.insert_after(node, between)
    value.replace_all_uses_with(between.outputs[0])
    between.replace_input_with(0, value)
    with pytest.raises(ArtifactError, match=rf"The bias of the attention {attention.name} has a pattern"):
        optimize.replace_expanded_biases(model)


@pytest.mark.parametrize("name", ["text_encoder", "image_encoder"])
def test_a_fusion_that_disappears_is_an_error(name, bundle, graphs, tmp_path, monkeypatch):
    monkeypatch.setattr(optimize, "_optimize", _copy)
    with pytest.raises(ArtifactError, match=r"holds 0 fused MultiHeadAttention operators, .* needs [23]"):
        optimize_graphs(bundle, {name: graphs[name]}, tmp_path, target="cpu")


def _copy(source, path):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(source.read_bytes())


def test_each_family_is_held_to_its_count():
    expected = {"MultiHeadAttention": 2, "LayerNormalization": 5, "Gelu": 2}
    check_fusions("text_encoder", {**expected, "Gelu": 3}, expected)
    for family, count in expected.items():
        found = {**expected, family: count - 1}
        message = rf"text_encoder holds {count - 1} fused {family} operators, .* needs {count}"
        with pytest.raises(ArtifactError, match=message):
            check_fusions("text_encoder", found, expected)


def test_a_stage_as_small_as_its_window_shifts_nothing(bundle):
    """Swin-T at 224 pixels: every second block of three stages is shifted, the last stage (7 x 7) is not."""
    config = {
        "image_depths": [2, 2, 6, 2],
        "image_size": 224,
        "image_patch": 4,
        "image_window": 7,
    }
    tiny = replace(bundle, config={"model": config})
    assert expect_fusions(tiny, "image_encoder", Path("not read")) == {
        "MultiHeadAttention": 7,
        "LayerNormalization": 29,
        "Gelu": 12,
    }
    with pytest.raises(ArtifactError, match=r"lacks the sizes of its model"):
        expect_fusions(tiny, "text_encoder", Path("not read"))


def test_another_backbone_is_held_to_what_its_graph_holds(bundle, graphs):
    """Swin's attentions add a table to their scores, so none counts by the rule for a ViT; norms and Gelus do."""
    config = {"image_backbone": "vit_tiny_patch16_224"}
    other = replace(bundle, config={"model": config})
    found = expect_fusions(other, "image_encoder", graphs["image_encoder"])
    assert found == {"MultiHeadAttention": 0, "LayerNormalization": 11, "Gelu": 4}
    with pytest.raises(ArtifactError, match=r"holds 0 fused Gelu operators, .* needs 4"):
        check_fusions("image_encoder", {**found, "Gelu": 0}, found)


def test_reductions_keep_their_axes_and_their_numbers(tmp_path):
    """OpenVINO 2026.4 adds a constant behind a ReduceSum without keepdims to the wrong elements."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=0, name="sum"),
        helper.make_node("Add", ["sum", "bias"], ["y"]),
    ]
    weights = [
        helper.make_tensor("axes", TensorProto.INT64, [1], [-1]),
        helper.make_tensor("bias", TensorProto.FLOAT, [22], np.linspace(-2, 2, 22)),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 22, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 22])
    graph = helper.make_graph(nodes, "sum", [x], [y], weights)
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model = ir.from_proto(plain)
    keep_reduced_axes(model)
    kept = ir.to_proto(model)
    onnx.checker.check_model(kept, full_check=True)
    assert [node.op_type for node in kept.graph.node] == ["ReduceSum", "Squeeze", "Add"]
    feed = {"x": np.random.default_rng(0).normal(size=(3, 22, 8)).astype(np.float32)}
    before, after = (
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, feed
        )[0]
        for proto in (plain, kept)
    )
    np.testing.assert_array_equal(before, after)


def test_no_exported_reduction_drops_its_axes(graphs):
    for path in graphs.values():
        for node in onnx.load(path).graph.node:
            if node.op_type.startswith("Reduce"):
                assert [x.i for x in node.attribute if x.name == "keepdims"] == [1]
