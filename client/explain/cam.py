"""Grad-CAM of a class logit on the last stage of the image encoder.

Selvaraju et al. 2017, arXiv:1610.02391, as Captum's `LayerGradCam` computes it.
"""

import numpy as np
from numpy.typing import NDArray

from client.explain.network import Probe
from contract.errors import ConfigError

try:
    from captum.attr import LayerGradCam
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    raise ConfigError("Explanations need the 'explain' extra: pip install 'cxr-serving[explain]'.") from error


class _Stage(nn.Module):
    """The last stage as one layer with channels first, whatever order of axes the encoder has."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.probe = probe
        self.layer = nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits (B,) of pixels (B, 1, S, S)."""
        encoder, layout = self.probe.model.image_encoder, self.probe.model.image_encoder.layout
        features = encoder.backbone.forward_features(encoder.scale(pixels, encoder.mean))
        tokens = layout.take_tokens(features)  # (B, N, F), row by row
        grid = tokens.transpose(1, 2).unflatten(2, (layout.grid, layout.grid))  # (B, F, G, G)
        tokens = self.layer(grid).flatten(2).transpose(1, 2)
        return self.probe.fuse(encoder.project(tokens) + encoder.position).logits[:, self.probe.index]


def compute_grad_cam(probe: Probe) -> NDArray[np.float32]:
    """Return the map (G, G), 0 or more, in logits: the positive part of the weighted mean of the features.

    Args:
        probe: The logit of the label as a function of the pixels.
    """
    stage = _Stage(probe)
    pixels = probe.pixels.clone().requires_grad_(
        True
    )  # without it, frozen weights leave nothing to differentiate
    found = LayerGradCam(stage, stage.layer).attribute(pixels, relu_attributions=True)
    array: NDArray[np.float32] = found[0, 0].detach().cpu().numpy().astype(np.float32)
    return array
