"""The ONNX graph of a TensorRT plan, in the precision that the plan computes in.

TensorRT 11 takes the data types of a plan from its graph, and TensorRT 10 can do so too (a strongly typed network). So
the graph is converted first, by the same functions that convert graphs for ONNX Runtime. TensorRT chooses no data type.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from export.graphs.checks import load_graph
from export.graphs.convert import CONVERSIONS
from export.tensorrt.operators import Version, infer_types
from export.tensorrt.shapes import Profile

Precision = Literal["fp32", "fp16", "bf16"]

PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "fp16", "bf16")
OLDEST_RELEASE: Final[Version] = (10,)  # the first with INT64 inputs and opset 18


@dataclass(frozen=True)
class PlanRequest:
    """All settings of one plan, so that a builder decides nothing.

    Attributes:
        graph: The ONNX file. The plan has its data types.
        plan: The new file.
        timing_cache: The builder's timing cache.
        profiles: The ranges of shapes of the plan, each with the shape that it is tuned for.
        precision: Precision of the graph.
        workspace_mib: Workspace of the builder in MiB.
    """

    graph: Path
    plan: Path
    timing_cache: Path
    profiles: tuple[Profile, ...]
    precision: Precision
    workspace_mib: int


def convert_graph(graph: Path, wanted: Precision, out: Path) -> tuple[Path, Precision]:
    """Convert a float32 graph to the precision of its plan. A graph in half precision keeps its own.

    LayerNorm, Softmax and sums stay in float32, because a variance or a long sum loses digits or overflows in float16
    (TensorRT issues 1262 and 4493).

    Args:
        graph: The ONNX file.
        wanted: The precision that the user chose.
        out: The new file.

    Returns:
        The file of the plan's graph, which is `graph` if nothing was converted, and its precision.

    Raises:
        ArtifactError: The graph cannot be read, or the disk refused the write.
    """
    precision = read_precision(graph)
    if precision != "fp32" or wanted == "fp32":
        return graph, precision
    CONVERSIONS[wanted](graph, out)
    return out, wanted


def read_precision(graph: Path) -> Precision:
    """Return the precision of a graph: fp16 or bf16 if any tensor has it, otherwise fp32."""
    types = set(infer_types(load_graph(graph)).values())
    if "FLOAT16" in types:
        return "fp16"
    return "bf16" if "BFLOAT16" in types else "fp32"
