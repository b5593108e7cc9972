"""What a TensorRT build must know of an ONNX graph: its data types, and which nodes stay in fp32."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx

from contract.errors import ArtifactError, ConfigError
from export.graphs.checks import load_graph
from export.tensorrt.operators import Version, infer_types, name_node
from export.tensorrt.shapes import Profile

Precision = Literal["fp32", "fp16", "bf16"]

PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "fp16", "bf16")
OLDEST_RELEASE: Final[Version] = (10,)  # the first that takes INT64 inputs and opset 18
# Later builders have no precision flags: types come from the graph.
_STRONG_ONLY_SINCE: Final[Version] = (11,)

# In half precision the variance of a LayerNorm and long sums lose their last digits or overflow (TensorRT issues
# 1262 and 4493).
_SENSITIVE: Final = frozenset({"Softmax", "LogSoftmax", "Pow", "CumSum"})
_SENSITIVE_WORDS: Final = ("Normalization", "Reduce")
_FP16_LARGEST: Final = float(np.finfo(np.float16).max)
_FP16_SMALLEST: Final = float(np.finfo(np.float16).tiny)


@dataclass(frozen=True)
class PlanRequest:
    """One plan to build; everything is decided, so that a builder only carries it out.

    `profiles` are the ranges of shapes that it takes, each with the shape that it is tuned for. `fp32_nodes` are the
    ONNX nodes that stay in fp32 where the builder chooses the data types of the others; with `strongly_typed` the
    graph's own data types hold and there are none.
    """

    graph: Path
    plan: Path
    timing_cache: Path
    profiles: tuple[Profile, ...]
    precision: Precision
    strongly_typed: bool
    fp32_nodes: tuple[str, ...]
    workspace_mib: int


def choose_precision(graph: Path, wanted: Precision, version: Version) -> tuple[Precision, bool]:
    """Return the precision of a plan, and whether its network is strongly typed.

    A graph that was converted (it holds half-precision tensors) states its data types, and they hold. From a graph
    in fp32, `fp32` is strongly typed too; `fp16` and `bf16` let the builder choose, which TensorRT 11 ended.

    Raises:
        ConfigError: This TensorRT cannot make `wanted` from this graph.
    """
    found = read_precision(graph)
    if found != "fp32":
        return found, True
    if wanted == "fp32":
        return "fp32", True
    if version >= _STRONG_ONLY_SINCE:
        release = ".".join(map(str, version))
        raise ConfigError(
            f"TensorRT {release} takes data types from the graph, and {graph} is fp32: build with --precision fp32, "
            "or give a repository that was published with --target tensorrt --profile fp16."
        )
    return wanted, False


def read_precision(graph: Path) -> Precision:
    """Return what a graph's weights and casts are made of: fp16 or bf16 where any is, else fp32."""
    found = set(infer_types(load_graph(graph)).values())
    if "FLOAT16" in found:
        return "fp16"
    return "bf16" if "BFLOAT16" in found else "fp32"


def find_fp32_nodes(graph: Path) -> tuple[str, ...]:
    """Return the nodes of an fp32 graph that half precision would spoil, in the order of the graph.

    They are normalisations, softmax, sums over an axis, powers, and what reads a constant that fp16 cannot hold
    (the 1e-12 under a division would be 0, a mask of -1e9 minus infinity).

    Raises:
        ArtifactError: One of them has no name, so that no builder could be told of it.
    """
    model = load_graph(graph)
    types, extreme = infer_types(model), set(_find_extreme_constants(model))
    names = []
    for node in model.graph.node:
        floating = types.get(node.output[0]) == "FLOAT"
        if floating and (_is_sensitive(node.op_type) or extreme.intersection(node.input)):
            if not node.name:
                raise ArtifactError(f"{graph}: the node {name_node(node)} needs a name to stay in fp32.")
            names.append(node.name)
    return tuple(names)


def _is_sensitive(operator: str) -> bool:
    return operator in _SENSITIVE or any(word in operator for word in _SENSITIVE_WORDS)


def _find_extreme_constants(model: onnx.ModelProto) -> Iterator[str]:
    """Yield float constants beyond fp16: any element too large, or a lone number too close to 0."""
    tensors = {weight.name: weight for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors.update((node.output[0], entry.t) for entry in node.attribute if entry.name == "value")
    for name, tensor in tensors.items():
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.data_location == onnx.TensorProto.EXTERNAL:
            continue
        sizes = np.abs(onnx.numpy_helper.to_array(tensor))
        lone = sizes.size == 1 and 0 < sizes.item() < _FP16_SMALLEST
        if lone or (sizes.size and sizes.max() > _FP16_LARGEST):
            yield name
