"""Detect a radiograph that was read as a negative: white lungs in a dark chest.

Some files state MONOCHROME1 although their pixels are MONOCHROME2, and some pictures are exported as negatives. The
header does not show that, so the grey values are measured. In every chest the mediastinum and the abdomen are brighter
than the lungs, and the middle is brighter than the upper corners, which show air or the edges of the shoulders. The
measure is the sum of these three differences, in standard deviations of the image. A negative has the opposite sign.

6,517 radiographs were measured (677 of ChestX-ray14 and Open-i, all frontal but two, and 5,840 of children, Kermany et
al.). The smallest sum is 0.46 and the next 0.80, so no radiograph is called a negative, and all but one of their
negatives are. With this limit, none is called a negative either after an eighth of the image is cut off at each side.
A radiograph that lies on its side may look like a negative.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

NEGATIVE_LIMIT: Final = -0.7  # standard deviations
_SIDE: Final = 32  # pixels per side of the image in which the parts are compared
# Parts of the image without its constant borders: first row, last row, first column, last column, of 32.
_MEDIASTINUM: Final = (9, 25, 14, 17)
_LUNGS: Final = ((8, 20, 6, 11), (8, 20, 20, 25))
_ABDOMEN: Final = (27, 32, 9, 22)
_MIDDLE: Final = (12, 25, 12, 19)
_CORNERS: Final = ((0, 3, 0, 3), (0, 3, 28, 32))


def measure_polarity(image: NDArray[np.uint8]) -> float:
    """Return how much brighter the bright parts of a chest are than the dark parts, in standard deviations.

    The result is below 0 for a negative.

    Args:
        image: (rows, columns) greys without constant borders.
    """
    import cv2

    small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    lungs, corners = (np.mean([_measure(small, part) for part in parts]) for parts in (_LUNGS, _CORNERS))
    brighter = _measure(small, _MEDIASTINUM) + _measure(small, _ABDOMEN) + _measure(small, _MIDDLE)
    return float((brighter - 2 * lungs - corners) / max(float(small.std()), 1.0))


def _measure(image: NDArray[np.float32], part: tuple[int, int, int, int]) -> float:
    top, bottom, left, right = part
    return float(image[top:bottom, left:right].mean())
