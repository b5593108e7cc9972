"""Structural similarity of two maps (Wang et al. 2004, IEEE TIP 13(4)), with a Gaussian window."""

from typing import Final

import cv2
import numpy as np
from scipy.stats import rankdata

from contract.image.frame import Frame
from training.evaluation.maps.subject import Array

_WINDOW: Final = (11, 11)
_SIGMA: Final = 1.5
_STABLE: Final = (0.01**2, 0.03**2)  # C1 and C2 for a range of 1


def compare_structure(first: Array, second: Array, frame: Frame) -> float:
    """Return the SSIM of the ranks of two maps (S, S) inside the radiograph.

    Ranks, because two maps that are nearly empty would otherwise look alike wherever both are.
    """
    inside = frame.cut(frame.size)
    return compute_ssim(_rank(first[inside]), _rank(second[inside]))


def _rank(values: Array) -> Array:
    """Return the ranks of values (H, W), 0 to 1; equal values have equal ranks."""
    ranks: Array = (rankdata(values) / values.size).reshape(values.shape).astype(np.float32)
    return ranks


def compute_ssim(first: Array, second: Array) -> float:
    """Return the mean SSIM of two maps (H, W), 0 to 1; 1 for equal maps."""
    one, two = (values.astype(np.float64) for values in (first, second))
    mean_one, mean_two = _blur(one), _blur(two)
    variance_one = _blur(one * one) - mean_one**2
    variance_two = _blur(two * two) - mean_two**2
    covariance = _blur(one * two) - mean_one * mean_two
    small, large = _STABLE
    score = ((2 * mean_one * mean_two + small) * (2 * covariance + large)) / (
        (mean_one**2 + mean_two**2 + small) * (variance_one + variance_two + large)
    )
    return float(score.mean())


def _blur(
    values: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]",
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    return np.asarray(cv2.GaussianBlur(values, _WINDOW, _SIGMA, borderType=cv2.BORDER_REFLECT_101))
