"""Convert float32 graphs to a precision profile: fused operators, bfloat16, float16 or int8.

Names, shapes and data types of inputs and outputs do not change. Every new file is compared with the tensor table
again. The precision gate (`export.gates.precision`) measures the loss of accuracy.
"""

import gc
from collections.abc import Callable, Collection, Mapping
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
from export.graphs.quiet import silence_libraries
from export.profiles import Profile

GROUP: Final = 128  # number of weights that share a scale
_PRODUCTS: Final = ("MatMul", "Gemm")
# In half precision a variance or a long sum loses digits or overflows (NVIDIA/TensorRT issues 1262, 4493).
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
    """The graphs of a profile.

    Attributes:
        paths: Graph name -> file. An unchanged graph has its original file.
        fusions: Graph name -> family -> number of fused operators, of the graphs optimised for ONNX Runtime.
        converted: Names of the graphs in another precision.
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
    """Convert the graphs to a profile.

    Args:
        bundle: The bundle that the graphs were made from.
        graphs: Graph name -> file in float32 from `export.graphs.from_torch.export_graphs`.
        profile: The profile.
        out: Directory for the new files.
        target: "cpu", "gpu" or "tensorrt". None: the profile's. TensorRT gets no fused operators of ONNX Runtime.
        kept: Graph name -> the products that stay in float32 with int8 (`find_products`, `export.sensitivity`).
        progress: Called with (number of finished graphs, number of all graphs).

    Raises:
        ArtifactError: A fused operator is missing, a graph differs from the tensor table, or the disk refused the
            write.
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
            CONVERSIONS[profile.conversion](source, paths[name])
        seal_graph(paths[name], MODELS[name], read_sizes(bundle), bundle.fingerprint)
    if progress:
        progress(len(chosen), len(chosen))
    return ConvertedGraphs(paths, fusions, chosen)


def convert_to_bfloat16(source: Path, path: Path) -> None:
    """Write a graph that computes products with a weight (MatMul, Gemm) in bfloat16, and all others in float32.

    The weights are stored in bfloat16. Products of two computed tensors (attention) and convolutions stay in float32.
    They are few, and the convolutions of a stem lost more accuracy than all other layers together.
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
    """Write a graph in float16. Inputs, outputs, LayerNormalization, Softmax and sums stay in float32."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    with silence_libraries():
        model = convert_float_to_float16(
            onnx.load(source), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_KEPT_FLOAT]
        )
    del model.graph.value_info[:]  # some still hold the old types
    narrow = ir.from_proto(model)
    narrow.graph.sort()  # the converter appends its casts at the end
    save_graph(narrow, path)


def find_products(source: Path) -> dict[str, tuple[int, int]]:
    """Return the products that int8 can convert, in the order of the graph: node name -> shape (K, N) of the weight."""
    products = _list_products(ir.load(source))
    return {str(node.name): tuple(node.inputs[1].const_value.shape) for node in products}


def quantize_to_int8(source: Path, path: Path, *, kept: Collection[str] = ()) -> None:
    """Write a graph that stores the weights of products (MatMul) in int8, with float32 scales.

    `GROUP` neighbouring rows of an output channel share a scale, which is the largest magnitude / 127. If the number of
    rows is not a multiple of `GROUP`, each channel has one scale. The graph computes `int8 * scale` in float32 before
    each product. With the parameter `quantization_group` OpenVINO recognises this pattern and multiplies in int8. Other
    runtimes fold it into constants and compute with the rounded weights. No calibration data is needed.

    Args:
        source: The graph in float32.
        path: The new file.
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
    # Nodes and values refer to each other. Without this call the weights of every graph would stay in memory.
    del model, wide
    gc.collect()


def _list_products(model: ir.Model) -> list[Any]:
    """Return the MatMul nodes with a weight (K, N) as the second factor."""
    return [
        node
        for node in model.graph
        if node.op_type == "MatMul"
        and _is_weight(weight := node.inputs[1])
        and len(weight.const_value.shape) == 2
    ]


def _store_int8(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> ir.Value:
    """Insert an int8 weight and its scales into the graph, before the node; return their product (K, N) float32."""
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
    for inserted in (cast, scaled, shaped):
        inserted.outputs[0].name, inserted.outputs[0].dtype = f"{inserted.name}d", ir.DataType.FLOAT
        graph.insert_before(node, inserted)
    shaped.outputs[0].shape = weight.shape
    return shaped.outputs[0]


def _store(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    stored = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.initializers[name] = stored
    return stored


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _narrow(graph: ir.Graph, node: ir.Node, narrow: dict[str, ir.Value]) -> None:
    """Convert one product to bfloat16, with casts around it. `narrow` maps names to bfloat16 values of the graph."""
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


CONVERSIONS: Final[dict[str, Callable[[Path, Path], None]]] = {
    "bf16": convert_to_bfloat16,
    "fp16": convert_to_float16,
}
