"""Maps that know nothing of the finding: the centre of the picture, and chance."""

from typing import Final

import numpy as np

from contract.image.frame import Frame
from training.evaluation.maps.subject import Array

GRID: Final = 7  # patches along the side of a random map, about as many as those of an attention
DRAWS: Final = 8  # random maps for each finding


def draw_centre(frame: Frame) -> Array:
    """Return (S, S), 0 to 1: highest in the middle of the radiograph, falling to its edges as a Gaussian.

    Its standard deviation is a quarter of the sides.
    """
    size = frame.size
    rows, columns = np.mgrid[0:size, 0:size] + 0.5
    down = (rows - frame.top - frame.height / 2) / (frame.height / 4)
    across = (columns - frame.left - frame.width / 2) / (frame.width / 4)
    centre: Array = np.exp(-(down**2 + across**2) / 2).astype(np.float32)
    return centre * _draw_inside(frame)


def draw_random(frame: Frame, generator: np.random.Generator) -> Array:
    """Return (S, S), 0 to 1: random values of `GRID` x `GRID` patches, interpolated; 0 outside the radiograph."""
    import cv2

    values = generator.random((GRID, GRID), np.float32)
    large = cv2.resize(values, (frame.size, frame.size), interpolation=cv2.INTER_LINEAR)
    inside: Array = np.asarray(large, np.float32) * _draw_inside(frame)
    return inside


def _draw_inside(frame: Frame) -> Array:
    mask = np.zeros((frame.size, frame.size), np.float32)
    mask[frame.cut(frame.size)] = 1
    return mask
