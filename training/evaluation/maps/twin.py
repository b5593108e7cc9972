"""The MONOCHROME1 twin of a DICOM file: the same picture, stored with black and white exchanged (PS3.3 C.7.6.3.1.2)."""

import io
import warnings
from typing import Any, Final

import numpy as np

_PLAIN: Final = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # transfer syntaxes without compression
_OPPOSITE: Final = {"MONOCHROME1": "MONOCHROME2", "MONOCHROME2": "MONOCHROME1"}


def make_twin(data: bytes) -> bytes | None:
    """Return the twin of a file; None where none can be made without a loss.

    A file has none if it is no DICOM file, is compressed, signed or in colour, or has a VOI LUT, a rescaling or pixel
    padding.
    """
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(data))
            if not _has_twin(dataset):
                return None
            return _turn(dataset)
    except Exception:  # pydicom raises many types; a file without a twin is measured without it
        return None


def _has_twin(dataset: Any) -> bool:
    absent = ("VOILUTSequence", "ModalityLUTSequence", "PixelPaddingValue", "PresentationLUTSequence")
    return (
        str(dataset.file_meta.TransferSyntaxUID) in _PLAIN
        and dataset.get("PhotometricInterpretation") in _OPPOSITE
        and int(dataset.get("PixelRepresentation", 0)) == 0
        and int(dataset.BitsAllocated) == 16
        and all(name not in dataset for name in absent)
        and float(dataset.get("RescaleSlope", 1) or 1) == 1
        and float(dataset.get("RescaleIntercept", 0) or 0) == 0
    )


def _turn(dataset: Any) -> bytes:
    top = 2 ** int(dataset.BitsStored) - 1
    stored = np.frombuffer(dataset.PixelData, "<u2")
    dataset.PixelData = (top - (stored & top)).astype("<u2").tobytes()
    dataset.PhotometricInterpretation = _OPPOSITE[dataset.PhotometricInterpretation]
    if "PresentationLUTShape" in dataset:
        shapes = {"IDENTITY": "INVERSE", "INVERSE": "IDENTITY"}
        dataset.PresentationLUTShape = shapes.get(dataset.PresentationLUTShape, dataset.PresentationLUTShape)
    if "WindowCenter" in dataset:
        centres = dataset.WindowCenter
        several = isinstance(centres, (list, tuple)) or hasattr(centres, "__iter__")
        # The window of a value v is (v - (c - 0.5)) / (w - 1) + 0.5, so that of top - v has its centre at top - c + 1.
        turned = [f"{top + 1 - float(centre):.10g}" for centre in (centres if several else [centres])]
        dataset.WindowCenter = turned if several else turned[0]
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()
