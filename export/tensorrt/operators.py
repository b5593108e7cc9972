"""Check that TensorRT's parser can read an ONNX graph: its operators, data types, attributes and shapes.

The parser itself needs a GPU and TensorRT. This check runs on any machine, does not read weights, and names the node.
`export.tensorrt.operator_table` holds the facts and their source.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx

from contract.errors import ArtifactError
from export.graphs.checks import load_graph
from export.tensorrt.operator_table import (
    CONSTANT_INPUTS,
    DATA_DEPENDENT,
    DATA_TYPES,
    FIXED_ATTRIBUTES,
    NEWEST_OPSETS,
    NO_DILATIONS,
    OLDEST_OPSET,
    ONE_OUTPUT,
    REFUSED_ATTRIBUTES,
)

Version = tuple[int, ...]

RELEASE: Final[Version] = (11, 1)  # of NVIDIA's images 26.07: TRT_VERSION=11.1.0.106
_ONNX_DOMAINS: Final = ("", "ai.onnx")
_BOUNDARY_TYPES: Final = frozenset(
    {"FLOAT", "FLOAT16", "BFLOAT16", "INT32", "INT64", "UINT8", "INT8", "BOOL"}
)
_INT64_SINCE: Final[Version] = (9,)  # earlier parsers turn INT64 inputs into INT32


@dataclass(frozen=True)
class OperatorProblem:
    """One part of a graph that TensorRT does not support. `node` is the name of a node, an input or an output."""

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        """Return node, operator and reason as a clause of a message."""
        return f"node {self.node} ({self.operator}): {self.reason}"


@dataclass(frozen=True)
class _Scope:
    """The tensors of a graph: data types by name, names of constants; and the graph's own functions."""

    types: Mapping[str, str]
    constants: frozenset[str]
    functions: frozenset[tuple[str, str]]


def check_operators(path: Path, version: Version = RELEASE) -> list[OperatorProblem]:
    """Return the parts of an ONNX file that TensorRT does not support, in the order of the graph.

    Args:
        path: The ONNX file. A file of weights beside it is not needed.
        version: The TensorRT release, such as (10, 5).

    Raises:
        ArtifactError: The file is not an ONNX graph.
    """
    model = load_graph(path)
    scope = _make_scope(model)
    problems = [*_check_opset(model, version), *_check_boundary(model.graph, version)]
    for node in _walk(model.graph.node):
        problems += _check_node(node, scope)
    for function in model.functions:
        for node in _walk(function.node):
            problems += _check_node(node, scope)
    return problems


def require_operators(path: Path, version: Version = RELEASE) -> None:
    """Raise ArtifactError with the first node and the reason if TensorRT does not support an ONNX file."""
    problems = check_operators(path, version)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        release = ".".join(map(str, version))
        raise ArtifactError(f"TensorRT {release} cannot read {path}: {problems[0]}{more}.")


def read_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values, with text as str."""
    values = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    return {
        name: value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        for name, value in values.items()
    }


def name_node(node: onnx.NodeProto) -> str:
    """Return the node's name, or the name of its first output if it has no name."""
    return node.name or next(iter(node.output), "(unnamed)")


def _walk(nodes: Any) -> Iterator[onnx.NodeProto]:
    """Yield nodes and, after each node, the nodes of the graphs inside it (If, Loop, Scan)."""
    for node in nodes:
        yield node
        for entry in node.attribute:
            for graph in (entry.g, *entry.graphs):
                yield from _walk(graph.node)


