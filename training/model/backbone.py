"""Any timm backbone whose features form a square grid, as an encoder of image tokens.

One image of zeros on torch's "meta" device, which uses no memory, shows the layout of a backbone's features: which axis
holds the channels, how many tokens precede those of the image, and which modules compute the features.
"""

import difflib
import json
import math
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

import timm
import torch
from torch import Tensor, nn

from contract.embedding import count_label_part
from contract.errors import ConfigError
from training.config.settings import SWIN, ModelConfig
from training.model.swin import create_swin

_BUILD_ERRORS: Final = (
    TypeError,
    ValueError,
    RuntimeError,
    AssertionError,
    AttributeError,
    NotImplementedError,
)


@dataclass(frozen=True)
class TokenLayout:
    """How the features of a backbone hold its tokens.

    Attributes:
        axes: "NLC" (B, prefix + N, F), "NHWC" (B, G, G, F) or "NCHW" (B, F, G, G), where N = G * G.
        grid: G, tokens along one side of the image.
        width: F, channels of a token.
        prefix: Tokens before those of the image: class and register tokens.
        unused: Direct children with parameters that the features do not need, such as the norm of a classifier.
    """

    axes: Literal["NLC", "NHWC", "NCHW"]
    grid: int
    width: int
    prefix: int = 0
    unused: tuple[str, ...] = ()

    def take_tokens(self, features: Tensor) -> Tensor:
        """Return the image tokens (B, N, F), row by row, of the result of `forward_features`."""
        if self.axes == "NLC":
            return features[:, self.prefix :]
        return features.flatten(1, 2) if self.axes == "NHWC" else features.flatten(2).transpose(1, 2)


def create_backbone(config: ModelConfig) -> nn.Module:
    """Create the image backbone of a config, with random weights and without the modules of a classifier.

    Raises:
        ConfigError: See `read_layout`.
    """
    if config.image_backbone == SWIN:
        return create_swin(config)
    backbone = _create(config)
    for name in read_layout(config).unused:
        setattr(backbone, name, nn.Identity())
    return backbone


def read_layout(config: ModelConfig) -> TokenLayout:
    """Return the layout of the features of a config's backbone.

    Raises:
        ConfigError: timm has no such backbone or cannot build it, or its features form no square grid.
    """
    if config.image_backbone == SWIN:
        reduction = 2 ** (len(config.image_depths) - 1)
        grid = config.image_size // (config.image_patch * reduction)
        return TokenLayout("NHWC", grid, config.image_width * reduction)
    arguments = json.dumps(config.image_arguments, sort_keys=True)
    return _probe(config.image_backbone, config.image_size, config.image_drop_path, arguments)


def read_sizes(config: ModelConfig) -> dict[str, int]:
    """Return the shape letters S, N, C, D of `contract.tensors` for a model's config.

    Raises:
        ConfigError: See `read_layout`.
    """
    tokens = read_layout(config).grid ** 2
    size = config.embedding_size + count_label_part({"label_share": config.label_share})
    return {"S": config.image_size, "N": tokens, "C": config.width, "D": size}


@lru_cache(maxsize=16)
def _probe(name: str, size: int, drop_path: float, arguments: str) -> TokenLayout:
    config = ModelConfig(
        image_backbone=name,
        image_size=size,
        image_drop_path=drop_path,
        image_arguments=json.loads(arguments),
    )
    backbone = _create(config).to("meta").eval()
    used: set[str] = set()
    for path, module in backbone.named_modules():
        module.register_forward_hook(lambda *_, path=path: used.add(path.split(".")[0]))
    try:
        with torch.no_grad():
            features = backbone.forward_features(torch.zeros(1, 1, size, size, device="meta"))
    except _BUILD_ERRORS as error:
        raise _refuse(config, f"it reads no images of {size} x {size} pixels ({_shorten(error)})") from error
    unused = tuple(
        child
        for child, module in backbone.named_children()
        if child not in used and next(module.parameters(), None) is not None
    )
    layout = _find_layout(config, backbone, features, unused)
    stride = _read_stride(backbone)
    if stride and layout.grid * stride != size:
        raise _refuse(config, f"its patches of {stride} pixels do not divide images of {size} pixels")
    if size % layout.grid:
        raise _refuse(config, f"its {layout.grid} tokens a side do not divide images of {size} pixels")
    return layout


def _read_stride(backbone: nn.Module) -> int | None:
    """Return how many pixels a token spans along a side; None if the backbone does not state it."""
    stated = getattr(backbone, "feature_info", None)
    return int(stated[-1]["reduction"]) if stated else None


def _find_layout(
    config: ModelConfig, backbone: nn.Module, features: Any, unused: tuple[str, ...]
) -> TokenLayout:
    shape = tuple(features.shape) if isinstance(features, Tensor) else ()
    width = int(getattr(backbone, "num_features", 0))
    if len(shape) == 3 and shape[2] == width:
        prefix = int(getattr(backbone, "num_prefix_tokens", 0))
        grid = math.isqrt(shape[1] - prefix)
        if grid * grid == shape[1] - prefix:
            return TokenLayout("NLC", grid, width, prefix, unused)
    if len(shape) == 4:
        last = str(getattr(backbone, "output_fmt", "")).endswith("NHWC") or shape[1] != width
        _, *sides = shape[:3] if last else (0, *shape[2:])
        if sides[0] == sides[1] and width == shape[3 if last else 1]:
            return TokenLayout("NHWC" if last else "NCHW", sides[0], width, 0, unused)
    description = list(shape) if shape else f"a {type(features).__name__}"
    raise _refuse(config, f"its features ({description}) form no square grid of tokens")


def _create(config: ModelConfig) -> nn.Module:
    name = config.image_backbone
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"; timm has {', '.join(near)}" if near else ""
        raise ConfigError(f"timm {timm.__version__} has no backbone {name!r} (model.image_backbone){hint}.")
    arguments: dict[str, Any] = deepcopy(config.image_arguments)
    stated = timm.get_pretrained_cfg(name)
    if stated is not None and stated.fixed_input_size:
        arguments["img_size"] = config.image_size
    if config.image_drop_path:
        arguments["drop_path_rate"] = config.image_drop_path
    try:
        backbone: nn.Module = timm.create_model(
            name, pretrained=False, in_chans=1, num_classes=0, **arguments
        )
    except _BUILD_ERRORS as error:
        raise _refuse(config, f"timm cannot build it so ({_shorten(error)})") from error
    return backbone


def _refuse(config: ModelConfig, reason: str) -> ConfigError:
    return ConfigError(f"The backbone {config.image_backbone} cannot be used: {reason}.")


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:160].rstrip(".")
