"""Whether a radiograph was read as a negative: white lungs in a dark chest.

Files are marked MONOCHROME1 whose pixels are MONOCHROME2, and pictures are exported as negatives. Nothing in the header
betrays that, so the grey is looked at: in every chest the mediastinum and the abdomen are brighter than the lungs, and
the middle is brighter than the upper corners, where air or the edges of the shoulders are. The three differences, in
standard deviations of the image, add up. A negative has the same sum with the other sign.

Of 6,517 radiographs (677 of ChestX-ray14 and Open-i, frontal but for two laterals, and 5,840 of children, Kermany et
al.) the smallest sum is 0.46 and the next 0.80; so none of them is called a negative, and all but one of their
negatives are. The limit lies where none is called so after a margin of an eighth was cut off all around. A radiograph
that lies on its side may pass for a negative.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

NEGATIVE_LIMIT: Final = -0.7  # standard deviations
_SIDE: Final = 32  # pixels a side at which the parts are compared
# Parts of the image without its level borders: first row, last row, first column, last column, of 32.
_MEDIASTINUM: Final = (9, 25, 14, 17)
_LUNGS: Final = ((8, 20, 6, 11), (8, 20, 20, 25))
_ABDOMEN: Final = (27, 32, 9, 22)
_MIDDLE: Final = (12, 25, 12, 19)
_CORNERS: Final = ((0, 3, 0, 3), (0, 3, 28, 32))


def measure_polarity(image: NDArray[np.uint8]) -> float:
    """Return how much brighter the bright parts of a chest are than the dark ones, in standard deviations.

    It is below 0 in a negative.

    Args:
        image: (rows, columns) greys without level borders.
    """
    import cv2

    small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    lungs, corners = (np.mean([_measure(small, part) for part in parts]) for parts in (_LUNGS, _CORNERS))
    brighter = _measure(small, _MEDIASTINUM) + _measure(small, _ABDOMEN) + _measure(small, _MIDDLE)
    return float((brighter - 2 * lungs - corners) / max(float(small.std()), 1.0))


def _measure(image: NDArray[np.float32], part: tuple[int, int, int, int]) -> float:
    top, bottom, left, right = part
    return float(image[top:bottom, left:right].mean())
