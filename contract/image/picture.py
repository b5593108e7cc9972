"""PNG and JPEG to grey. The pixels are ready for display, so only their size changes.

orientation     turned as EXIF states, as in every viewer
transparency    shown over black: a transparent pixel is not image
colour          luminance (ITU-R BT.601)
16 bits         the depth is the one that the file states (sBIT), or else the number of bits of the brightest pixel.
                Otherwise 12 bits stored in 16 would be nearly black. A few pixels that need at least two bits more
                than all others are clipped; so are labels and frames of one such value
gAMA, iCCP      ignored: exported radiographs have none, and a screen's gamma does not concern the model
"""

import io
import struct
import warnings
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ImageError
from contract.image import dicom_file
from contract.image.decode import check_scans
from contract.image.field import PERCENTILES, SAMPLE_SIDE
from contract.image.grey import WHITE, Grey, measure_luminance
from contract.image.header import ORIENTATION, TURNED, make_missing_error
from contract.image.parts import check_parts

_DEEP_GREY: Final = ("I;16", "I;16B", "I;16L", "I")
_LEAST_BITS: Final = 8
_HOT_BITS: Final = 2  # a few pixels are clipped if all others need at least this many bits less
_LABEL_SHARE: Final = 0.05  # share of pixels; so many may have the highest value and still be clipped
_HOT_PIXELS: Final = (
    "A few pixels are far brighter than all others (broken pixels or burnt-in labels). "
    "They were clipped, because the rest would be black otherwise."
)


def decode_picture(data: bytes) -> tuple[Grey, list[str]]:
    """Decode a PNG or JPEG file; also return remarks about it, one sentence each.

    Raises:
        ImageError: It is damaged, truncated or too large, or has too many parts.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise make_missing_error() from error
    check_parts(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                dicom_file.check_size(image.height, image.width)
                check_scans(data, image.height * image.width)
                return _read_grey(image, data)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"The image claims too many pixels; at most {dicom_file.MAX_PIXELS:,} are read."
        ) from error
    except Exception as error:  # the decoders raise many error types for damaged files
        raise ImageError("The PNG or JPEG image is damaged or truncated.") from error


def _read_grey(image: Any, data: bytes) -> tuple[Grey, list[str]]:
    from PIL import ImageChops

    image.load()  # raises an error for a truncated file, which OpenCV would fill with grey
    if data[:4] == b"\x89PNG" and data[24] == 16 and data[25] != 0:  # IHDR, PNG 11.2.1
        values, samples = _decode_deep_colour(image, data)
        return _spread_bits(_orient(values, image), samples, data)
    if image.mode in _DEEP_GREY:
        values = _orient(np.asarray(image, np.uint16), image)
        return _spread_bits(values, values, data)
    if image.mode == "P" or image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        # Multiplying by alpha is the same as compositing over black.
        grey = ImageChops.multiply(image.convert("L"), image.getchannel("A"))
    else:
        grey = image if image.mode == "L" else image.convert("RGB").convert("L")
    return Grey(_orient(np.asarray(grey), image), 0, 255), []


def _decode_deep_colour(image: Any, data: bytes) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Decode a PNG of 16 bits with colour or alpha, of which Pillow would keep only 8 bits.

    Returns:
        Luminance, (rows, columns), and the samples that it was computed from.
    """
    import cv2

    dicom_file.check_size(image.height, image.width, 4)
    colours = cv2.imdecode(
        np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    )
    if colours is None or colours.dtype != np.uint16 or colours.ndim != 3:
        raise ValueError("The PNG image could not be decoded.")
    grey = measure_luminance(colours[..., 2::-1], bits=16)  # OpenCV's order is blue, green, red
    if colours.shape[2] == 4:
        grey = np.rint(grey * (colours[..., 3] / np.float32(WHITE))).astype(np.uint16)
    return grey, colours[..., :3]


def _orient(values: NDArray[Any], image: Any) -> NDArray[Any]:
    """Turn pixels by the image's EXIF orientation, 1 to 8 (EXIF 2.3, 4.6.4)."""
    orientation = image.getexif().get(ORIENTATION, 1)
    if orientation in TURNED:
        values = values.T
    if orientation in {2, 3, 6, 7}:
        values = values[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        values = values[::-1]
    return np.ascontiguousarray(values)


def _spread_bits(
    values: NDArray[np.uint16], samples: NDArray[np.uint16], data: bytes
) -> tuple[Grey, list[str]]:
    """Return values of up to 16 bits with their value for white.

    Args:
        values: (rows, columns) grey.
        samples: The samples that the file stores, of any shape.
        data: The file.
    """
    top, written = int(samples.max()), _read_significant_bits(data)
    bits = 16 if top >= 2 ** (written or 16) else written or _count_bits(top)
    remarks = []
    if bits - max(written, _LEAST_BITS) >= _HOT_BITS:
        step = -(-max(samples.shape) // SAMPLE_SIDE)
        sample = samples[::step, ::step]
        below = sample[sample < top]
        sample = below if below.size >= (1 - _LABEL_SHARE) * sample.size else sample
        usual = int(np.percentile(sample, PERCENTILES[1], method="lower"))
        needed = max(_count_bits(usual), written)
        if top >= usual << _HOT_BITS and bits - needed >= _HOT_BITS:
            bits, remarks = needed, [_HOT_PIXELS]
            values = np.minimum(values, np.uint16(2**bits - 1))
    if bits < 10:  # averages are whole numbers, which would be too coarse
        return Grey(values * np.uint16(64), 0, (2**bits - 1) * 64), remarks
    return Grey(values, 0, 2**bits - 1), remarks


def _count_bits(top: int) -> int:
    return max(top.bit_length(), _LEAST_BITS)


def _read_significant_bits(data: bytes) -> int:
    """Return the number of significant bits per sample (sBIT, PNG 11.3.2.3); 0 if the file does not state it."""
    at = 8
    while at + 9 < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"sBIT":
            return data[at + 8] if 1 <= data[at + 8] <= 16 else 0
        if kind in {b"PLTE", b"IDAT"}:  # sBIT comes before these
            return 0
        at += 12 + length
    return 0
