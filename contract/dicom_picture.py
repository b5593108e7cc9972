"""PNG and JPEG to grey. They are taken as ready for display: nothing but the size changes.

orientation     turned as EXIF says, as every viewer does
transparency    over black: what is transparent is no image
colour          luminance (ITU-R BT.601)
16 bits         the depth is what the file says (sBIT), or else the whole number of bits that the brightest pixel
                needs: 12 bits of a detector stored in 16 would be nearly black otherwise
gAMA, iCCP      ignored: radiographs are exported without, and a screen's gamma is not the model's
"""

import io
import struct
import warnings
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract import dicom_file
from contract.dicom_decode import check_scans
from contract.dicom_grey import WHITE, measure_luminance
from contract.errors import ConfigError, ImageError

_DEEP_GREY: Final = ("I;16", "I;16B", "I;16L", "I")
_LEAST_BITS: Final = 8


def decode_picture(data: bytes) -> NDArray[Any]:
    """Decode a PNG or JPEG file.

    Returns:
        (rows, columns) uint8 or uint16; the largest value of the type is white.

    Raises:
        ImageError: It is damaged, truncated or too large.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise make_missing_error() from error
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
    except Exception as error:  # the decoders raise many kinds for damaged files
        raise ImageError("The PNG or JPEG image is damaged or truncated.") from error


def make_missing_error() -> ConfigError:
    """Return the error of an installation that cannot read images."""
    return ConfigError("Reading images needs the 'image' extra: pip install 'cxr-serving[image]'.")


def _read_grey(image: Any, data: bytes) -> NDArray[Any]:
    from PIL import ImageChops, ImageOps

    image.load()  # raises for a truncated file, which opencv would fill up
    if _has_deep_colour(data):
        return _orient(_decode_deep_colour(image, data), image)
    image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP_GREY:
        return _spread_bits(np.asarray(image, np.uint16), _read_significant_bits(data))
    if image.mode == "P" or image.has_transparency_data:
        image = image.convert("RGBA")
        # Pillow multiplies as the standard's compositing over black does.
        return np.asarray(ImageChops.multiply(image.convert("L"), image.getchannel("A")))
    return np.asarray(image if image.mode == "L" else image.convert("RGB").convert("L"))


def _has_deep_colour(data: bytes) -> bool:
    """Whether this is a PNG of 16 bits with colour or alpha, of which Pillow keeps 8 bits (IHDR, PNG 11.2.1)."""
    return data[:4] == b"\x89PNG" and data[24] == 16 and data[25] != 0


def _decode_deep_colour(image: Any, data: bytes) -> NDArray[np.uint16]:
    import cv2

    dicom_file.check_size(image.height, image.width, 4)
    colours = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if colours is None or colours.dtype != np.uint16 or colours.ndim != 3:
        raise ValueError("The PNG image could not be decoded.")
    grey = measure_luminance(colours[..., 2::-1], bits=16)  # opencv has blue first
    grey = _spread_bits(grey, _read_significant_bits(data), top=int(colours[..., :3].max()))
    if colours.shape[2] == 4:
        grey = np.rint(grey * (colours[..., 3] / np.float32(WHITE))).astype(np.uint16)
    return np.asarray(grey)


def _orient(grey: NDArray[Any], image: Any) -> NDArray[Any]:
    """Turn pixels as the EXIF orientation of an image says."""
    from PIL import Image, ImageOps

    places = np.arange(grey.size, dtype=np.int32).reshape(grey.shape)
    turned = Image.fromarray(places)
    turned.getexif()[0x0112] = image.getexif().get(0x0112, 1)
    return np.asarray(grey.ravel()[np.asarray(ImageOps.exif_transpose(turned))])


def _spread_bits(grey: NDArray[np.uint16], bits: int, *, top: int | None = None) -> NDArray[np.uint16]:
    """Spread values of fewer bits over all 16."""
    top = int(grey.max()) if top is None else top
    bits = bits or max(top.bit_length(), _LEAST_BITS)
    if bits >= 16 or top >= 2**bits:
        return grey
    return np.asarray(grey.astype(np.uint32) * WHITE // (2**bits - 1), np.uint16)


def _read_significant_bits(data: bytes) -> int:
    """Return how many bits of each sample count (sBIT, PNG 11.3.2.3), 0 where the file does not say."""
    at = 8
    while at + 9 < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"sBIT":
            return data[at + 8] if 1 <= data[at + 8] <= 16 else 0
        if kind in {b"PLTE", b"IDAT"}:  # it stands before these
            return 0
        at += 12 + length
    return 0
