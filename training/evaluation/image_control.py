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
_BLOCK: Final = 512  # images in memory at a time
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
    rows: dict[str, NDArray[np.int64]] = {}
    features: dict[str, dict[str, NDArray[np.float32]]] = {}
    for part in PARTS:
        rows[part], features[part] = _read_features(parts[part], read_pixels)
        if not len(rows[part]):
            raise ConfigError(f"The {part} split holds no labelled image.")
    truth = {part: (parts[part].targets[rows[part]], parts[part].known[rows[part]]) for part in PARTS}
    answers = {}
    for name in TITLES:
        features_of_parts = {part: features[part][name] for part in PARTS}
        logits = fit_regressions(features_of_parts, *truth["train"], _make_model)
        probabilities = calibrate_logits(logits, truth["validation"])
        answers[name] = decide(rows["test"], probabilities, truth["validation"])
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


def _read_features(
    studies: Studies, read_pixels: ReadPixels
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]:
    """Return the rows of the studies whose first image can be read, and the features (M, F) of each control.

    Without such a study there are no features. Images are read in blocks. All images of a large collection would not
    fit into memory, while their features do.
    """
    named = [(row, path) for row in range(len(studies)) if (path := studies.get_image(row)) is not None]
    rows: list[int] = []
    features: dict[str, list[NDArray[np.float32]]] = {name: [] for name in TITLES}
    for start in range(0, len(named), _BLOCK):
        block = named[start : start + _BLOCK]
        images = read_images([path for _, path in block], read_pixels)
        readable = [
            (row, image[0]) for (row, _), image in zip(block, images, strict=True) if image is not None
        ]
        if readable:
            rows += [row for row, _ in readable]
            pixels = np.stack([image for _, image in readable])  # (B, S, S)
            features["pixels"].append(compute_small_pixels(pixels))
            features["hog"].append(compute_hog(pixels))
    return np.array(rows, np.int64), {
        name: np.concatenate(blocks) for name, blocks in features.items() if blocks
    }
