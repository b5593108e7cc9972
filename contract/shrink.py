"""Turn a radiograph into a small picture of the model's pixels, which a client sends instead of a large file.

The server reads the picture like any other and gets the same pixels as from the file: the picture has the model's size,
so the server does not scale it. The picture does not hold the file's header, so the notes on the image are made here.
"""

from typing import Final

from contract.image.png import encode_png
from contract.notes import ImageNotes
from contract.steps import read_radiograph

# Raise this number whenever the same file gives other pixels than before. A client sends pixels only to a server with
# the same number, and whole files to any other server.
IMAGE_READING: Final = 2
IMAGE_READING_PARAMETER: Final = "image_reading"  # parameter of the served ensembles
_LEAST_FACTOR: Final = 4


def shrink_image(data: bytes, *, size: int, is_first: bool = True) -> tuple[bytes, ImageNotes]:
    """Return a radiograph as a PNG file of the model's pixels, and the notes on it.

    Args:
        data: A whole file: DICOM, PNG or JPEG.
        size: Side of the model's pixels, S.
        is_first: Whether it is the first image of its study.

    Returns:
        The file, S x S pixels of 8 bits without compression, about S * S bytes; and the notes that the server would
        have made on `data`.

    Raises:
        ImageError: The bytes are not a readable image.
        ConfigError: A package that reads images is not installed.
    """
    radiograph, notes = read_radiograph(data, size=size, is_first=is_first)
    return encode_png(radiograph.pixels[0], level=0), notes


def is_worth_shrinking(data: bytes, *, size: int) -> bool:
    """Return whether the picture is so much smaller than the file that reading the file here is worthwhile."""
    return len(data) > _LEAST_FACTOR * size * size
