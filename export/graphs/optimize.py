"""Put fused operators of ONNX Runtime into the graphs that gain from them, and count them.

onnxscript's `optimize_for_ort` fuses the patterns of torch's exporter: attention becomes one MultiHeadAttention, the
five operators of a Gelu become one Gelu or BiasGelu, and an addition with the LayerNormalization behind it becomes one
SkipLayerNormalization. These operators have the domain com.microsoft (onnxruntime, docs/ContribOperators.md). OpenVINO
and TensorRT do not know it, so optimised files are only for ONNX Runtime.

The smallest number of fused operators follows from the model's config. For an image backbone other than Swin it follows
from the exported graph. A missing fusion is an error, because a new version of torch may write another pattern.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from contract.bundle import Bundle
from contract.errors import ArtifactError
from contract.tensors import GRAPHS, MODELS
from export.graphs.checks import EXTERNAL_DATA_FROM_BYTES, read_sizes, seal_graph
from export.graphs.quiet import silence_libraries

# On a processor the fusion graphs are not optimised, because their SkipLayerNormalization took 5 % longer than Add and
# LayerNormalization. The encoders gained 1 to 3 %.
_HELPED: Final[dict[str, tuple[str, ...]]] = {"cpu": ("image_encoder", "text_encoder"), "gpu": GRAPHS}
_FAMILIES: Final[dict[str, tuple[str, ...]]] = {  # family -> its operators
    "MultiHeadAttention": ("MultiHeadAttention", "Attention"),
    "LayerNormalization": ("LayerNormalization", "SkipLayerNormalization"),
    "Gelu": ("Gelu", "BiasGelu", "FastGelu"),
}
_SWIN: Final = "swin"  # `training.config.settings.SWIN`; the default for bundles of older versions
_LAYOUT: Final = frozenset(
    ["Gather", "Mul", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"]
)
_KEY_PADDING: Final = 4  # position of an input of MultiHeadAttention
_BIAS: Final = 5  # as above


@dataclass(frozen=True)
class OptimizedGraphs:
    """Graph name -> file, and the number of fused operators of each family in the optimised graphs."""

    paths: dict[str, Path]
    fusions: dict[str, dict[str, int]]


def optimize_graphs(
    bundle: Bundle, graphs: Mapping[str, Path], out: Path, *, target: str = "cpu"
) -> OptimizedGraphs:
    """Put ONNX Runtime's fused operators into the graphs that gain from them.

    Args:
        bundle: The bundle that the graphs were made from.
        graphs: Graph name -> file from `export.graphs.from_torch.export_graphs`.
        out: Directory for the new files. It is created if it does not exist.
        target: "cpu" or "gpu". It decides which graphs gain.

    Returns:
        Every graph: the new file, or the given file of a graph that does not gain.

    Raises:
        ArtifactError: A fused operator is missing, the graph differs from the tensor table, or the disk refused the
            write.
    """
    sizes = read_sizes(bundle)
    paths, fusions = dict(graphs), {}
    for name in graphs:
        if name not in _HELPED[target]:
            continue
        paths[name] = out / f"{name}.onnx"
        _optimize(graphs[name], paths[name])
        seal_graph(paths[name], MODELS[name], sizes, bundle.fingerprint)
        fusions[name] = count_fusions(paths[name])
        check_fusions(name, fusions[name], expect_fusions(bundle, name, graphs[name]))
    return OptimizedGraphs(paths, fusions)


def count_fusions(path: Path) -> dict[str, int]:
    """Return the number of operators of each family in an ONNX file: MultiHeadAttention, LayerNormalization, Gelu."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    counts = Counter(node.op_type for node in nodes)
    return {family: sum(counts[name] for name in members) for family, members in _FAMILIES.items()}


