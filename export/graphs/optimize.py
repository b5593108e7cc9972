"""The fused operators of ONNX Runtime, put into graphs where they help, and counted.

onnxscript's `optimize_for_ort` fuses what torch's exporter writes: attention becomes one MultiHeadAttention, the five
operators of a Gelu become one Gelu or BiasGelu, an addition and the LayerNormalization behind it one
SkipLayerNormalization (operators of the domain com.microsoft; onnxruntime, docs/ContribOperators.md). Neither OpenVINO
nor TensorRT knows that domain: optimised files are for ONNX Runtime alone.

How many of them a graph must hold follows from the model's config; of an image backbone other than Swin, it follows
from the graph as exported. A fusion that is missing, because a new torch writes another pattern, say, is an error.
"""

import logging
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

# On a processor the fusion graphs stay as they are: their SkipLayerNormalization took 5 % longer than Add and
# LayerNormalization. The encoders gained 1 to 3 %.
_HELPED: Final[dict[str, tuple[str, ...]]] = {"cpu": ("image_encoder", "text_encoder"), "gpu": GRAPHS}
_FAMILIES: Final[dict[str, tuple[str, ...]]] = {  # what counts as what
    "MultiHeadAttention": ("MultiHeadAttention", "Attention"),
    "LayerNormalization": ("LayerNormalization", "SkipLayerNormalization"),
    "Gelu": ("Gelu", "BiasGelu", "FastGelu"),
}
_SWIN: Final = "swin"  # `training.config.settings.SWIN`; also where a bundle of an older version says nothing
_LAYOUT: Final = frozenset(
    ["Gather", "Mul", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"]
)
_KEY_PADDING: Final = 4  # inputs of MultiHeadAttention
_BIAS: Final = 5


@dataclass(frozen=True)
class OptimizedGraphs:
    """The files by graph name, and how many fused operators of each family stand in those that were optimised."""

    paths: dict[str, Path]
    fusions: dict[str, dict[str, int]]


def optimize_graphs(
    bundle: Bundle, graphs: Mapping[str, Path], out: Path, *, target: str = "cpu"
) -> OptimizedGraphs:
    """Put ONNX Runtime's fused operators into the graphs that gain from them.

    Args:
        bundle: The bundle that the graphs were made from.
        graphs: Graph name -> file, as `export.graphs.from_torch.export_graphs` wrote them.
        out: Directory for the new files; made if needed.
        target: "cpu" or "gpu", which decides what gains.

    Returns:
        Every graph: the new file, or the given one where nothing is gained.

    Raises:
        ArtifactError: A fused operator is missing, the graph no longer fits the tensor table, or the disk refused.
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
    """Return how many operators of each family an ONNX file holds: MultiHeadAttention, LayerNormalization, Gelu."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    found = Counter(node.op_type for node in nodes)
    return {family: sum(found[name] for name in members) for family, members in _FAMILIES.items()}


def expect_fusions(bundle: Bundle, graph: str, source: Path) -> dict[str, int]:
    """Return how many operators of each family a graph of this model must hold at least.

    `source` is the graph as exported: what an image encoder other than Swin needs is counted there.

    A Swin stage of d blocks has 2 d LayerNormalizations and d attentions and Gelus; blocks whose windows are shifted
    add a mask in another shape and stay unfused. Beside them normalise the patches, each merging of patches and the
    end (Liu et al. 2021, arXiv:2103.14030). A BERT layer has 2, 1 and 1, and the embeddings one LayerNormalization.
    A fusion block: see `training.model.fusion.FusionBlock`.

    Raises:
        ArtifactError: The bundle's config lacks a size.
    """
    try:
        config = bundle.config["model"]
        if graph == "image_encoder" and config.get("image_backbone", _SWIN) != _SWIN:
            return count_fusible(source)
        return _count_parts(config, graph)
    except (KeyError, TypeError, IndexError) as error:
        raise ArtifactError(f"The config of {bundle.path} lacks the sizes of its model.") from error


def count_fusible(path: Path) -> dict[str, int]:
    """Return how many operators of each family can be made of what torch exported, whatever the backbone.

    Its exact Gelu has one Erf. Attention counts where queries and keys are parts of one projection and nothing is added
    to their product, as in a ViT: onnxscript leaves that of Swin V2 (a cosine) and of shifted windows as it is.
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
    """Return the node that computed a value before it was only split, scaled or laid out otherwise."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in _LAYOUT:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node


def check_fusions(graph: str, found: Mapping[str, int], expected: Mapping[str, int]) -> None:
    """Raise ArtifactError, naming operator, found and expected, where a family has fewer members than expected."""
    for family, count in expected.items():
        if found.get(family, 0) < count:
            raise ArtifactError(
                f"The optimised {graph} holds {found.get(family, 0)} fused {family} operators, but its model needs "
                f"{count}: onnxscript no longer knows what torch writes. Install the versions that were tested."
            )


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph, its weights beside it in `<name>.onnx.data` where they pass 1.5 GB.

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
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        fused, _ = optimize_for_ort(model)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    replace_expanded_biases(fused)
    fused.metadata_props.update(model.metadata_props)
    save_graph(fused, path)


def replace_expanded_biases(model: ir.Model) -> None:
    """Hand each MultiHeadAttention what it adds to its scores without expanding it for every question, in place.

    onnxscript expands a mask to a bias (B, 1, Q, L), which ONNX Runtime before 1.20 cannot run and for which its
    fused kernels for NVIDIA GPUs in float16 are closed: the operator gets the lengths (B,) of the texts instead. They
    say the same, for a mask is ones and then zeros (`contract.report.tokens.check_mask`). Where a text is longer, the
    operator adds -10,000 to the score, which is `training.model.fusion.MASKED`. A table of relative positions is its
    own size already.

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
                f"What the attention {node.name} adds to its scores is written in a new way, by torch or onnxscript. "
                "Install the versions that were tested."
            )
    RemoveUnusedNodesPass()(model)


def _find_table(bias: ir.Value) -> ir.Value | None:
    """Return the weights (1, heads, Q, L) that a bias is."""
    table = _step_back(bias, "Expand")
    if table is None or table.const_value is None or table.shape is None:
        return None
    return table if len(table.shape) == 4 and table.shape[2] != 1 else None


def _find_mask(bias: ir.Value) -> ir.Value | None:
    """Return the mask (B, L) that a bias was made from, as `training.model.fusion.make_additive_mask` does it."""
    value: ir.Value | None = bias
    for operator in ("Expand", "Unsqueeze", "Mul", "Cast"):
        value = _step_back(value, operator)
    return _step_back(value, "Sub", 1)


def _step_back(value: ir.Value | None, operator: str, index: int = 0) -> ir.Value | None:
    """Return an input of the node that made a value, where that is such an operator."""
    node = value.producer() if value is not None else None
    return node.inputs[index] if node is not None and node.op_type == operator else None


def _add_lengths(graph: ir.Graph, node: ir.Node, mask: ir.Value) -> ir.Value:
    """Put the sums of a mask (B, L) int64 into the graph, before a node; return them, (B,) int32."""
    axis = ir.val(
        f"{mask.name}_axis", const_value=ir.tensor([1], dtype=ir.DataType.INT64, name=f"{mask.name}_axis")
    )
    graph.initializers[axis.name] = axis
    cast = ir.node("Cast", [mask], {"to": ir.DataType.INT32}, name=f"{mask.name}_int32")
    total = ir.node("ReduceSum", [cast.outputs[0], axis], {"keepdims": 0}, name=f"{mask.name}_lengths")
    for made in (cast, total):
        made.outputs[0].name, made.outputs[0].dtype = f"{made.name}_value", ir.DataType.INT32
        graph.insert_before(node, made)
    return total.outputs[0]


def _count_parts(config: Mapping[str, Any], graph: str) -> dict[str, int]:
    if graph == "image_encoder":
        depths = config["image_depths"]
        side, window = config["image_size"] // config["image_patch"], config["image_window"]
        whole = sum(
            (depth + 1) // 2 if side >> stage > window else depth for stage, depth in enumerate(depths)
        )
        norms = 2 * sum(depths) + len(depths) + 1
        return _name_counts(whole, norms, sum(depths))
    if graph == "text_encoder":
        layers = config["text_layers"]
        return _name_counts(layers, 2 * layers + 1, layers)
    layers, kinds = config["fusion_layers"], 2 if graph == "fusion_study" else 1
    # Self-attention and, between two kinds, attention to the other; a norm before each and before the feed-forward.
    attentions = layers * kinds * kinds
    norms = attentions + layers * kinds + kinds
    return _name_counts(attentions, norms, 2 * layers * kinds + 1)


def _name_counts(attentions: int, norms: int, gelus: int) -> dict[str, int]:
    return {"MultiHeadAttention": attentions, "LayerNormalization": norms, "Gelu": gelus}
