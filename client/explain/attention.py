"""Attention as a map: the attention of a label, and attention rollout from the label down to the first patches.

Rollout (Abnar and Zuidema 2020, arXiv:2005.00928) multiplies the attention of all layers, with half of each token
passed on by the residual connection. Here one row, that of the label, is carried from the top to the bottom: through
the pooling, the fusion (also through the words and back) and the windows of a Swin or the blocks of a ViT. A
convolutional encoder has no attention, so it has no rollout.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.explain.network import Probe
from contract.errors import ConfigError

try:
    import torch
    from torch import Tensor, nn

    from training.model.fusion import Tokens
except (ModuleNotFoundError, ConfigError) as error:
    raise ConfigError("Explanations need the 'explain' extra: pip install 'cxr-serving[explain]'.") from error

Array = NDArray[np.float32]
Recorded = dict[nn.Module, Tensor]


def compute_attention(probe: Probe) -> Array:
    """Return the attention (G, G) of the label to the patches, as in the served prediction.

    It sums to 1; that of one of several images of a study to the share of the image.
    """
    with torch.no_grad():
        attention = probe.fuse(probe.model.image_encoder(probe.pixels)).image_attention
    if attention is None:
        raise ConfigError("The model gives no attention to an image.")
    grid = probe.model.image_encoder.layout.grid
    if probe.inputs.views is not None:
        attention = probe.inputs.views.cut(attention)
    array: Array = attention[0, probe.index].reshape(grid, grid).cpu().numpy().astype(np.float32)
    return array


def find_rollout_obstacle(model: nn.Module) -> str:
    """Return why a model has no attention rollout; "" if it has."""
    encoder: Any = model.image_encoder
    if _list_blocks(encoder.backbone):
        return ""
    name = type(encoder.backbone).__name__
    return f"the image encoder ({name}) gives no attention that can be followed to the pixels"


def compute_rollout(probe: Probe) -> Array:
    """Return the rollout (H, H) of the label on the first patches of the image encoder. It is 0 or more.

    Raises:
        ConfigError: The image encoder gives no attention.
    """
    if obstacle := find_rollout_obstacle(probe.model):
        raise ConfigError(f"There is no attention rollout, because {obstacle}.")
    backbone: Any = probe.model.image_encoder.backbone
    with _record(probe.model) as recorded, torch.no_grad():
        probe.fuse(probe.model.image_encoder(probe.pixels))
        row = _roll_fusion(probe, recorded)
        if probe.inputs.views is not None:
            row = probe.inputs.views.cut(row)
    for block in reversed(_list_blocks(backbone)):
        row = _STEPS[_name_kind(block)](row, block, recorded)
    patches = _drop_prefix(row, backbone)
    side = round(len(patches) ** 0.5)
    array: Array = patches.reshape(side, side).cpu().numpy().astype(np.float32)
    return array


def _list_blocks(backbone: Any) -> list[nn.Module]:
    """Return the blocks with attention and the merging layers in their order; none if one of them is not known."""
    if hasattr(backbone, "layers"):  # Swin: a stage merges patches first
        blocks: list[nn.Module] = []
        for stage in backbone.layers:
            merging = getattr(stage, "downsample", None)
            if merging is not None and not isinstance(merging, nn.Identity):
                blocks.append(merging)
            blocks += list(getattr(stage, "blocks", ()))
    else:
        blocks = list(getattr(backbone, "blocks", ()))
    return blocks if blocks and all(_name_kind(block) for block in blocks) else []


def _name_kind(block: nn.Module) -> str:
    name = type(block).__name__
    if name == "PatchMerging":
        return "merge"
    drop = getattr(getattr(block, "attn", None), "attn_drop", None)
    if not isinstance(drop, nn.Module):
        return ""
    if hasattr(block, "window_size"):
        return "window" if name == "SwinTransformerBlock" else ""
    return "whole"


@contextmanager
def _record(model: Any) -> Iterator[Recorded]:
    """Yield the attention (..., H, T, T) of each layer that runs inside, by the module that drops parts of it out."""
    recorded: Recorded = {}
    attentions = [
        block.attn for block in _list_blocks(model.image_encoder.backbone) if hasattr(block, "attn")
    ]
    fused = [(attention, attention.fused_attn) for attention in attentions]
    modules = [attention.attn_drop for attention in attentions]
    for layer in model.fusion.blocks:
        for kind in layer.self_attention:
            modules += [layer.self_attention[kind].dropout, layer.cross_attention[kind].dropout]
    modules += list(model.fusion.norm.values())
    hooks = [module.register_forward_hook(_keep(recorded)) for module in modules]
    try:
        for attention, _ in fused:
            attention.fused_attn = False  # the fused kernel gives no attention
        yield recorded
    finally:
        for attention, value in fused:
            attention.fused_attn = value
        for hook in hooks:
            hook.remove()


def _keep(recorded: Recorded) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, _: Any, output: Tensor) -> None:
        recorded[module] = output

    return hook


def _roll_fusion(probe: Probe, recorded: Recorded) -> Tensor:
    """Return the row (N,) of the label on the image tokens at the entrance of the fusion."""
    fusion = probe.model.fusion
    kinds = [kind for kind, norm in fusion.norm.items() if norm in recorded]
    masks = _make_masks(probe, kinds)
    scores = [fusion.pooling.score(Tokens(recorded[fusion.norm[kind]], masks[kind])) for kind in kinds]
    joint = torch.cat([score[0, probe.index] for score in scores]).softmax(0)
    rows = dict(zip(kinds, joint.split([score.shape[-1] for score in scores]), strict=True))
    for layer in reversed(fusion.blocks):
        if len(kinds) > 1:
            rows = {
                kind: rows[kind] / 2 + rows[other] @ _average(recorded, layer.cross_attention[other]) / 2
                for kind, other in zip(kinds, reversed(kinds), strict=True)
            }
        rows = {
            kind: row / 2 + row @ _average(recorded, layer.self_attention[kind]) / 2
            for kind, row in rows.items()
        }
    return rows["image"]


def _make_masks(probe: Probe, kinds: list[str]) -> dict[str, Tensor | None]:
    mask = probe.inputs.attention_mask
    added = None if mask is None else ((1 - mask).float() * -1e4)[:, None, None, :]  # as in the fusion
    return {kind: added if kind == "text" else None for kind in kinds}


def _average(recorded: Recorded, attention: Any) -> Tensor:
    """Return the mean over the heads (Q, T) of a layer of the fusion."""
    return recorded[attention.dropout][0].mean(0)


def _roll_window(row: Tensor, block: Any, recorded: Recorded) -> Tensor:
    """Carry a row (H W,) through the windows of a Swin block."""
    places = _place_windows(block, row.device)  # (windows, area), -1 on padding
    weights = recorded[block.attn.attn_drop].mean(1)  # (windows, area, area)
    inside = torch.where(places >= 0, row[places.clamp(min=0)], torch.zeros((), device=row.device))
    spread = torch.einsum("wi,wij->wj", inside, weights)
    mixed = torch.zeros_like(row)
    is_real = places >= 0
    mixed.index_add_(0, places[is_real], spread[is_real])
    return row / 2 + mixed / 2


def _place_windows(block: Any, device: torch.device) -> Tensor:
    """Return which token (windows, area) stands where in the shifted windows of a Swin block; -1 is padding."""
    rows, columns = block.input_resolution
    (down, across), (shift_down, shift_across) = block.window_size, block.shift_size
    places = torch.arange(rows * columns, device=device).reshape(rows, columns)
    places = torch.roll(places, (-shift_down, -shift_across), (0, 1))
    padding = (0, -columns % across, 0, -rows % down)
    places = nn.functional.pad(places, padding, value=-1)
    tiles = places.unflatten(0, (-1, down)).unflatten(2, (-1, across))  # (rows, down, columns, across)
    return tiles.transpose(1, 2).flatten(2).flatten(0, 1)


def _roll_merging(row: Tensor, _: Any, __: Recorded) -> Tensor:
    """Share the weight of a merged patch equally between its four patches."""
    side = round(len(row) ** 0.5)
    return row.reshape(side, side).repeat_interleave(2, 0).repeat_interleave(2, 1).flatten() / 4


def _roll_whole(row: Tensor, block: Any, recorded: Recorded) -> Tensor:
    """Carry a row (T,) through a block in which each token attends to all; the row may lack the prefix tokens."""
    weights = recorded[block.attn.attn_drop][0].mean(0)  # (T, T)
    whole = nn.functional.pad(row, (len(weights) - len(row), 0))
    return whole / 2 + whole @ weights / 2


def _drop_prefix(row: Tensor, backbone: Any) -> Tensor:
    """Return a row without class and register tokens."""
    return row[int(getattr(backbone, "num_prefix_tokens", 0)) :] if hasattr(backbone, "blocks") else row


_STEPS: dict[str, Callable[[Tensor, Any, Recorded], Tensor]] = {
    "merge": _roll_merging,
    "window": _roll_window,
    "whole": _roll_whole,
}