def expect_fusions(bundle: Bundle, graph: str, source: Path) -> dict[str, int]:
    """Return the smallest number of operators of each family in a graph of this model.

    A Swin stage of d blocks has 2 d LayerNormalizations, d attentions and d Gelus. The attention of blocks with shifted
    windows is not fused, because its mask has another shape. Further LayerNormalizations stand behind the patches, each
    merging of patches and the last stage (Liu et al. 2021, arXiv:2103.14030). A BERT layer has 2 LayerNormalizations, 1
    attention and 1 Gelu, and the embeddings have one LayerNormalization. For a fusion block see
    `training.model.fusion.FusionBlock`.

    Args:
        bundle: The bundle.
        graph: Name of the graph.
        source: The exported file. The operators of an image encoder other than Swin are counted there.

    Raises:
        ArtifactError: The bundle's config lacks a size.
    """
    try:
        config = bundle.config["model"]
        if graph == "image_encoder" and config.get("image_backbone", _SWIN) != _SWIN:
            return count_fusible(source)
        return _count_parts(config, graph)
    except (KeyError, TypeError, IndexError) as error:
        raise ArtifactError(
            f"The config of {bundle.path} lacks the sizes of its model. Train the model again."
        ) from error


def count_fusible(path: Path) -> dict[str, int]:
    """Return the number of operators of each family that onnxscript can fuse in an exported graph of any backbone.

    An exact Gelu has one Erf. An attention counts if its queries and keys are parts of one projection and nothing is
    added to their product, as in a ViT. onnxscript does not fuse the attention of Swin V2 (a cosine) and of shifted
    windows.
    """
    graph = ir.load(path).graph
    kinds = Counter(node.op_type for node in graph)
    attentions = sum(_is_plain_attention(node) for node in graph if node.op_type == "Softmax")
    return _name_counts(attentions, kinds["LayerNormalization"], kinds["Erf"])


def _is_plain_attention(softmax: ir.Node) -> bool:
    product = _step_back(softmax.inputs[0], "MatMul", 0), _step_back(softmax.inputs[0], "MatMul", 1)
    query, key = (_find_origin(value) for value in product)
    return query is not None and query is key


def _find_origin(value: ir.Value | None) -> ir.Node | None:
    """Return the node that computed a value, before nodes that only split, scale or rearrange it."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in _LAYOUT:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node


def check_fusions(graph: str, counts: Mapping[str, int], expected: Mapping[str, int]) -> None:
    """Raise ArtifactError with both numbers if a graph has fewer operators of a family than expected."""
    for family, count in expected.items():
        if counts.get(family, 0) < count:
            raise ArtifactError(
                f"The optimised {graph} holds {counts.get(family, 0)} fused {family} operators, but its model needs "
                f"{count}. The installed onnxscript does not fuse the patterns of the installed torch. Install earlier "
                "versions of both."
            )


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph. Weights of more than 1.5 GB are written beside it, in `<name>.onnx.data`.

    Raises:
        ArtifactError: The disk refused the write.
    """
    weights = (value.const_value for value in model.graph.initializers.values())
    size = sum(weight.nbytes for weight in weights if weight is not None)
    beside = f"{path.name}.data" if size > EXTERNAL_DATA_FROM_BYTES else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ir.save(model, path, external_data=beside)
    except OSError as error:
        raise ArtifactError(f"Could not write {path}: {error.strerror or error}.") from error


def _optimize(source: Path, path: Path) -> None:
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model = ir.load(source)
    with silence_libraries():
        fused, _ = optimize_for_ort(model)
    replace_expanded_biases(fused)
    fused.metadata_props.update(model.metadata_props)
    save_graph(fused, path)


