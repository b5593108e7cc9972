"""Pixels that a caller holds in memory as the file that travels to the server: nothing is lost on the way."""

import copy
import io
import struct
import sys
import warnings
import zlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_PNG_START: Final = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES: Final = {1: 0, 3: 2, 4: 6}  # samples of a pixel -> colour type, PNG 11.2.1
_FAST: Final = 1  # zlib's level: the deeper ones take several times as long for a tenth less
_PNG_MODES: Final = ("1", "L", "LA", "P", "RGB", "RGBA")  # of Pillow, which PNG holds without a loss
_DEEP_MODES: Final = ("I", "I;16", "I;16L", "I;16B")


def encode_array(array: NDArray[Any], *, level: int = _FAST) -> bytes:
    """Write an array as a PNG file (https://www.w3.org/TR/png-3/), row by row from the top.

    Args:
        array: (H, W) or (H, W, 1) uint8 or uint16, 0 is black; or (H, W, 3 or 4) uint8, red, green, blue and alpha.
        level: Of zlib's compression; 0 compresses nothing, so that the size of the file follows from the shape alone.

    Raises:
        ImageError: It has another shape or type, or a mask, which no file can hold.
    """
    if isinstance(array, np.ma.MaskedArray) and np.any(array.mask):
        raise ImageError(
            "The image is a masked array: fill the masked pixels first, as with image.filled(0)."
        )
    samples = _count_samples(array)
    rows, columns = array.shape[:2]
    bits = 8 * array.dtype.itemsize
    lines = np.zeros((rows, 1 + columns * samples * array.dtype.itemsize), np.uint8)  # 0: the line as it is
    lines[:, 1:] = np.ascontiguousarray(array, array.dtype.newbyteorder(">")).reshape(rows, -1).view(np.uint8)
    header = struct.pack(">IIBBBBB", columns, rows, bits, _COLOUR_TYPES[samples], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), level)), (b"IEND", b""))
    return _PNG_START + b"".join(_make_chunk(kind, data) for kind, data in parts)


def _count_samples(array: NDArray[Any]) -> int:
    """Return how many numbers a pixel has; ImageError for an array that is no picture."""
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


def is_dataset(value: object) -> bool:
    """Whether it is a pydicom data set; pydicom is not imported for the question."""
    module = sys.modules.get("pydicom.dataset")
    return module is not None and isinstance(value, module.Dataset)


def write_dataset(dataset: "Dataset") -> bytes:
    """Write a pydicom data set as a DICOM file (PS3.10); the data set itself stays as it is.

    Raises:
        ImageError: pydicom cannot write it.
    """
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    try:
        written, meta = copy.copy(dataset), FileMetaDataset()
        meta.update(getattr(dataset, "file_meta", None) or {})
        if "TransferSyntaxUID" not in meta:  # made in memory: pixels as numpy writes them
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
        written.file_meta, written.preamble = meta, b"\0" * 128  # type: ignore[attr-defined]
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values
            written.save_as(file, enforce_file_format=False)
    except Exception as error:  # many kinds, whose text may hold values of the patient's
        raise ImageError(
            f"pydicom cannot write the data set that was given as an image ({type(error).__name__}): "
            "give the file itself."
        ) from error
    return file.getvalue()


def is_pil_image(value: object) -> bool:
    """Whether it is an image of Pillow; Pillow is not imported for the question."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def encode_pil_image(image: Any) -> bytes:
    """Write an image of Pillow as a PNG file, turned upright as its EXIF orientation says.

    Raises:
        ImageError: PNG cannot hold its mode, or its file is damaged.
    """
    from PIL import ImageOps

    file = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        deep = np.asarray(upright) if upright.mode in _DEEP_MODES else None
        if upright.mode in _PNG_MODES:
            upright.save(file, "PNG", compress_level=_FAST)
    except Exception as error:  # the decoders raise many kinds for damaged files
        raise ImageError(
            "The Pillow image that was given cannot be read: its file is damaged or closed."
        ) from error
    if deep is not None and deep.size and deep.min() >= 0 and deep.max() < 2**16:
        return encode_array(deep.astype(np.uint16))
    if not file.tell():
        raise ImageError(
            f"The image is a Pillow image of mode {image.mode} with values that PNG cannot hold without a loss: give "
            'the file itself, or image.convert("L").'
        )
    return file.getvalue()
