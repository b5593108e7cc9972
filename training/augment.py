"""Random augmentation of radiographs in training: geometry, exposure, noise.

The changes to an image depend only on its own row of random numbers (`draws`), which the caller gives. So every
process of a data-parallel run changes an image as a single process would. Only the values of added noise differ.

Each change uses its own columns of the row, so switching one change off does not alter the others.
"""

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from training.config.settings import AugmentConfig

COLUMNS: Final = (  # meaning of the numbers in a row of draws
    *("turn", "zoom", "right", "down"),
    *("gamma", "gain", "noise", "mirrored"),
)
DRAWS: Final[int] = len(COLUMNS)  # random numbers per image
_WHITE: Final = 255.0


def augment(pixels: Tensor, config: AugmentConfig, draws: Tensor, generator: torch.Generator) -> Tensor:
    """Change every image at random, with the ranges of the config.

    The changes, in this order:

    - `flip`: mirror the image left-right with probability 0.5.
    - `gamma`, `gain`: grey v of 0 to 1 becomes min(1, gain * v ** gamma), with gamma log-uniform between
      exp(-`gamma`) and exp(`gamma`) and gain uniform between 1 - `gain` and 1 + `gain`. Black stays black.
    - `rotation_degrees`, `scale`, `shift`: turned about the centre by an angle uniform between plus and minus
      `rotation_degrees` (positive: counter-clockwise), enlarged by a factor log-uniform between 1 / (1 + `scale`)
      and 1 + `scale`, then shifted in x and y by up to `shift` of the side either way, uniformly; one bilinear
      interpolation. The area outside the old image is black, like the padding of `contract.image.read.load_pixels`.
    - `noise`: Gaussian, independent in every pixel, with a standard deviation uniform between 0 and `noise` of the
      range. Black pixels (padding) stay black.

    A change whose setting is 0 (False) is not computed, so without any change the values stay as they are. The code
    never synchronises with a GPU, and torch.compile makes one graph of it unless there is noise.

    Args:
        pixels: (B, 1, S, S) uint8; B may be 0.
        config: Range of each change.
        draws: (B, DRAWS) float32 in [0, 1), uniform, on the device of `pixels`; one row per image.
        generator: Draws only the noise; on the device of `pixels`.

    Returns:
        (B, 1, S, S) float32, 0 to 255.

    Raises:
        ValueError: Pixels or draws have another shape or type, which is a programming error.
    """
    _check(pixels, draws)
    # In float64, so that a row gives the same float32 numbers at any position in a batch.
    drawn = dict(zip(COLUMNS, draws.double().unbind(1), strict=True))
    if config.flip:
        pixels = torch.where(_spread(drawn["mirrored"] < 0.5), pixels.flip(-1), pixels)
    exposed = config.gamma > 0 or config.gain > 0
    images = _expose(pixels, config, drawn) if exposed else pixels.float()
    if config.rotation_degrees > 0 or config.scale > 0 or config.shift > 0:
        images = _move(images, config, drawn)
    if config.noise > 0:
        deviation = _spread(_WHITE * config.noise * drawn["noise"]).float()
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        images = noise.mul_(deviation).mul_(images > 0).add_(images).clamp_(0.0, _WHITE)
    return images


def _check(pixels: Tensor, draws: Tensor) -> None:
    shape = tuple(pixels.shape)
    if len(shape) != 4 or shape[1] != 1 or shape[2] != shape[3] or pixels.dtype != torch.uint8:
        raise ValueError(f"pixels must be (B, 1, S, S) uint8, not {shape} {pixels.dtype}.")
    if tuple(draws.shape) != (shape[0], DRAWS) or draws.dtype != torch.float32:
        raise ValueError(
            f"draws must be ({shape[0]}, {DRAWS}) float32, not {tuple(draws.shape)} {draws.dtype}."
        )


def _spread(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), one value per image."""
    return values[:, None, None, None]


def _sign(draw: Tensor) -> Tensor:
    """[0, 1) -> [-1, 1)."""
    return 2.0 * draw - 1.0


def _expose(pixels: Tensor, config: AugmentConfig, drawn: Mapping[str, Tensor]) -> Tensor:
    """Map greys (B, 1, S, S) with a table of 256 entries, which is faster than a power for every pixel."""
    exponent = torch.exp(config.gamma * _sign(drawn["gamma"]))
    gain = 1.0 + config.gain * _sign(drawn["gain"])
    levels = torch.arange(256, dtype=torch.float64, device=pixels.device) / _WHITE
    table = (gain[:, None] * levels ** exponent[:, None]).clamp(max=1.0) * _WHITE  # (B, 256)
    return table.float().gather(1, pixels.flatten(1).long()).view(pixels.shape)


def _move(images: Tensor, config: AugmentConfig, drawn: Mapping[str, Tensor]) -> Tensor:
    """Turn, scale and shift (B, 1, S, S) images."""
    turn = math.radians(config.rotation_degrees) * _sign(drawn["turn"])
    zoom = (1.0 + config.scale) ** _sign(drawn["zoom"])
    across, along = torch.cos(turn) / zoom, torch.sin(turn) / zoom
    # Position in the old image of each new pixel. Coordinates run from -1 to 1, so the side is 2. `F.affine_grid` is
    # not used: on a CPU it takes longer than the sampling, and autocast would round it to bfloat16.
    coordinates = 2.0 * _centre(images.shape[-1], images.device) - 1.0  # (S,)
    x = coordinates - 2.0 * config.shift * _sign(drawn["right"])[:, None]  # (B, S)
    y = coordinates - 2.0 * config.shift * _sign(drawn["down"])[:, None]
    across_x, across_y, along_x, along_y = (
        (weight[:, None] * coordinate).float() for weight in (across, along) for coordinate in (x, y)
    )  # (B, S)
    columns, rows = torch.stack([across_x, along_x], 1), torch.stack([-along_y, across_y], 1)  # (B, 2, S)
    grid = (columns[:, :, None, :] + rows[:, :, :, None]).permute(0, 2, 3, 1)  # (B, S, S, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _centre(size: int, device: torch.device) -> Tensor:
    """Return the centres of the pixels along a side of length 1, (S,) float64."""
    return (torch.arange(size, dtype=torch.float64, device=device) + 0.5) / size