def replace_expanded_biases(model: ir.Model) -> None:
    """Replace the expanded bias of each MultiHeadAttention, in place.

    onnxscript expands a mask to a bias (B, 1, Q, L). ONNX Runtime before 1.20 cannot run such a bias, and its fused
    float16 kernels for NVIDIA GPUs do not accept it. So the operator gets the lengths (B,) of the texts instead of the
    mask. They are equivalent, because a mask is ones and then zeros (`contract.report.tokens.check_mask`). Behind the
    end of a text the operator adds -10,000 to the score, which is `training.model.fusion.MASKED`. A table of relative
    positions replaces its own expansion.

    Args:
        model: A graph after `optimize_for_ort`.

    Raises:
        ArtifactError: A bias is neither a mask nor a table.
    """
    lengths: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        bias = (
            node.inputs[_BIAS] if node.op_type == "MultiHeadAttention" and len(node.inputs) > _BIAS else None
        )
        if bias is None or bias.const_value is not None:
            continue
        if (table := _find_table(bias)) is not None:
            node.replace_input_with(_BIAS, table)
        elif (mask := _find_mask(bias)) is not None:
            if mask not in lengths:
                lengths[mask] = _add_lengths(model.graph, node, mask)
            node.replace_input_with(_BIAS, None)
            node.replace_input_with(_KEY_PADDING, lengths[mask])
        else:
            raise ArtifactError(
                f"The bias of the attention {node.name} has a pattern that this version of the software does not know. "
                "Install earlier versions of torch and onnxscript."
            )
    RemoveUnusedNodesPass()(model)


def _find_table(bias: ir.Value) -> ir.Value | None:
    """Return the weights (1, heads, Q, L) that were expanded to a bias, or None."""
    table = _step_back(bias, "Expand")
    if table is None or table.const_value is None or table.shape is None:
        return None
    return table if len(table.shape) == 4 and table.shape[2] != 1 else None


def _find_mask(bias: ir.Value) -> ir.Value | None:
    """Return the mask (B, L) that `training.model.fusion.make_additive_mask` turned into a bias, or None."""
    value: ir.Value | None = bias
    for operator in ("Expand", "Unsqueeze", "Mul", "Cast"):
        value = _step_back(value, operator)
    return _step_back(value, "Sub", 1)


def _step_back(value: ir.Value | None, operator: str, index: int = 0) -> ir.Value | None:
    """Return an input of the node that computed a value if it is such an operator, otherwise None."""
    node = value.producer() if value is not None else None
    return node.inputs[index] if node is not None and node.op_type == operator else None


def _add_lengths(graph: ir.Graph, node: ir.Node, mask: ir.Value) -> ir.Value:
    """Insert the sums of a mask (B, L) int64 into the graph, before a node; return the sums, (B,) int32."""
    axis = ir.val(
        f"{mask.name}_axis", const_value=ir.tensor([1], dtype=ir.DataType.INT64, name=f"{mask.name}_axis")
    )
    graph.initializers[axis.name] = axis
    cast = ir.node("Cast", [mask], {"to": ir.DataType.INT32}, name=f"{mask.name}_int32")
    total = ir.node("ReduceSum", [cast.outputs[0], axis], {"keepdims": 0}, name=f"{mask.name}_lengths")
    for inserted in (cast, total):
        inserted.outputs[0].name, inserted.outputs[0].dtype = f"{inserted.name}_value", ir.DataType.INT32
        graph.insert_before(node, inserted)
    return total.outputs[0]


def _count_parts(config: Mapping[str, Any], graph: str) -> dict[str, int]:
    if graph == "image_encoder":
        depths = config["image_depths"]
        side, window = config["image_size"] // config["image_patch"], config["image_window"]
        not_shifted = sum(
            (depth + 1) // 2 if side >> stage > window else depth for stage, depth in enumerate(depths)
        )
        norms = 2 * sum(depths) + len(depths) + 1
        return _name_counts(not_shifted, norms, sum(depths))
    if graph == "text_encoder":
        layers = config["text_layers"]
        return _name_counts(layers, 2 * layers + 1, layers)
    layers, kinds = config["fusion_layers"], 2 if graph == "fusion_study" else 1
    # Each kind attends to itself and to the other kind. A norm stands before each attention and each feed-forward.
    attentions = layers * kinds * kinds
    norms = attentions + layers * kinds + kinds
    return _name_counts(attentions, norms, 2 * layers * kinds + 1)


def _name_counts(attentions: int, norms: int, gelus: int) -> dict[str, int]:
    return {"MultiHeadAttention": attentions, "LayerNormalization": norms, "Gelu": gelus}
