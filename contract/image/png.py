"""Write pixels as a PNG file without an imaging package, because the plain client has none."""

import struct
import zlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ImageError

FAST: Final = 1  # zlib's level; higher levels take several times as long and save a tenth
_START: Final = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES: Final = {1: 0, 3: 2, 4: 6}  # samples of a pixel -> colour type, PNG 11.2.1


def encode_png(array: NDArray[Any], *, level: int = FAST) -> bytes:
    """Write an array as a PNG file (https://www.w3.org/TR/png-3/), row by row from the top.

    Args:
        array: (H, W) or (H, W, 1) uint8 or uint16, 0 is black; or (H, W, 3 or 4) uint8, red, green, blue and alpha.
        level: Compression level of zlib. With 0, no compression, the size of the file depends only on the shape.

    Raises:
        ImageError: The array has another shape or type, or a mask, which no file can hold.
    """
    if isinstance(array, np.ma.MaskedArray) and np.any(array.mask):
        raise ImageError(
            "The image is a masked array. Fill the masked pixels first, for example with image.filled(0)."
        )
    samples = _count_samples(array)
    rows, columns = array.shape[:2]
    bits = 8 * array.dtype.itemsize
    lines = np.zeros((rows, 1 + columns * samples * array.dtype.itemsize), np.uint8)  # 0: no filter
    lines[:, 1:] = np.ascontiguousarray(array, array.dtype.newbyteorder(">")).reshape(rows, -1).view(np.uint8)
    header = struct.pack(">IIBBBBB", columns, rows, bits, _COLOUR_TYPES[samples], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), level)), (b"IEND", b""))
    return _START + b"".join(_make_chunk(kind, data) for kind, data in parts)


def _count_samples(array: NDArray[Any]) -> int:
    """Return the number of samples per pixel. Raise ImageError for an array that is not a picture."""
    samples = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    size = array.dtype.itemsize if array.dtype.kind == "u" else 0
    if not array.size or not (samples in _COLOUR_TYPES and size in ((1, 2) if samples == 1 else (1,))):
        raise ImageError(
            f"The image is an array of shape {array.shape} and type {array.dtype}; give (H, W) uint8 or uint16 with 0 "
            "for black, or (H, W, 3) uint8 in red, green, blue."
        )
    return samples


def _make_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
