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
class ShrunkImage:
    """A request whose image is the pixels of one model, and the notes on the file that they were read from."""

    inputs: Arrays
    notes: ImageNotes
    size: int

    def fits(self, model: ServedModel) -> bool:
        """Return whether a model reads these pixels as it would have read the file."""
        return _reads_alike(model) and model.image_size == self.size

    def restore_notes(self, prediction: Prediction) -> Prediction:
        """Return an answer with the notes on the file in place of those on the picture that was sent."""
        return replace(prediction, image_notes=self.notes)


def shrink_inputs(inputs: Arrays, model: ServedModel) -> ShrunkImage | None:
    """Return a request with its image read here, or None where the file itself is better sent.

    Args:
        inputs: Of `predict_study` or `predict_image`, one case.
        model: That is served: pixels are read in its size.
    """
    files = inputs.get(IMAGE_BYTES.name)  # (1, 1)
    if files is None or not _reads_alike(model):
        return None
    data = bytes(files[0, 0])
    if not is_worth_shrinking(data, size=model.image_size):
        return None
    try:
        picture, notes = shrink_image(data, size=model.image_size)
    except (ImageError, ConfigError):
        return None
    shrunk = {**inputs, IMAGE_BYTES.name: np.array([[picture]], dtype=np.object_)}
    return ShrunkImage(shrunk, notes, model.image_size)


def _reads_alike(model: ServedModel) -> bool:
    return model.image_reading == IMAGE_READING
