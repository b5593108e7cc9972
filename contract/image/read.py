"""File bytes in, pixels out: the image preprocessing of training, serving and explanation.

    DICOM:      parse (`dicom_file`; into a `record`) -> first frame (`decode`) -> values (`stored_values`) -> grey
                (`grey`; without window, `field`)
    PNG, JPEG:  grey (`picture`)
    both:       fit into a square with the aspect ratio kept and black padding -> uint8

The file is untrusted. Sizes are checked before memory is allocated, and every failure is an ImageError whose message
holds no patient data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ImageError
from contract.image.contrast import list_remarks
from contract.image.decode import decode_first_frame, expand_palette
from contract.image.dicom_file import MAX_IMAGE_BYTES, is_picture, read_radiograph
from contract.image.field import SAMPLE_SIDE, draw_shutter, find_range
from contract.image.frame import Frame
from contract.image.grey import (
    WHITE,
    Grey,
    apply_modality,
    find_ramp,
    is_inverted,
    is_lost,
    list_displays,
    measure_luminance,
    mirror_values,
    mirror_words,
    pack_table,
    stretch,
)
from contract.image.header import ImageHeader, describe_dicom, describe_picture, make_missing_error
from contract.image.picture import decode_picture
from contract.image.record import DicomImage
from contract.image.stored_values import StoredValues, describe_clipping, read_values

_WINDOW_OVERRULED: Final = (
    "The window or the VOI LUT of the file would show the image as all black or white. "
    "The range of the image's own values was used instead."
)


@dataclass(frozen=True)
class Radiograph:
    """A decoded radiograph.

    Attributes:
        pixels: (1, S, S) uint8.
        header: The header of the file.
        remarks: Remarks from reading the pixels, one sentence each.
        frame: Where the radiograph lies in the square; None if the pixels were not read from a file.
    """

    pixels: NDArray[np.uint8]
    header: ImageHeader
    remarks: tuple[str, ...] = ()
    frame: Frame | None = None


def load_pixels(data: bytes, *, size: int) -> NDArray[np.uint8]:
    """Decode one radiograph into the pixels the model was trained on.

    Args:
        data: A whole file: DICOM Part 10 (or without preamble), PNG or JPEG.
        size: Side of the square output, in pixels.

    Returns:
        (1, size, size) uint8. 0 is black (air), also for MONOCHROME1 files. The image is scaled to fit (by area
        averaging if it shrinks) and centred on black.

    Raises:
        ImageError: The bytes are not an image this model can read; the message says why.
    """
    return load_radiograph(data, size=size).pixels


def load_radiograph(data: bytes, *, size: int) -> Radiograph:
    """Decode one radiograph as `load_pixels` does, and also return its header. The file is parsed once.

    Raises:
        ImageError: The bytes are not an image this model can read; the message says why.
    """
    return load_sizes(data, (size,))[0]


def load_sizes(data: bytes, sizes: Sequence[int]) -> list[Radiograph]:
    """Decode one radiograph as `load_radiograph` does, for several sides of the square. The pixels are decoded once.

    Raises:
        ImageError: The bytes are not an image this model can read; the message says why.
    """
    if not data:
        raise ImageError("The image is empty.")
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(f"The image has {len(data):,} bytes; at most {MAX_IMAGE_BYTES:,} are read.")
    if is_picture(data):
        (grey, remarks), header = decode_picture(data), describe_picture(data)
    else:
        image = read_radiograph(data)
        (grey, remarks), header = _decode_dicom(image), describe_dicom(image)
    rows, columns = grey.values.shape
    found = []
    for size in sizes:
        frame = Frame.fit(rows, columns, size)
        fitted = _fit(grey, frame)
        told = (*remarks, *list_remarks(fitted))
        found.append(Radiograph(_pad_square(fitted, frame)[None], header, told, frame))
    return found


def _decode_dicom(image: DicomImage) -> tuple[Grey, list[str]]:
    """Return the grey of every pixel, and remarks, one sentence each."""
    words = decode_first_frame(image)
    shutter = draw_shutter(image.shutter, (image.rows, image.columns))
    stored = read_values(image, words)
    remarks = [describe_clipping(stored)] if stored.clipped else []
    if words.ndim == 3:
        colours = words if stored.bits == 8 * words.itemsize else stored.values[words]
        grey = measure_luminance(colours, bits=stored.bits)
    else:
        if image.photometric == "PALETTE COLOR":
            colours = expand_palette(image, stored.values)
            table = measure_luminance(colours, bits=8 * colours.itemsize)
        else:
            table, overruled = _make_table(image, words, stored)
            remarks += [_WINDOW_OVERRULED] if overruled else []
            if is_inverted(image):
                words, table = mirror_words(words, table, stored.bits)
        ramp = find_ramp(table[: int(words.max()) + 1])
        if ramp is not None and shutter is None:
            return Grey(np.clip(words, ramp.start, ramp.stop), ramp.black, ramp.white), remarks
        grey = np.take(table, words, mode="clip")
    if shutter is not None:
        grey[~shutter] = 0
    return Grey(grey, 0, WHITE), remarks


def _make_table(
    image: DicomImage, words: NDArray[Any], stored: StoredValues
) -> tuple[NDArray[np.uint16], bool]:
    """Return the grey of every possible word, by the file's VOI LUT or window, otherwise by the image's own range.

    Returns:
        (256,) or (65536,), and whether a VOI LUT or window was ignored because the image would be all black or white.
    """
    padding = stored.padding
    values = apply_modality(stored.values, image)
    step = -(-max(words.shape) // SAMPLE_SIDE)
    sample = words[::step, ::step]
    overruled = False
    for grey in list_displays(values, image):
        if np.ptp(values[sample]) == 0 or not is_lost(grey[sample]):
            return pack_table(grey, padding), overruled
        overruled = True
    visible = ~padding[sample]
    for part in (image.shutter, image.collimator):
        opening = draw_shutter(part, (image.rows, image.columns))
        if opening is not None:
            visible &= opening[::step, ::step]
    if is_inverted(image):
        values = mirror_values(values)
    low, high = find_range(sample, values, visible)
    return pack_table(stretch(values, low, high), padding), overruled


def _fit(grey: Grey, frame: Frame) -> NDArray[np.uint8]:
    """Scale an image to its height and width in the square.

    Averaging rows first and then columns gives the same averages in half the time.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise make_missing_error() from error
    if grey.values.itemsize == 1:  # averages are whole numbers, which would be too coarse with 8 bits
        grey = Grey(grey.values * np.uint16(257), grey.black * 257, grey.white * 257)
    if frame.size < max(frame.rows, frame.columns):
        fitted = cv2.resize(grey.values, (frame.columns, frame.height), interpolation=cv2.INTER_AREA)
        fitted = cv2.resize(fitted, (frame.width, frame.height), interpolation=cv2.INTER_AREA)
    else:
        fitted = cv2.resize(grey.values, (frame.width, frame.height), interpolation=cv2.INTER_LINEAR)
    grey_values = (fitted.astype(np.float32) - np.float32(grey.black)) * np.float32(
        255 / (grey.white - grey.black)
    )
    return np.asarray(np.rint(np.clip(grey_values, 0, 255)).astype(np.uint8))


def _pad_square(image: NDArray[np.uint8], frame: Frame) -> NDArray[np.uint8]:
    """Put an image into its place in a black square."""
    square = np.zeros((frame.size, frame.size), np.uint8)
    square[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width] = image
    return square
