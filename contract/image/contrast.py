"""Warnings about the grey values of an image: no contrast, no structure, two levels, a negative.

Such an image gets an answer like any other, but the answer is worthless, so a warning accompanies it. The limits are
far from all measured radiographs (670 of ChestX-ray14, 487 of Kermany et al., Open-i, the phantoms; at 56 and at 224
pixels per side). The comments give the radiographs' smallest values.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from contract.image.polarity import NEGATIVE_LIMIT, measure_polarity

_LEAST_SPREAD: Final = 64  # of 255, between the 1st and the 99th percentile; radiographs: 116 and more
_LEAST_CORRELATION: Final = 0.4  # of neighbours; radiographs: 0.7 and more
_COARSE_SIDE: Final = 32  # pixels; at this size enlarged noise is recognised; radiographs: 0.48 and more
_LEAST_COARSE: Final = 0.25
_LEAST_REST: Final = 0.1  # share of pixels with other than the two commonest greys; radiographs: 0.4 and more
_LEVEL_REACH: Final = 8  # greys on each side that count as the same level

NO_CONTRAST: Final = "The image has hardly any contrast: no finding can be seen in it."
NO_RADIOGRAPH: Final = "The image does not look like a radiograph: "
NOISE: Final = NO_RADIOGRAPH + "neighbouring pixels are unrelated, as in noise."
TWO_LEVELS: Final = NO_RADIOGRAPH + "nearly all pixels have one of two grey values."
NEGATIVE: Final = (
    "The image looks like a negative, with the lungs brighter than the mediastinum and the abdomen. The file may state "
    "the wrong polarity, or the image lies on its side. Do not rely on the answer."
)


def list_remarks(image: NDArray[np.uint8]) -> list[str]:
    """Return the warnings about an image, at most one sentence.

    Args:
        image: (rows, columns) greys as the model sees them, without the padding around the image.
    """
    counts = np.bincount(image.ravel(), minlength=256)
    low, high = np.searchsorted(np.cumsum(counts), (0.01 * image.size, 0.99 * image.size))
    if high - low < _LEAST_SPREAD:
        return [NO_CONTRAST]
    inner = crop_borders(image)
    if measure_correlation(inner) < _LEAST_CORRELATION or measure_coarse(inner) < _LEAST_COARSE:
        return [NOISE]
    if measure_rest(counts) < _LEAST_REST:
        return [TWO_LEVELS]
    return [NEGATIVE] if measure_polarity(inner) < NEGATIVE_LIMIT else []


def crop_borders(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image without constant rows and columns at its edges, which would look like structure."""
    rows, columns = (np.flatnonzero(np.ptp(image, axis=axis) >= _LEAST_SPREAD) for axis in (1, 0))
    if not (rows.size and columns.size):
        return image
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def measure_correlation(image: NDArray[np.uint8]) -> float:
    """Return the correlation of neighbouring pixels, -1 to 1, in the direction with the lower one."""
    values = image.astype(np.float32) - np.float32(image.mean())
    products = [values[:, 1:] * values[:, :-1], values[1:] * values[:-1]]
    least = min((float(product.mean()) for product in products if product.size), default=0.0)
    return least / max(float((values * values).mean()), 1e-6)


def measure_coarse(image: NDArray[np.uint8]) -> float:
    """Return `measure_correlation` of the image scaled to `_COARSE_SIDE` pixels; 1 if it is too narrow."""
    import cv2

    scale = _COARSE_SIDE / max(image.shape)
    rows, columns = (round(side * scale) for side in image.shape)
    if min(rows, columns) < _COARSE_SIDE // 4 or scale >= 1:
        return 1.0
    return measure_correlation(cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA))


def measure_rest(counts: NDArray[np.int64]) -> float:
    """Return the share of pixels that do not have one of the two commonest greys.

    Args:
        counts: (256,) pixels of each grey.
    """
    others, total = counts.copy(), counts.sum()
    for _ in range(2):
        level = int(others.argmax())
        others[max(level - _LEVEL_REACH, 0) : level + _LEVEL_REACH + 1] = 0
    return float(others.sum() / total)
