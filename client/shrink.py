"""Read large images here, with the code of the server, and send the pixels that the model reads.

At 224 pixels, a radiograph of 10 to 15 MB becomes about 50 KB. Its header stays here, with everything that it says
about a patient.
The client sends a file unchanged if it cannot read it. The server's error then says what is wrong.
"""

from dataclasses import dataclass, replace

import numpy as np

from client.prediction import Prediction
from client.served import ServedModel
from client.triton_core import Arrays
from contract.errors import ConfigError, ImageError
from contract.notes import ImageNotes
from contract.shrink import IMAGE_READING, is_worth_shrinking, shrink_image
from contract.tensors import IMAGE_BYTES


@dataclass(frozen=True)
class ShrunkImages:
    """A request in which at least one image is replaced by the pixels that the model reads.

    Attributes:
        inputs: The tensors of the request.
        notes: For each image, the notes on its file; None for an image that is sent unchanged.
        size: Side of the pixels, S.
    """

    inputs: Arrays
    notes: tuple[ImageNotes | None, ...]
    size: int

    def fits(self, model: ServedModel) -> bool:
        """Return whether a model gets the same pixels from this request as from the files."""
        return _reads_alike(model) and model.image_size == self.size

    def restore_notes(self, prediction: Prediction) -> Prediction:
        """Return a prediction with the notes on the files instead of the server's notes on the pixels."""
        images = tuple(
            image if notes is None else replace(image, notes=notes)
            for image, notes in zip(prediction.images, self.notes, strict=True)
        )
        return replace(prediction, images=images)


def shrink_inputs(inputs: Arrays, model: ServedModel) -> ShrunkImages | None:
    """Return a request with smaller images; None if all files should be sent unchanged.

    Args:
        inputs: One case for `predict_study`, `predict_image` or `predict_text`.
        model: The served model, whose size the pixels get.
    """
    files = inputs.get(IMAGE_BYTES.name)  # (1, V)
    if files is None or not _reads_alike(model):
        return None
    images = [_shrink(bytes(data), model, is_first=index == 0) for index, data in enumerate(files[0])]
    sent, notes = zip(*images, strict=True)
    if not any(notes):
        return None
    return ShrunkImages(
        {**inputs, IMAGE_BYTES.name: np.array([sent], dtype=np.object_)}, notes, model.image_size
    )


def _shrink(data: bytes, model: ServedModel, *, is_first: bool) -> tuple[bytes, ImageNotes | None]:
    """Return the bytes to send for an image, and the notes on its file; None if the file is sent unchanged."""
    if not is_worth_shrinking(data, size=model.image_size):
        return data, None
    try:
        return shrink_image(data, size=model.image_size, is_first=is_first)
    except (ImageError, ConfigError):  # a damaged file, or a missing package
        return data, None


def _reads_alike(model: ServedModel) -> bool:
    """Whether the server reads images with the same code as this client."""
    return model.image_reading == IMAGE_READING
