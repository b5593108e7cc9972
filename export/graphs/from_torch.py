"""Export the PyTorch modules of a bundle as ONNX graphs with the bundle's fingerprint.

Each graph of `contract.tensors.GRAPHS` becomes one file. Batch size, number of views and text length are dynamic.
Names, data types and shapes are compared with the tensor table, so a graph that Triton could not connect is an error
here.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from contract.bundle import Bundle
from contract.errors import ArtifactError
from contract.tensors import GRAPHS, MAX_VIEWS, MODELS, ModelSpec, TensorSpec
from export.graphs.checks import EXTERNAL_DATA_FROM_BYTES, FINGERPRINT_KEY, read_sizes, seal_graph
from export.graphs.quiet import silence_libraries
from export.graphs.registry import keep_registry
from training.model.model import graph_modules, load_model

OPSET: Final = 18  # the lowest that torch's exporter writes without a conversion; older runtimes read it too
_ANY_SIZE: Final = 2**40  # bytes, more than any weight
# These differ from all sizes of models, so that the exporter does not confuse them.
_EXAMPLE_SIZES: Final = {"B": 2, "V": 3, "L": 40}


def export_graphs(
    bundle: Bundle, out: Path, progress: Callable[[int, int], None] | None = None
) -> dict[str, Path]:
    """Write every graph of a bundle as ONNX.

    Args:
        bundle: The verified bundle.
        out: Directory for the files. It is created if it does not exist. Weights of more than 1.5 GB are written beside
            the graph, in `<graph>.onnx.data`.
        progress: Called with (number of finished graphs, number of all graphs).

    Returns:
        Graph name -> `<out>/<graph>.onnx`, in the order of `contract.tensors.GRAPHS`.

    Raises:
        ArtifactError: The bundle's sizes are missing, a graph differs from the tensor table, or the disk refused the
            write.
    """
    sizes = read_sizes(bundle)
    modules = graph_modules(load_model(bundle))
    paths: dict[str, Path] = {}
    with keep_registry():
        for done, name in enumerate(GRAPHS):
            if progress:
                progress(done, len(GRAPHS))
            paths[name] = out / f"{name}.onnx"
            _write_graph(modules[name], MODELS[name], sizes, paths[name], bundle.fingerprint)
            seal_graph(paths[name], MODELS[name], sizes, bundle.fingerprint)
    if progress:
        progress(len(GRAPHS), len(GRAPHS))
    return paths


def _write_graph(
    module: nn.Module, spec: ModelSpec, sizes: Mapping[str, int], path: Path, fingerprint: str
) -> None:
    inputs = tuple(_make_example(tensor, sizes) for tensor in spec.inputs)
    free = _name_free_axes(sizes)
    axes = tuple(_list_free_axes(tensor, free) for tensor in spec.inputs)
    with silence_libraries(), torch.inference_mode(False), torch.no_grad():
        program: Any = torch.onnx.export(
            module.eval(),
            inputs,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=axes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    fold_weights(program.model)
    keep_reduced_axes(program.model)
    cast_pixels_first(program.model)
    ClearMetadataAndDocStringPass()(
        program.model
    )  # the exporter records the paths of source files on this machine
    program.model.metadata_props.update({FINGERPRINT_KEY: fingerprint, "graph": spec.name})
    weight_bytes = sum(weight.nbytes for weight in module.state_dict().values())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        program.save(path, external_data=weight_bytes > EXTERNAL_DATA_FROM_BYTES)
    except OSError as error:
        raise ArtifactError(f"Could not write {path}: {error.strerror or error}.") from error


def fold_weights(model: Any) -> None:
    """Compute values that depend only on weights, in place: transposed weights and tables of relative positions.

    The exporter does not fold those that two operators read. OpenVINO would then use them in float32 in any precision.

    Args:
        model: An `onnx_ir.Model`. No weight becomes larger.
    """
    from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass
    from onnxscript.optimizer import fold_constants

    fold_constants(model, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE)
    LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0)(model)
    RemoveUnusedNodesPass()(model)


def keep_reduced_axes(model: Any) -> None:
    """Replace each Reduce* without `keepdims` by one with `keepdims` and a Squeeze, in place. The values are the same.

    On a processor OpenVINO 2026.4 fuses such a reduction with the addition of a constant behind it, and adds the wrong
    elements. Probabilities differed by up to 0.77. With a Squeeze between the two it does not fuse them.

    Args:
        model: An `onnx_ir.Model`.
    """
    for node in list(model.graph):
        if not node.op_type.startswith("Reduce") or node.attributes.get_int("keepdims", 1):
            continue
        if len(node.inputs) < 2 or node.inputs[1] is None:  # over all axes, which torch never writes
            continue
        reduced, axes = node.outputs[0], node.inputs[1]
        squeeze = ir.node("Squeeze", [reduced, axes], name=f"{node.name}_squeeze")
        model.graph.insert_after(node, squeeze)
        reduced.replace_all_uses_with(squeeze.outputs[0], replace_graph_outputs=True)
        squeeze.replace_input_with(0, reduced)
        node.attributes["keepdims"] = ir.AttrInt64("keepdims", 1)
        squeeze.outputs[0].name, reduced.name = reduced.name, f"{reduced.name}_kept"
        squeeze.outputs[0].shape, squeeze.outputs[0].type = reduced.shape, reduced.type
        reduced.shape = None


def cast_pixels_first(model: Any) -> None:
    """Make all nodes read the Cast of a uint8 input instead of the input, in place.

    In TensorRT only a Cast can read uint8. The exporter reads the numbers of studies and views from the input itself.

    Args:
        model: An `onnx_ir.Model`.
    """
    graph = model.graph
    for value in graph.inputs:
        cast = next((node for node, _ in value.uses() if node.op_type == "Cast"), None)
        if value.dtype != ir.DataType.UINT8 or cast is None:
            continue
        graph.remove(cast)
        graph.insert_before(graph[0], cast)
        for node, index in value.uses():
            if node is not cast:
                node.replace_input_with(index, cast.outputs[0])


def _make_example(tensor: TensorSpec, sizes: Mapping[str, int]) -> Tensor:
    """Return a (2, ...) tensor for tracing. Ids are 0 and masks 1, which every model accepts."""
    known = {**_EXAMPLE_SIZES, "I": _EXAMPLE_SIZES["V"] * sizes["N"], **sizes}
    shape = [known["B"], *(size if isinstance(size, int) else known[size] for size in tensor.shape)]
    if tensor.dtype == "FP32":
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if tensor.name == "attention_mask":
        return torch.ones(shape, dtype=torch.int64)
    return torch.zeros(shape, dtype=torch.uint8 if tensor.dtype == "UINT8" else torch.int64)


def _name_free_axes(sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return shape letter -> the exporter's description of a dimension that differs between requests."""
    dim = torch.export.Dim
    views = dim("views", min=1, max=MAX_VIEWS)
    return {"B": dim("batch"), "V": views, "I": sizes["N"] * views, "L": dim("length")}


def _list_free_axes(tensor: TensorSpec, free: Mapping[str, Any]) -> dict[int, Any]:
    letters = ("B", *tensor.shape)
    return {
        axis: free[letter]
        for axis, letter in enumerate(letters)
        if isinstance(letter, str) and letter in free
    }
