"""The images of one study as the model read them, and the warnings about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.notes import ImageNotes, warn_of_view


@dataclass(frozen=True)
class ReadImage:
    """One image of a study: K labels, N image tokens.

    Attributes:
        notes: View, laterality and modality of the image, and warnings.
        lateral: Probability that the image is a lateral view, 0 to 1, from the model's view head. It is 0.5 for every
            image from a model whose view head was not fitted, and None from a model that an older version published.
        attention: (K, N) float32, the attention of each label to this image, tokens row by row. The rows of all images
            of a study together sum to 1. None if the client did not request it.
    """

    notes: ImageNotes
    lateral: float | None = None
    attention: NDArray[np.float32] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return `notes` and `lateral`."""
        lateral = None if self.lateral is None else round(self.lateral, 6)
        return {"notes": self.notes.to_dict(), "lateral": lateral}


def warn_of_images(images: Sequence[ReadImage]) -> tuple[str, ...]:
    """Return the warnings about several images of one study. Each begins with the number of its image, from 1 on."""
    return tuple(
        f"Image {index + 1}: {sentence}"
        for index, image in enumerate(images)
        for sentence in dict.fromkeys(
            (*image.notes.warnings, *warn_of_view(image.notes, image.lateral, is_first=index == 0))
        )
    )
