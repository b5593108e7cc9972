"""The Swin of the image encoder, as timm builds it, and a stem for training from scratch.

Liu et al. 2021, arXiv:2103.14030.
"""

from itertools import pairwise
from typing import Any

import timm
from torch import nn

from training.config.settings import ModelConfig


def create_swin(config: ModelConfig, **weights: Any) -> nn.Module:
    """Create the timm Swin without a head; `weights` go to `timm.create_model`."""
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=config.image_size,
        patch_size=config.image_patch,
        in_chans=1,
        num_classes=0,
        embed_dim=config.image_width,
        depths=config.image_depths,
        num_heads=config.image_heads,
        window_size=config.image_window,
        drop_path_rate=config.image_drop_path,
        **{"pretrained": False, **weights},
    )
    if config.image_stem == "conv":
        swin.patch_embed.proj = make_conv_stem(config.image_width, config.image_patch)
    return swin


def make_conv_stem(width: int, patch: int) -> nn.Sequential:
    """Return convolutions from (B, 1, S, S) to (B, width, S / patch, S / patch), for Swin's patch projection.

    On a few hundred images, a Swin from scratch hardly learns with its own projection, but learns with convolutions.
    Xiao et al. 2021, Early Convolutions Help Transformers See Better, arXiv:2106.14881.

    Args:
        width: Channels of the first Swin stage.
        patch: A power of 2; each halving of the sides takes two convolutions.
    """
    halvings = patch.bit_length() - 1
    channels = [1, *(width >> (halvings - step) for step in range(1, halvings + 1))]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        for stride in (2, 1):
            layers += [
                nn.Conv2d(inputs if stride == 2 else outputs, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
    return nn.Sequential(*layers, nn.Conv2d(width, width, 1))
