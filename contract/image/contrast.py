"""What the grey of an image that was read says against it: no contrast, no structure, two levels, a negative.

Such an image is answered like any other, and the answer is worth nothing; so whoever reads it is told. The limits lie
far from all real radiographs that were measured (670 of ChestX-ray14, 487 of Kermany et al., Open-i, the phantoms;
at 56 and at 224 pixels a side), whose smallest values stand beside them.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from contract.image.polarity import NEGATIVE_LIMIT, measure_polarity

_LEAST_SPREAD: Final = 64  # of 255, between the 1st and the 99th percentile; radiographs: 116 and more
_LEAST_CORRELATION: Final = 0.4  # of neighbours; radiographs: 0.7 and more
_COARSE_SIDE: Final = 32  # pixels; enlarged noise shows at this size, where radiographs have 0.48 and more
_LEAST_COARSE: Final = 0.25
_LEAST_REST: Final = 0.1  # share beside the two commonest greys; radiographs: 0.4 and more
_LEVEL_REACH: Final = 8  # greys to each side that count as one with a level

NO_CONTRAST: Final = "The image has hardly any contrast: no finding can be seen in it."
NO_RADIOGRAPH: Final = "The image does not look like a radiograph: "
NOISE: Final = NO_RADIOGRAPH + "neighbouring pixels have nothing in common, as in noise."
TWO_LEVELS: Final = NO_RADIOGRAPH + "nearly all of it has one of two greys."
NEGATIVE: Final = (
    "The image looks like a negative, with lungs brighter than what lies between and below them: the file may state "
    "the wrong polarity, or the image lies on its side. Do not rely on what the model says of it."
)


def list_remarks(image: NDArray[np.uint8]) -> list[str]:
    """Return what to be warned of, one sentence at most.

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
    """Return the image without the level rows and columns around it, which would pass for structure in noise."""
    rows, columns = (np.flatnonzero(np.ptp(image, axis=axis) >= _LEAST_SPREAD) for axis in (1, 0))
    if not (rows.size and columns.size):
        return image
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def measure_correlation(image: NDArray[np.uint8]) -> float:
    """Return how pixels correlate with their neighbours, -1 to 1, in the direction in which they do less."""
    values = image.astype(np.float32) - np.float32(image.mean())
    products = [values[:, 1:] * values[:, :-1], values[1:] * values[:-1]]
    least = min((float(product.mean()) for product in products if product.size), default=0.0)
    return least / max(float((values * values).mean()), 1e-6)


def measure_coarse(image: NDArray[np.uint8]) -> float:
    """Return the same of the image at `_COARSE_SIDE` pixels; 1 for one that is too narrow to tell."""
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
    rest, total = counts.copy(), counts.sum()
    for _ in range(2):
        level = int(rest.argmax())
        rest[max(level - _LEVEL_REACH, 0) : level + _LEVEL_REACH + 1] = 0
    return float(rest.sum() / total)
