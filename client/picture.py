"""Pixels that a caller holds in memory as the file that travels to the server: nothing is lost on the way."""

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

_PNG_MODES: Final = ("1", "L", "LA", "P", "RGB", "RGBA")  # of Pillow, which PNG holds without a loss
_DEEP_MODES: Final = ("I", "I;16", "I;16L", "I;16B")


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
            upright.save(file, "PNG", compress_level=FAST)
    except Exception as error:  # the decoders raise many kinds for damaged files
        raise ImageError(
            "The Pillow image that was given cannot be read: its file is damaged or closed."
        ) from error
    if deep is not None and deep.size and deep.min() >= 0 and deep.max() < 2**16:
        return encode_png(deep.astype(np.uint16))
    if not file.tell():
        raise ImageError(
            f"The image is a Pillow image of mode {image.mode} with values that PNG cannot hold without a loss: give "
            'the file itself, or image.convert("L").'
        )
    return file.getvalue()
