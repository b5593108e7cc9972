"""Rename the tensors of image encoders from the names of `transformers` to those of timm.

The encoders are Dinov2Model, Dinov2WithRegistersModel, ViTModel, SwinModel, Swinv2Model and ConvNextModel, alone or
inside a model with a head.
"""

import re
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

_ANCHOR: Final = re.compile(r"^(.*\.)?embeddings\.patch_embeddings\.(projection\.)?weight$")
_RULES: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.patch_embeddings\.", "stem.0."),
        (r"^embeddings\.layernorm\.", "stem.1."),
        (r"^embeddings\.norm\.", "patch_embed.norm."),
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.register_tokens$", "reg_token"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^encoder\.layer\.", "blocks."),
        (r"^encoder\.layers\.", "layers."),
        (r"^encoder\.stages\.(\d+)\.downsampling_layer\.", r"stages.\1.downsample."),
        (r"^encoder\.stages\.(\d+)\.layers\.", r"stages.\1.blocks."),
        (r"^layernorm\.", "norm."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.layernorm\.", ".norm."),
        (r"\.attention\.(?:attention|self)\.continuous_position_bias_mlp\.", ".attn.cpb_mlp."),
        (r"\.attention\.(?:attention|self)\.", ".attn."),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
        (r"\.dwconv\.", ".conv_dw."),
        (r"\.pwconv(\d)\.", r".mlp.fc\1."),
        (r"\.layer_scale_parameter$", ".gamma"),
    )
)
_PARTS: Final = ("query", "key", "value")


def use_timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with timm's names. Tensors with other names than those of `transformers` stay as they are.

    timm joins the weights of query, key and value in one tensor. In a model with register tokens it adds the position
    of the class token to that token.
    """
    anchors = [match for name in tensors if (match := _ANCHOR.match(name))]
    if len(anchors) != 1:
        return dict(tensors)
    prefix = anchors[0][1] or ""
    renamed = {
        _rename(name.removeprefix(prefix)) if name.startswith(prefix) else name: tensor
        for name, tensor in tensors.items()
    }
    _join_attention(renamed)
    if {"reg_token", "cls_token", "pos_embed"} <= renamed.keys():
        positions = renamed["pos_embed"]  # (1, 1 + N, F)
        renamed["cls_token"] = renamed["cls_token"] + positions[:, :1]
        renamed["pos_embed"] = positions[:, 1:]
    return renamed


def _rename(name: str) -> str:
    for pattern, replacement in _RULES:
        name = pattern.sub(replacement, name)
    return name


def _join_attention(tensors: dict[str, Tensor]) -> None:
    """Join query, key and value in place. If the key has no bias (Swin V2), timm has two separate biases."""
    for name in [name for name in tensors if name.endswith((".attn.query.weight", ".attn.query.bias"))]:
        names = [name.replace(".query.", f".{part}.") for part in _PARTS]
        if all(part in tensors for part in names):
            tensors[name.replace(".query.", ".qkv.")] = torch.cat([tensors.pop(part) for part in names])
        else:
            for part in ("query", "value"):
                bias = tensors.pop(name.replace(".query.", f".{part}."), None)
                if bias is not None:
                    tensors[name.replace(".query.bias", f".{part[0]}_bias")] = bias
