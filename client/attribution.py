"""Maps of pixel attributions: smooth a map for display, and find the box around its strongest spot."""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError

SMOOTHING: Final = (
    0.02  # standard deviation of the Gaussian filter, as a share of the side of the attribution
)
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


def make_missing_error() -> ConfigError:
    """Return the error of a missing package."""
    return ConfigError(
        "Drawing an explanation needs the 'explain' extra: pip install 'cxr-serving[explain]'."
    )
