"""The images of one study as a model read them, and what to be warned of, each image by its number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.notes import ImageNotes, warn_of_view


@dataclass(frozen=True)
class ReadImage:
    """One image of a study; K labels, N image tokens.

    Attributes:
        notes: How it was taken.
        lateral: Probability that it is a lateral view, by the model, 0 to 1; None from a server of an older version.
        attention: (K, N) float32, how each label looks at it, tokens row by row. The rows of all images of a study sum
            to 1 together. None where it was not asked for.
    """

    notes: ImageNotes
    lateral: float | None = None
    attention: NDArray[np.float32] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return notes and view."""
        lateral = None if self.lateral is None else round(self.lateral, 6)
        return {"notes": self.notes.to_dict(), "lateral": lateral}


def warn_of_images(images: Sequence[ReadImage]) -> tuple[str, ...]:
    """Return the warnings of several images of one study; each begins with the number of its image, from 1 on."""
    return tuple(
        f"Image {place + 1}: {sentence}"
        for place, image in enumerate(images)
        for sentence in dict.fromkeys(
            (*image.notes.warnings, *warn_of_view(image.notes, image.lateral, is_first=place == 0))
        )
    )
