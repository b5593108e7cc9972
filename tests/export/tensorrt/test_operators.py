"""What TensorRT cannot take is found in a file, with the node's name, without TensorRT."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from contract.errors import ArtifactError
from contract.tensors import GRAPHS
from export.tensorrt.operator_table import DATA_DEPENDENT, DATA_TYPES
from export.tensorrt.operators import check_operators, require_operators


def write_graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    *,
    data_type: int = TensorProto.FLOAT,
    output_type: int = TensorProto.FLOAT,
    opset: int = 18,
    weights: Sequence[onnx.TensorProto] = (),
) -> Path:
    """Write a graph from `x` (batch, 4) to `y`."""
    inputs = [helper.make_tensor_value_info("x", data_type, ["batch", 4])]
    outputs = [helper.make_tensor_value_info("y", output_type, None)]
    graph = helper.make_graph(list(nodes), "small", inputs, outputs, initializer=list(weights))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports), path)
    return path


def check_one(path: Path, operator: str, text: str) -> None:
    """The file has one problem: at the node `bad`, of this operator, with this text."""
    problems = check_operators(path)
    assert [(problem.node, problem.operator) for problem in problems] == [("bad", operator)], problems
    assert text in problems[0].reason


def test_the_graphs_of_the_model_are_clean(graphs: dict[str, Path]) -> None:
    assert sorted(graphs) == sorted(GRAPHS)
    for path in graphs.values():
        assert check_operators(path) == []
        require_operators(path)


def test_the_older_release_cannot_take_int64_and_opset_18(graphs: dict[str, Path]) -> None:
    problems = check_operators(graphs["text_encoder"], (8, 6, 1))
    assert {problem.operator for problem in problems} == {"opset", "input"}
    assert {problem.node for problem in problems} >= {"input_ids", "attention_mask"}
    assert "INT32" in str(problems[-1])


@pytest.mark.parametrize(
    "operator", sorted(DATA_DEPENDENT - {"Loop", "Scan", "NonMaxSuppression", "Compress"})
)
def test_shapes_that_depend_on_data_are_refused(tmp_path: Path, operator: str) -> None:
    nodes = [
        helper.make_node(operator, ["x"], ["found"], name="bad"),
        helper.make_node("Cast", ["found"], ["y"], name="cast", to=TensorProto.FLOAT),
    ]
    check_one(write_graph(tmp_path / "g.onnx", nodes), operator, "depends on the data")


def test_operators_of_onnxruntime_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("FastGelu", ["x"], ["y"], name="bad", domain="com.microsoft")
    check_one(write_graph(tmp_path / "g.onnx", [node]), "FastGelu", "com.microsoft")


def test_an_operator_that_is_not_supported_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Det", ["x"], ["y"], name="bad")
    path = write_graph(tmp_path / "g.onnx", [node])
    check_one(path, "Det", "does not support")
    with pytest.raises(
        ArtifactError, match=r"TensorRT 11\.1 cannot read .*g\.onnx: node bad \(Det\): .*support"
    ):
        require_operators(path)


def test_a_node_without_a_name_goes_by_its_output(tmp_path: Path) -> None:
    problems = check_operators(
        write_graph(tmp_path / "g.onnx", [helper.make_node("Det", ["x"], ["y"], name="")])
    )
    assert problems[0].node == "y"


def test_uint8_needs_a_cast(tmp_path: Path) -> None:
    direct = helper.make_node("Relu", ["x"], ["y"], name="bad")
    given = {"data_type": TensorProto.UINT8, "output_type": TensorProto.UINT8}
    check_one(write_graph(tmp_path / "bad.onnx", [direct], **given), "Relu", "so it needs a Cast first")
    nodes = [
        helper.make_node("Cast", ["x"], ["z"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Relu", ["z"], ["y"], name="relu"),
    ]
    assert check_operators(write_graph(tmp_path / "good.onnx", nodes, data_type=TensorProto.UINT8)) == []


def test_uint8_becomes_float_alone(tmp_path: Path) -> None:
    node = helper.make_node("Cast", ["x"], ["y"], name="bad", to=TensorProto.INT64)
    given = {"data_type": TensorProto.UINT8, "output_type": TensorProto.INT64}
    check_one(write_graph(tmp_path / "g.onnx", [node], **given), "Cast", "FLOAT and FLOAT16 only")


def test_float64_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["z"], name="bad", to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["z"], ["y"], name="back", to=TensorProto.FLOAT),
    ]
    assert {problem.node for problem in check_operators(write_graph(tmp_path / "g.onnx", nodes))} == {
        "bad",
        "back",
    }


def test_text_inputs_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"], name="copy")
    given = {"data_type": TensorProto.STRING, "output_type": TensorProto.STRING}
    problems = check_operators(write_graph(tmp_path / "g.onnx", [node], **given))
    assert [problem.node for problem in problems] == ["x", "y", "copy"]


def test_axes_must_be_constant(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["axes"], name="shape"),
        helper.make_node("ReduceSum", ["x", "axes"], ["y"], name="bad"),
    ]
    check_one(write_graph(tmp_path / "bad.onnx", nodes), "ReduceSum", "axes must be a constant")
    axes = numpy_helper.from_array(np.array([1]), "axes")
    good = write_graph(tmp_path / "good.onnx", nodes[1:], weights=[axes])
    assert check_operators(good) == []


def test_the_other_outputs_of_layer_normalization_are_refused(tmp_path: Path) -> None:
    scale = numpy_helper.from_array(np.ones(4, np.float32), "scale")
    node = helper.make_node("LayerNormalization", ["x", "scale"], ["y", "mean"], name="bad")
    check_one(
        write_graph(tmp_path / "g.onnx", [node], weights=[scale]),
        "LayerNormalization",
        "only its first output",
    )


@pytest.mark.parametrize(
    ("operator", "attributes", "text"),
    [
        ("TopK", {"sorted": 0}, "sorted must be 1, not 0"),
        ("ScatterND", {"reduction": "add"}, "reduction must be none, not add"),
        ("MaxPool", {"kernel_shape": [2], "dilations": [2]}, "dilations must be 1, not [2]"),
        ("Constant", {"value_string": "a"}, "value_string is not supported"),
    ],
)
def test_attributes_that_are_refused(tmp_path: Path, operator: str, attributes: dict, text: str) -> None:
    node = helper.make_node(operator, ["x"], ["y"], name="bad", **attributes)
    check_one(write_graph(tmp_path / "g.onnx", [node]), operator, text)


def test_graphs_inside_a_node_are_checked(tmp_path: Path) -> None:
    def branch(name: str, operator: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"out_{name}", TensorProto.FLOAT, None)
        return helper.make_graph(
            [helper.make_node(operator, ["x"], [f"out_{name}"], name=name)], name, [], [out]
        )

    flag = numpy_helper.from_array(np.array(True), "flag")
    node = helper.make_node(
        "If", ["flag"], ["y"], name="if", then_branch=branch("fine", "Relu"), else_branch=branch("bad", "Det")
    )
    check_one(write_graph(tmp_path / "g.onnx", [node], weights=[flag]), "Det", "does not support")


@pytest.mark.parametrize(
    ("opset", "version", "clean"), [(22, (10, 6), True), (22, (10, 5), False), (8, (10, 6), False)]
)
def test_the_opset_must_be_one_that_the_parser_reads(
    tmp_path: Path, opset: int, version: tuple[int, ...], clean: bool
) -> None:
    path = write_graph(
        tmp_path / "g.onnx", [helper.make_node("Relu", ["x"], ["y"], name="relu")], opset=opset
    )
    assert (check_operators(path, version) == []) is clean


def test_a_file_that_is_no_graph_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"\xffnot a graph")
    with pytest.raises(ArtifactError, match="is not an ONNX graph"):
        check_operators(tmp_path / "g.onnx")
    with pytest.raises(ArtifactError, match="There is no graph"):
        check_operators(tmp_path / "absent.onnx")


def test_the_table_names_operators_of_onnx() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert set(DATA_TYPES) - known == set()
    assert set().union(*DATA_TYPES.values()) <= set(TensorProto.DataType.keys())
