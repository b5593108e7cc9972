"""Maps that need no gradient: parts of the picture are replaced, and the change of the logit is recorded.

Occlusion: Zeiler and Fergus 2014, arXiv:1311.2901. Shapley values by sampling: Castro et al. 2009; Strumbelj and
Kononenko 2010. Both as Captum computes them. A part that is taken away gets the mean grey of the radiograph: black
would itself look like air.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.explain.network import Probe
from contract.errors import ConfigError

_MISSING: Final = "Explanations need the 'explain' extra: pip install 'cxr-serving[explain]'."

try:
    import torch
    from torch import Tensor
except ModuleNotFoundError as error:
    raise ConfigError(_MISSING) from error

Array = NDArray[np.float32]
BATCH: Final = 32  # pictures in one pass, which limits the memory
SAMPLES: Final = 12  # orders in which the patches are taken away
SEED: Final = 0


def _import_captum() -> Any:
    """Return Captum's methods. The other maps do not wait for this import."""
    try:
        from captum import attr
    except ModuleNotFoundError as error:
        raise ConfigError(_MISSING) from error
    return attr


def fill_grey(probe: Probe) -> Tensor:
    """Return pixels (1, 1, S, S) of the mean grey of the radiograph, which stand for nothing."""
    pixels, frame = probe.pixels, probe.inputs.frame
    if frame is None:
        return torch.full_like(pixels, float(pixels.mean()))
    rows, columns = frame.cut(pixels.shape[-1])
    return torch.full_like(pixels, float(pixels[..., rows, columns].mean()))


def compute_occlusion(probe: Probe) -> Array:
    """Return the map (S, S), in logits: how much the logit falls where a square of one patch is grey.

    The square moves by half a patch.
    """
    side = probe.pixels.shape[-1] // probe.model.image_encoder.layout.grid
    with torch.no_grad():
        found = (
            _import_captum()
            .Occlusion(probe)
            .attribute(
                probe.pixels,
                sliding_window_shapes=(1, side, side),
                strides=(1, max(1, side // 2), max(1, side // 2)),
                baselines=fill_grey(probe),
                perturbations_per_eval=BATCH,
            )
        )
    array: Array = found[0, 0].cpu().numpy().astype(np.float32)
    return array


def compute_shapley(probe: Probe) -> Array:
    """Return the map (G, G), in logits: the Shapley value of each patch, from `SAMPLES` random orders.

    The values sum to the logit of the picture minus the logit of the grey one, exactly.
    """
    grid = probe.model.image_encoder.layout.grid
    side = probe.pixels.shape[-1] // grid
    patches = torch.arange(grid * grid, device=probe.pixels.device).reshape(grid, grid)
    mask = patches.repeat_interleave(side, 0).repeat_interleave(side, 1)[None, None]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        found = (
            _import_captum()
            .ShapleyValueSampling(probe)
            .attribute(
                probe.pixels,
                baselines=fill_grey(probe),
                feature_mask=mask,
                n_samples=SAMPLES,
                perturbations_per_eval=BATCH,
            )
        )
    array: Array = found[0, 0, ::side, ::side].cpu().numpy().astype(np.float32)
    return array
