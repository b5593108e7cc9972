"""A radiograph as the pixels that a model reads, in a small picture: what a client sends in place of a large file.

The server reads the picture as it reads any other, and gets the pixels that it would have got from the file: the
picture has the model's size, so nothing is left to scale. What the file's header says is not in it; so the notes on
the image are made here.
"""

from typing import Final

from contract.image.png import encode_png
from contract.notes import ImageNotes
from contract.steps import read_radiograph

# Raised whenever the same file gives other pixels than before. A client sends pixels to a server with the same number
# only; any other gets the file.
IMAGE_READING: Final = 1
IMAGE_READING_PARAMETER: Final = "image_reading"  # of the served ensembles
_LEAST_FACTOR: Final = 4


def shrink_image(data: bytes, *, size: int, is_first: bool = True) -> tuple[bytes, ImageNotes]:
    """Return a radiograph as a PNG file of the model's pixels, and the notes on it.

    Args:
        data: A whole file: DICOM, PNG or JPEG.
        size: Side of the model's pixels, S.
        is_first: Whether it is the first image of its study.

    Returns:
        The file, S x S of 8 bits and not compressed, about S * S bytes; and what the server would have said of `data`.

    Raises:
        ImageError: The bytes are no image that can be read.
        ConfigError: A package that reads images is not installed.
    """
    radiograph, notes = read_radiograph(data, size=size, is_first=is_first)
    return encode_png(radiograph.pixels[0], level=0), notes


def is_worth_shrinking(data: bytes, *, size: int) -> bool:
    """Return whether the picture is much smaller than the file, so that reading the file here pays."""
    return len(data) > _LEAST_FACTOR * size * size
