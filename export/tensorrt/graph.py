"""Read from an ONNX graph the facts for a TensorRT build: its data types, and the nodes that stay in fp32."""

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
OLDEST_RELEASE: Final[Version] = (10,)  # the first with INT64 inputs and opset 18
# From this release on builders have no precision flags, so the data types come from the graph.
_STRONG_ONLY_SINCE: Final[Version] = (11,)

# In half precision the variance of a LayerNorm and long sums lose digits or overflow (TensorRT issues 1262 and 4493).
_SENSITIVE: Final = frozenset({"Softmax", "LogSoftmax", "Pow", "CumSum"})
_SENSITIVE_WORDS: Final = ("Normalization", "Reduce")
_FP16_LARGEST: Final = float(np.finfo(np.float16).max)
_FP16_SMALLEST: Final = float(np.finfo(np.float16).tiny)


@dataclass(frozen=True)
class PlanRequest:
    """All settings of one plan, so that a builder decides nothing.

    Attributes:
        graph: The ONNX file.
        plan: The new file.
        timing_cache: The builder's timing cache.
        profiles: The ranges of shapes of the plan, each with the shape that it is tuned for.
        precision: Precision of the plan.
        strongly_typed: Whether the plan has the data types of the graph. Otherwise the builder chooses them.
        fp32_nodes: ONNX nodes that stay in fp32 if the builder chooses the data types.
        workspace_mib: Workspace of the builder in MiB.
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

    A converted graph, which has tensors in half precision, decides its data types itself. For a graph in fp32 the plan
    `fp32` is strongly typed too. For `fp16` and `bf16` the builder chooses data types, which TensorRT 11 cannot do.

    Args:
        graph: The ONNX file.
        wanted: The precision that the user chose.
        version: The TensorRT release.

    Raises:
        ConfigError: This TensorRT cannot build the wanted precision from this graph.
    """
    precision = read_precision(graph)
    if precision != "fp32":
        return precision, True
    if wanted == "fp32":
        return "fp32", True
    if version >= _STRONG_ONLY_SINCE:
        release = ".".join(map(str, version))
        raise ConfigError(
            f"TensorRT {release} takes data types from the graph, and {graph} is in fp32. Build with --precision fp32, "
            "or use a repository that was published with --target tensorrt --profile fp16."
        )
    return wanted, False


def read_precision(graph: Path) -> Precision:
    """Return the precision of a graph: fp16 or bf16 if any tensor has it, otherwise fp32."""
    types = set(infer_types(load_graph(graph)).values())
    if "FLOAT16" in types:
        return "fp16"
    return "bf16" if "BFLOAT16" in types else "fp32"


def find_fp32_nodes(graph: Path) -> tuple[str, ...]:
    """Return the nodes of an fp32 graph that need fp32, in the order of the graph.

    They are normalisations, softmax, sums over an axis, powers, and nodes with a constant that fp16 cannot hold. In
    fp16 a divisor of 1e-12 would be 0, and a mask of -1e9 would be minus infinity.

    Raises:
        ArtifactError: One of them has no name. Builders identify nodes by name.
    """
    model = load_graph(graph)
    types, extreme = infer_types(model), set(_find_extreme_constants(model))
    names = []
    for node in model.graph.node:
        sensitive = node.op_type in _SENSITIVE or any(word in node.op_type for word in _SENSITIVE_WORDS)
        if types.get(node.output[0]) == "FLOAT" and (sensitive or extreme.intersection(node.input)):
            if not node.name:
                raise ArtifactError(
                    f"{graph}: the node {name_node(node)} needs a name, because it stays in fp32."
                )
            names.append(node.name)
    return tuple(names)


def _find_extreme_constants(model: onnx.ModelProto) -> Iterator[str]:
    """Yield the float constants that fp16 cannot hold: any element too large, or a single number too close to 0."""
    tensors = {weight.name: weight for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors.update((node.output[0], entry.t) for entry in node.attribute if entry.name == "value")
    for name, tensor in tensors.items():
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.data_location == onnx.TensorProto.EXTERNAL:
            continue
        magnitudes = np.abs(onnx.numpy_helper.to_array(tensor))
        vanishes = magnitudes.size == 1 and 0 < magnitudes.item() < _FP16_SMALLEST
        if vanishes or (magnitudes.size and magnitudes.max() > _FP16_LARGEST):
            yield name