def infer_types(model: onnx.ModelProto) -> dict[str, str]:
    """Return tensor name -> ONNX data type such as "FLOAT", from the graph and from inference if it succeeds."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:
        # Inference fails at an operator of another domain. The types in the file are still used.
        graph = model.graph
    values = [*graph.input, *graph.value_info, *graph.output]
    types = {value.name: _name_type(value.type.tensor_type.elem_type) for value in values}
    return types | {weight.name: _name_type(weight.data_type) for weight in graph.initializer}


def _make_scope(model: onnx.ModelProto) -> _Scope:
    constants = {weight.name for weight in model.graph.initializer}
    constants |= {
        name for node in _walk(model.graph.node) if node.op_type == "Constant" for name in node.output
    }
    functions = frozenset((function.domain, function.name) for function in model.functions)
    return _Scope(infer_types(model), frozenset(constants), functions)


def _name_type(data_type: int) -> str:
    return onnx.TensorProto.DataType.Name(data_type)


def _check_opset(model: onnx.ModelProto, version: Version) -> Iterator[OperatorProblem]:
    opset = next((entry.version for entry in model.opset_import if entry.domain in _ONNX_DOMAINS), 0)
    newest = next(opset for since, opset in NEWEST_OPSETS if version >= since)
    if not OLDEST_OPSET <= opset <= newest:
        reason = f"opset {opset} is not within {OLDEST_OPSET} to {newest}"
        yield OperatorProblem(model.graph.name or "graph", "opset", reason)


def _check_boundary(graph: onnx.GraphProto, version: Version) -> Iterator[OperatorProblem]:
    weights = {weight.name for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    for role, values in (("input", inputs), ("output", graph.output)):
        for value in values:
            data_type = _name_type(value.type.tensor_type.elem_type)
            if data_type not in _BOUNDARY_TYPES:
                yield OperatorProblem(
                    value.name, role, f"a plan cannot have an {role} of data type {data_type}"
                )
            elif data_type == "INT64" and version < _INT64_SINCE:
                reason = f"TensorRT {version[0]} turns it into INT32, but the served models exchange INT64"
                yield OperatorProblem(value.name, role, reason)


def _check_node(node: onnx.NodeProto, scope: _Scope) -> Iterator[OperatorProblem]:
    reasons = [_find_unknown(node, scope)]
    if reasons == [None]:
        reasons = [
            *_find_bad_types(node, scope),
            *_find_bad_inputs(node, scope),
            *_find_bad_attributes(node),
            *_find_bad_cast(node, scope),
        ]
    for reason in reasons:
        if reason:
            yield OperatorProblem(name_node(node), node.op_type, reason)


def _find_unknown(node: onnx.NodeProto, scope: _Scope) -> str | None:
    if (node.domain, node.op_type) in scope.functions:
        return None  # the parser reads local functions, and their nodes are checked too
    if node.domain not in _ONNX_DOMAINS:
        return (
            f"its domain {node.domain} is not part of ONNX. Use the bundle, or a repository that was published with "
            "--target tensorrt"
        )
    if node.op_type in DATA_DEPENDENT:
        return "the shape of its result depends on the data"
    if node.op_type not in DATA_TYPES:
        return "TensorRT does not support this operator"
    return None


def _find_bad_types(node: onnx.NodeProto, scope: _Scope) -> Iterator[str]:
    allowed = DATA_TYPES.get(node.op_type)
    if allowed is None:
        return
    for name in _find_data(node):
        data_type = scope.types.get(name, "UNDEFINED")
        if data_type == "UINT8" and "UINT8" not in allowed:
            yield f"{name} is UINT8, which only inputs and outputs of a plan may be, so it needs a Cast first"
        elif data_type not in allowed and data_type != "UNDEFINED":
            yield f"{name} is {data_type}, but only {', '.join(sorted(allowed))} are supported"


def _find_data(node: onnx.NodeProto) -> list[str]:
    """Return the tensors whose data types the support document lists: the data, not indices, shapes or axes."""
    if node.op_type == "Cast":
        return [*node.input, *node.output]
    if node.op_type in {"Constant", "If"}:
        return list(node.output)
    if node.op_type == "Where":  # (condition, values, values)
        return list(node.input[1:])
    if node.op_type in {"Concat", "Max", "Min", "Mean", "Sum"}:
        return list(node.input)
    return list(node.input[:1])


def _find_bad_inputs(node: onnx.NodeProto, scope: _Scope) -> Iterator[str]:
    position, name = CONSTANT_INPUTS.get(node.op_type, (len(node.input), ""))
    if position < len(node.input) and node.input[position] not in scope.constants | {""}:
        yield f"its {name} must be a constant of the graph"
    if node.op_type in ONE_OUTPUT and any(node.output[1:]):
        yield "only its first output is supported"


def _find_bad_attributes(node: onnx.NodeProto) -> Iterator[str]:
    given = read_attributes(node)
    for name, value in FIXED_ATTRIBUTES.get(node.op_type, {}).items():
        if given.get(name, value) != value:
            yield f"{name} must be {value}, not {given[name]}"
    for name in REFUSED_ATTRIBUTES.get(node.op_type, frozenset()) & given.keys():
        yield f"the attribute {name} is not supported"
    if node.op_type in NO_DILATIONS and any(step != 1 for step in given.get("dilations", ())):
        yield f"dilations must be 1, not {list(given['dilations'])}"


def _find_bad_cast(node: onnx.NodeProto, scope: _Scope) -> Iterator[str]:
    """Yield a reason if a Cast converts UINT8 to or from another type than float32 or float16 (DataType.UINT8)."""
    if node.op_type != "Cast":
        return
    types = {scope.types.get(name, "UNDEFINED") for name in (*node.input, *node.output)}
    if "UINT8" in types and types & {"BFLOAT16", "INT32", "INT64", "BOOL"}:
        yield "UINT8 is converted to and from FLOAT and FLOAT16 only"
