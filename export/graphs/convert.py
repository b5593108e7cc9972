"""Graphs in float32 -> the graphs of a precision profile: fused operators, bfloat16, float16 or int8.

Names, shapes and data types of inputs and outputs stay; every file is held to the tensor table again. What the
conversion costs in accuracy is measured elsewhere (`export.gates.precision`).
"""

import gc
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from contract.bundle import Bundle
from contract.tensors import MODELS
from export.graphs.checks import read_sizes, seal_graph
from export.graphs.optimize import optimize_graphs, save_graph
from export.profiles import Profile

GROUP: Final = 128  # of weights that share a scale
_PRODUCTS: Final = ("MatMul", "Gemm")
# In half precision a variance or a long sum loses its last digits or overflows (NVIDIA/TensorRT issues 1262, 4493).
_KEPT_FLOAT: Final = (
    "LayerNormalization",
    "SkipLayerNormalization",
    "Softmax",
    "ReduceSum",
    "ReduceMean",
    "Pow",
    "Sqrt",
    "Clip",
    "Sigmoid",
)


@dataclass(frozen=True)
class ConvertedGraphs:
    """The files that a profile publishes, by graph name.

    Attributes:
        paths: Graph name -> file; a graph that nothing was done to keeps its file.
        fusions: Fused operators of each family in the graphs optimised for ONNX Runtime.
        converted: Names of the graphs whose numbers changed.
    """

    paths: dict[str, Path]
    fusions: dict[str, dict[str, int]] = field(default_factory=dict)
    converted: tuple[str, ...] = ()


