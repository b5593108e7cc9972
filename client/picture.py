"""Turn images in memory into the bytes of a file for the server, without any loss."""

import copy
import io
import sys
import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from contract.errors import ImageError
from contract.image.png import FAST, encode_png

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_PNG_MODES: Final = ("1", "L", "LA", "P", "RGB", "RGBA")  # Pillow modes that a PNG file holds without loss
_DEEP_MODES: Final = ("I", "I;16", "I;16L", "I;16B")  # Pillow modes of more than 8 bits


def is_dataset(value: object) -> bool:
    """Whether a value is a pydicom data set. This does not import pydicom."""
    module = sys.modules.get("pydicom.dataset")
    return module is not None and isinstance(value, module.Dataset)


def write_dataset(dataset: "Dataset") -> bytes:
    """Return a pydicom data set as the bytes of a DICOM file (PS3.10). The data set is not changed.

    Raises:
        ImageError: pydicom cannot write it.
    """
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    try:
        written, meta = copy.copy(dataset), FileMetaDataset()
        meta.update(getattr(dataset, "file_meta", None) or {})
        if "TransferSyntaxUID" not in meta:  # created in memory: the pixels have the byte order of numpy
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
        written.file_meta, written.preamble = meta, b"\0" * 128  # type: ignore[attr-defined]
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning may quote values of the patient
            written.save_as(file, enforce_file_format=False)
    except Exception as error:  # of many types; the text may quote values of the patient
        raise ImageError(
            f"pydicom cannot write the data set ({type(error).__name__}): give the DICOM file itself."
        ) from error
    return file.getvalue()


def is_pil_image(value: object) -> bool:
    """Whether a value is a Pillow image. This does not import Pillow."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def encode_pil_image(image: Any) -> bytes:
    """Return a Pillow image as the bytes of a PNG file, rotated by its EXIF orientation.

    Raises:
        ImageError: A PNG file cannot hold the mode of the image, or the file of the image is damaged.
    """
    from PIL import ImageOps

    file = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        deep = np.asarray(upright) if upright.mode in _DEEP_MODES else None
        if upright.mode in _PNG_MODES:
            upright.save(file, "PNG", compress_level=FAST)
    except Exception as error:  # the decoders raise many types for damaged files
        raise ImageError("The Pillow image cannot be read: its file is damaged or closed.") from error
    if deep is not None and deep.size and deep.min() >= 0 and deep.max() < 2**16:
        return encode_png(deep.astype(np.uint16))
    if not file.tell():
        raise ImageError(
            f"A PNG file cannot hold the values of a Pillow image of mode {image.mode} without loss: give the file "
            'itself, or image.convert("L").'
        )
    return file.getvalue()
