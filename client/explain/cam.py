"""Grad-CAM of a class logit on the last stage of the image encoder (Selvaraju et al. 2017, arXiv:1610.02391)."""

import numpy as np
from numpy.typing import NDArray

from client.explain.network import Probe
from contract.errors import ConfigError

try:
    import torch
except ModuleNotFoundError as error:
    raise ConfigError("Explanations need the 'explain' extra: pip install 'cxr-serving[explain]'.") from error


def compute_grad_cam(probe: Probe) -> NDArray[np.float32]:
    """Return the map (G, G), 0 or more, in logits: the positive part of the weighted mean of the features.

    The weight of a feature is the mean of its gradient over the patches. The gradient ends at the features, so the
    stages below are not differentiated.

    Args:
        probe: The logit of the label as a function of the pixels.
    """
    encoder, layout = probe.model.image_encoder, probe.model.image_encoder.layout
    with torch.no_grad():
        features = encoder.backbone.forward_features(encoder.scale(probe.pixels, encoder.mean))
    with torch.enable_grad():  # also for a caller that needs no gradients
        tokens = layout.take_tokens(features).detach().requires_grad_()  # (1, N, F), row by row
        logit = probe.fuse(encoder.project(tokens) + encoder.position).logits[0, probe.index]
        [gradient] = torch.autograd.grad(logit, tokens)
    with torch.no_grad():
        found = torch.relu((gradient.mean(1, keepdim=True) * tokens).sum(-1))
    array: NDArray[np.float32] = found.reshape(layout.grid, layout.grid).cpu().numpy().astype(np.float32)
    return array
