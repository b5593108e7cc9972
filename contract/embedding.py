"""The embedding of a study: a point of the joint space, with the label part behind it.

    e = [sqrt(1 - s) z, sqrt(s) p / |p|]          cos(e, e') = (1 - s) cos(z, z') + s cos(p, p')

z is a vector of unit length in the space that images, reports and sentences share (trained by contrast), p are the
calibrated probabilities of the labels, and s is the config's `model.label_share`. A label that no training study states
is left out of p. With a single label left, the label part is the same for every study.

The search for similar cases compares whole embeddings. Free-text findings (`contract.prompts`) compare the joint space
alone, because "No effusion." has the probabilities of a normal study, whatever the finding that it denies.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.labels import LABELS

LABELS_PARAMETER: Final = "embedding_labels"  # of a served model: length of the label part


def count_label_part(model_config: Mapping[str, Any]) -> int:
    """Return the length of the label part of a model's embeddings: K, or 0 without one.

    Args:
        model_config: "model" in a bundle's config.json. A bundle of an older version has no label part.
    """
    return len(LABELS) if model_config.get("label_share", 0.0) else 0


def take_joint(embeddings: NDArray[np.floating[Any]], label_part: int) -> NDArray[np.float64]:
    """Return embeddings in the joint space alone, at unit length.

    Args:
        embeddings: (..., D).
        label_part: Length of their label part.

    Returns:
        (..., D - label_part) float64.
    """
    joint = np.asarray(embeddings, np.float64)[..., : embeddings.shape[-1] - label_part]
    return np.asarray(joint / np.maximum(np.linalg.norm(joint, axis=-1, keepdims=True), 1e-12))
