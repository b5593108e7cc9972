"""The image controls: logistic regression on 32 x 32 pixels, and on histograms of oriented gradients (HOG).

The selection of studies and the type of machine often correlate with a finding. Both controls see that, and hardly any
anatomy. An image model that is not better than they are has learned nothing more.
HOG: Dalal and Triggs 2005, CVPR, as OpenCV computes it.
"""

from collections.abc import Mapping
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.bundle import PARTS
from contract.errors import ConfigError
from training.evaluation.plan import Studies
from training.evaluation.predict import ReadPixels, read_images
from training.evaluation.regressions import ControlAnswers, calibrate_logits, decide, fit_regressions

TITLES: Final = {"pixels": "32 x 32 pixels + LR", "hog": "HOG + LR"}
_SIDE: Final = 32
# Windows of 128 x 128 pixels; blocks of 32 x 32 pixels every 16; cells of 16 x 16; 9 orientations: 1,764 values.
_HOG: Final = ((128, 128), (32, 32), (16, 16), (16, 16), 9)
# The best of 1e-4, 1e-3, 1e-2 and 1e-1 for both features, in five folds of 670 images of ChestX-ray14.
_REGULARISATION: Final = 1e-3


def run_image_controls(parts: Mapping[str, Studies], read_pixels: ReadPixels) -> dict[str, ControlAnswers]:
    """Return the predictions of each control of `TITLES` for the first image of the test studies.

    Args:
        parts: "train", "validation" and "test"; studies without a readable image are left out.
        read_pixels: Image path -> (1, S, S) uint8, or ImageError: the model's own input.

    Raises:
        ConfigError: No image of a part can be read.
    """
    images = {part: _read_images(parts[part], read_pixels) for part in PARTS}
    for part, (rows, _) in images.items():
        if not len(rows):
            raise ConfigError(f"The {part} split holds no labelled image.")
    truth = {part: (parts[part].targets[rows], parts[part].known[rows]) for part, (rows, _) in images.items()}
    answers = {}
    for name, compute in (("pixels", compute_small_pixels), ("hog", compute_hog)):
        features = {part: compute(pixels) for part, (_, pixels) in images.items()}
        logits = fit_regressions(features, *truth["train"], _make_model)
        probabilities = calibrate_logits(logits, truth["validation"])
        answers[name] = decide(images["test"][0], probabilities, truth["validation"])
    return answers


def compute_small_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return (M, 1024) float32, 0 to 1, of M images (M, S, S) uint8: each reduced to 32 x 32 pixels."""
    small = [cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).ravel() for image in pixels]
    return np.stack(small).astype(np.float32) / 255


def compute_hog(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return (M, 1764) float32, the histograms of oriented gradients of M images (M, S, S) uint8."""
    descriptor = cv2.HOGDescriptor(*_HOG)
    size = _HOG[0]
    sized = (cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in pixels)
    return np.stack([np.asarray(descriptor.compute(image)).ravel() for image in sized])


def _make_model() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=_REGULARISATION, class_weight="balanced", max_iter=500)
    return make_pipeline(StandardScaler(), regression)


def _read_images(studies: Studies, read_pixels: ReadPixels) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the rows of the studies whose first image can be read, and these images (M, S, S)."""
    named = {row: path for row in range(len(studies)) if (path := studies.get_image(row)) is not None}
    images = dict(zip(named, read_images(list(named.values()), read_pixels), strict=True))
    pixels = {row: image[0] for row, image in images.items() if image is not None}
    rows = np.array(list(pixels), np.int64)
    return rows, np.stack(list(pixels.values())) if pixels else np.empty((0, 0, 0), np.uint8)
