"""Where an attribution lies: smoothed over the image, and the box around its strongest spot."""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError

SMOOTHING: Final = 0.02  # standard deviation of the Gaussian over the attribution, as a share of the side
REGION_LEVEL: Final = 0.5  # share of the highest value that a region reaches

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Region:
    """A box in the square that the model reads, in shares of its side: 0, 0 is the upper left corner."""

    left: float
    top: float
    right: float
    bottom: float

    def to_dict(self) -> dict[str, float]:
        """Return the four sides."""
        return asdict(self)


def smooth_attribution(attribution: Array, size: int) -> Array:
    """Smooth signed attributions (S, S) and scale them to (size, size), from -1 to 1.

    1 is the 99.9th percentile of the absolute values, so that a single pixel does not hide the rest.
    """
    cv2 = import_cv2()
    sigma = SMOOTHING * len(attribution)
    smoothed = cv2.GaussianBlur(attribution.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    top = float(np.percentile(np.abs(smoothed), 99.9))
    scaled = cv2.resize(smoothed / max(top, 1e-12), (size, size), interpolation=cv2.INTER_CUBIC)
    limited: Array = np.clip(scaled, -1, 1).astype(np.float32)
    return limited


def find_hottest_region(attribution: Array) -> Region | None:
    """Return the box around the spot that speaks most for the finding; None when nothing does.

    Args:
        attribution: (S, S), signed.
    """
    cv2 = import_cv2()
    smoothed = smooth_attribution(attribution, len(attribution))
    row, column = np.unravel_index(int(smoothed.argmax()), smoothed.shape)
    highest = float(smoothed[row, column])
    if highest <= 0:
        return None
    _, areas = cv2.connectedComponents((smoothed >= REGION_LEVEL * highest).astype(np.uint8))
    rows, columns = np.nonzero(areas == areas[row, column])
    sides = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return Region(*(round(float(side) / len(attribution), 4) for side in sides))


def import_cv2() -> Any:
    """Return OpenCV; raises ConfigError where it is not installed."""
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise make_missing_error() from error
    return cv2


def make_missing_error() -> ConfigError:
    """Return the error of a missing package."""
    return ConfigError("Drawing explanations needs the 'explain' extra: pip install 'cxr-serving[explain]'.")
