"""Attributions to what is shown: smooth a map, pool it by patch, and find the box around its strongest spot.

What `smooth_map` gives is both drawn and measured by `cxr evaluate explain`.
"""

import io
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError

SMOOTHING: Final = (
    0.02  # standard deviation of the Gaussian filter, as a share of the side of the attribution
)
_FEW_PIXELS: Final = 32  # side; a smaller map has one value for each patch
STRONG_LEVEL: Final = 0.5  # lowest value in a strong spot, as a share of the highest value

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Box:
    """A box in the square that the model reads. Each edge is a share of the side; (0, 0) is the upper left corner."""

    left: float
    top: float
    right: float
    bottom: float

    def to_dict(self) -> dict[str, float]:
        """Return the four edges."""
        return asdict(self)


def smooth_attribution(attribution: Array, size: int) -> Array:
    """Smooth an attribution and scale it for display.

    Args:
        attribution: (S, S), signed.
        size: Side of the result.

    Returns:
        (size, size) float32, -1 to 1. An absolute value of 1 is the 99.9th percentile, so that a single strong pixel
        does not hide the others.
    """
    cv2 = import_cv2()
    sigma = SMOOTHING * len(attribution)
    smoothed = cv2.GaussianBlur(attribution.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    top = float(np.percentile(np.abs(smoothed), 99.9))
    scaled = cv2.resize(smoothed / max(top, 1e-12), (size, size), interpolation=cv2.INTER_CUBIC)
    limited: Array = np.clip(scaled, -1, 1).astype(np.float32)
    return limited


def smooth_map(values: Array, size: int) -> Array:
    """Bring the map of any method to the size of the display, and scale it.

    Args:
        values: (H, H). A map of patches is interpolated; a map of pixels is smoothed as in `smooth_attribution`.
        size: Side of the result.

    Returns:
        (size, size) float32, -1 to 1.
    """
    if len(values) < _FEW_PIXELS:
        cv2 = import_cv2()
        large = cv2.resize(values.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
        scaled: Array = (large / max(float(np.abs(large).max()), 1e-12)).astype(np.float32)
        return scaled
    return smooth_attribution(values, size)


def pool_patches(values: Array, grid: int) -> Array:
    """Return the sums (G, G) of a map (S, S) over its patches; S must be a multiple of `grid`."""
    side = len(values) // grid
    pooled: Array = values.reshape(grid, side, grid, side).sum(axis=(1, 3))
    return pooled


def find_hottest_box(attribution: Array) -> Box | None:
    """Return the box around the spot that speaks most for the finding; None if no pixel speaks for it.

    Args:
        attribution: (S, S), signed.
    """
    cv2 = import_cv2()
    smoothed = smooth_attribution(attribution, len(attribution))
    row, column = np.unravel_index(int(smoothed.argmax()), smoothed.shape)
    highest = float(smoothed[row, column])
    if highest <= 0:
        return None
    _, areas = cv2.connectedComponents((smoothed >= STRONG_LEVEL * highest).astype(np.uint8))
    rows, columns = np.nonzero(areas == areas[row, column])
    edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return Box(*(round(float(edge) / len(attribution), 4) for edge in edges))


def import_cv2() -> Any:
    """Return OpenCV. Raise ConfigError if it is not installed."""
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise make_missing_error() from error
    return cv2


def encode_png(array: NDArray[np.uint8]) -> bytes:
    """Encode (H, W) grey or (H, W, 3) RGB uint8 as a PNG file."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise make_missing_error() from error
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def make_missing_error() -> ConfigError:
    """Return the error of a missing package."""
    return ConfigError(
        "Drawing an explanation needs the 'explain' extra: pip install 'cxr-serving[explain]'."
    )