def convert_graphs(
    bundle: Bundle,
    graphs: Mapping[str, Path],
    profile: Profile,
    out: Path,
    *,
    target: str | None = None,
    kept: Mapping[str, Collection[str]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ConvertedGraphs:
    """Make the graphs of a profile.

    Args:
        bundle: The bundle that the graphs were made from.
        graphs: Graph name -> file in float32, as `export.graphs.from_torch.export_graphs` wrote them.
        profile: What to make of them.
        out: Directory for the new files.
        target: "cpu", "gpu" or "tensorrt"; None is the profile's. TensorRT gets no fused operators of ONNX Runtime.
        kept: Graph name -> the products that int8 leaves in float32 (`find_products`, `export.sensitivity`).
        progress: Called with (graphs done, graphs in all).

    Raises:
        ArtifactError: A fused operator is missing, a graph no longer fits the tensor table, or the disk refused.
    """
    target = target or profile.target
    paths, fusions = dict(graphs), {}
    if not profile.accelerator and target != "tensorrt":
        optimized = optimize_graphs(bundle, graphs, out / "optimized", target=target)
        paths, fusions = optimized.paths, optimized.fusions
    chosen = () if profile.conversion == "none" else tuple(name for name in paths if name in profile.graphs)
    for done, name in enumerate(chosen):
        if progress:
            progress(done, len(chosen))
        source, paths[name] = paths[name], out / f"{name}.onnx"
        if profile.conversion == "int8":
            quantize_to_int8(source, paths[name], kept=(kept or {}).get(name, ()))
        else:
            _CONVERSIONS[profile.conversion](source, paths[name])
        seal_graph(paths[name], MODELS[name], read_sizes(bundle), bundle.fingerprint)
    if progress:
        progress(len(chosen), len(chosen))
    return ConvertedGraphs(paths, fusions, chosen)


def convert_to_bfloat16(source: Path, path: Path) -> None:
    """Write a graph whose products with a weight (MatMul, Gemm) are computed in bfloat16, and all else in float32.

    The weights are stored as bfloat16. Products of two computed tensors (attention) and convolutions stay: they are
    few, and the convolutions of a stem lost more than all other layers together.
    """
    model = ir.load(source)
    narrow: dict[str, ir.Value] = {}
    for node in list(model.graph):
        if node.op_type in _PRODUCTS and any(_is_weight(value) for value in node.inputs[:2]):
            _narrow(model.graph, node, narrow)
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]
    save_graph(model, path)


def convert_to_float16(source: Path, path: Path) -> None:
    """Write a graph in float16 with float32 inputs and outputs; LayerNormalization, Softmax and sums stay float32."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    with _quiet():
        model = convert_float_to_float16(
            onnx.load(source), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_KEPT_FLOAT]
        )
    del model.graph.value_info[:]  # some still name the types from before
    narrow = ir.from_proto(model)
    narrow.graph.sort()  # the converter appends its casts at the end
    save_graph(narrow, path)


def find_products(source: Path) -> dict[str, tuple[int, int]]:
    """Return the products of a graph that int8 is for, in their order: node name -> shape (K, N) of the weight."""
    products = _list_products(ir.load(source))
    return {str(node.name): tuple(node.inputs[1].const_value.shape) for node in products}


def quantize_to_int8(source: Path, path: Path, *, kept: Collection[str] = ()) -> None:
    """Write a graph whose weights of products (MatMul) are stored in int8, with scales beside them.

    `GROUP` neighbouring rows of an output channel share a scale, the largest magnitude / 127; a weight whose rows are
    no multiple of that has one scale for each channel. The graph computes `int8 * scale` in float32 before each
    product. OpenVINO recognises that and, told so (`quantization_group`), multiplies in int8; any other runtime folds
    it into constants and answers with the rounded weights. No calibration data is needed.

    Args:
        source: The graph in float32.
        path: Where the new one goes.
        kept: Names of products that stay in float32.
    """
    model = ir.load(source)
    wide: dict[str, ir.Value] = {}
    for node in _list_products(model):
        if node.name in kept:
            continue
        weight = node.inputs[1]
        if weight.name not in wide:
            wide[weight.name] = _store_int8(model.graph, node, weight)
        node.replace_input_with(1, wide[weight.name])
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]
    save_graph(model, path)
    # Nodes and values point at each other: without this the weights of one graph after the other stay in memory.
    del model, wide
    gc.collect()


def _list_products(model: ir.Model) -> list[Any]:
    """Return the MatMul nodes whose second factor is a weight (K, N)."""
    return [
        node
        for node in model.graph
        if node.op_type == "MatMul"
        and _is_weight(weight := node.inputs[1])
        and len(weight.const_value.shape) == 2
    ]


def _store_int8(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> ir.Value:
    """Put an int8 weight (K, N) and its scales into the graph, before the node; return their product (K, N)."""
    values = weight.const_value.numpy()  # (K, N)
    rows, columns = values.shape
    group = GROUP if rows % GROUP == 0 else rows
    blocks = values.reshape(rows // group, group, columns)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / 127  # (K / group, 1, N)
    rounded = np.rint(blocks / np.where(scales == 0, 1, scales)).astype(np.int8)
    stored = [
        _store(graph, f"{weight.name}_{ending}", array)
        for ending, array in (
            ("int8", rounded),
            ("scales", scales.astype(np.float32)),
            ("shape", np.array(values.shape, dtype=np.int64)),
        )
    ]
    cast = ir.node("Cast", [stored[0]], {"to": ir.DataType.FLOAT}, name=f"{weight.name}_cast")
    scaled = ir.node("Mul", [cast.outputs[0], stored[1]], name=f"{weight.name}_scale")
    shaped = ir.node("Reshape", [scaled.outputs[0], stored[2]], name=f"{weight.name}_reshape")
    for made in (cast, scaled, shaped):
        made.outputs[0].name, made.outputs[0].dtype = f"{made.name}d", ir.DataType.FLOAT
        graph.insert_before(node, made)
    shaped.outputs[0].shape = weight.shape
    return shaped.outputs[0]


def _store(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    stored = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.initializers[name] = stored
    return stored


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _narrow(graph: ir.Graph, node: ir.Node, narrow: dict[str, ir.Value]) -> None:
    """Put one product into bfloat16, with casts around it; `narrow` holds the bfloat16 values made so far."""
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if value.name not in narrow:
            make = _store_narrow if _is_weight(value) else _cast_narrow
            narrow[value.name] = make(graph, node, value)
        node.replace_input_with(index, narrow[value.name])
    product = node.outputs[0]
    back = ir.node("Cast", [product], {"to": ir.DataType.FLOAT}, name=f"{node.name}_float32")
    wide = back.outputs[0]
    graph.insert_after(node, back)
    product.replace_all_uses_with(wide, replace_graph_outputs=True)
    back.replace_input_with(0, product)
    wide.name, product.name = product.name, f"{product.name}_bfloat16"
    wide.shape, wide.dtype, product.dtype = product.shape, ir.DataType.FLOAT, ir.DataType.BFLOAT16


def _store_narrow(graph: ir.Graph, _: ir.Node, value: ir.Value) -> ir.Value:
    array = value.const_value.numpy().astype(ir.DataType.BFLOAT16.numpy())  # rounds to nearest
    return _store(graph, f"{value.name}_bfloat16", array)


def _cast_narrow(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    cast = ir.node("Cast", [value], {"to": ir.DataType.BFLOAT16}, name=f"{value.name}_cast")
    cast.outputs[0].name = f"{value.name}_narrow"
    cast.outputs[0].shape, cast.outputs[0].dtype = value.shape, ir.DataType.BFLOAT16
    graph.insert_before(node, cast)
    return cast.outputs[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime's advice to its developers, logged by the root logger, off the terminal."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


_CONVERSIONS: Final[dict[str, Callable[[Path, Path], None]]] = {
    "bf16": convert_to_bfloat16,
    "fp16": convert_to_float16,
}
