"""Large images are read here, by the code that the server would use, and travel as the model's pixels.

A radiograph of 10 to 15 MB becomes about 150 KB, and its header, with whatever it says of a patient, stays here. What
cannot be read here goes to the server as it is: the server says what is wrong with it.
"""

from dataclasses import dataclass, replace

import numpy as np

from client.results import Prediction, ServedModel
from client.triton import Arrays
from contract.errors import ConfigError, ImageError
from contract.notes import ImageNotes
from contract.shrink import IMAGE_READING, is_worth_shrinking, shrink_image
from contract.tensors import IMAGE_BYTES


@dataclass(frozen=True)
class ShrunkImages:
    """A request of which one image or more are the pixels of one model.

    `notes` are those on the files that they were read from, None for an image that is sent as it is.
    """

    inputs: Arrays
    notes: tuple[ImageNotes | None, ...]
    size: int

    def fits(self, model: ServedModel) -> bool:
        """Return whether a model reads these pixels as it would have read the files."""
        return _reads_alike(model) and model.image_size == self.size

    def restore_notes(self, prediction: Prediction) -> Prediction:
        """Return an answer with the notes on the files in place of those on the pictures that were sent."""
        first, *others = self.notes
        further = tuple(
            image if notes is None else replace(image, notes=notes)
            for image, notes in zip(prediction.further_images, others, strict=True)
        )
        return replace(prediction, image_notes=first or prediction.image_notes, further_images=further)


def shrink_inputs(inputs: Arrays, model: ServedModel) -> ShrunkImages | None:
    """Return a request with its large images read here, or None where all files are better sent as they are.

    Args:
        inputs: Of `predict_study` or `predict_image`, one case.
        model: That is served: pixels are read in its size.
    """
    files = inputs.get(IMAGE_BYTES.name)  # (1, V)
    if files is None or not _reads_alike(model):
        return None
    sent, notes = zip(
        *(_shrink(bytes(data), place, model) for place, data in enumerate(files[0])), strict=True
    )
    if not any(notes):
        return None
    return ShrunkImages(
        {**inputs, IMAGE_BYTES.name: np.array([sent], dtype=np.object_)}, notes, model.image_size
    )


def _shrink(data: bytes, place: int, model: ServedModel) -> tuple[bytes, ImageNotes | None]:
    """Return what is sent in place of the image at a place of its study, and the notes on it if that was read here."""
    if not is_worth_shrinking(data, size=model.image_size):
        return data, None
    try:
        return shrink_image(data, size=model.image_size, is_first=place == 0)
    except (ImageError, ConfigError):
        return data, None


def _reads_alike(model: ServedModel) -> bool:
    return model.image_reading == IMAGE_READING
