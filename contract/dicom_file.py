"""A DICOM file's bytes -> its data set and the stored values of its first frame.

The file is untrusted: what it claims is checked before anything is allocated for it, and every failure is an
ImageError whose message holds no patient data. `contract.dicom` turns stored values into grey.
"""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

MAX_IMAGE_BYTES: Final = 256 * 2**20
MAX_PIXELS: Final = 64_000_000
MIN_SIDE: Final = 16
RADIOGRAPH_MODALITIES: Final = ("CR", "DX", "RF", "XA", "RG", "PX", "OT", "SC", "HC", "XC")
WINDOW_ELEMENTS: Final = ("WindowCenter", "WindowWidth")
_PIXEL_ELEMENTS: Final = (
    *("PixelData", "Modality", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PhotometricInterpretation"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "VOILUTSequence", "VOILUTFunction"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "PresentationLUTShape"),
)
_FOREIGN_FORMATS: Final = {
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
}
_FRAME_MARKERS: Final = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # JPEG SOF0 to SOF15, JPEG-LS SOF55


def is_picture(data: bytes) -> bool:
    """Whether the bytes start as PNG or JPEG files do."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" or data[:3] == b"\xff\xd8\xff"


def read_radiograph(data: bytes) -> "Dataset":
    """Parse a DICOM file and check that it holds a radiograph that can be read.

    Raises:
        ImageError: It is damaged, no radiograph, or stored in a way that is not supported.
    """
    dataset = _read_dataset(data, _PIXEL_ELEMENTS, stop_before_pixels=False)
    _check_dataset(dataset)
    return dataset


def read_header(data: bytes, elements: Sequence[str]) -> "Dataset":
    """Parse what stands before the pixels, of which `elements` can be used.

    Raises:
        ImageError: It is damaged or no DICOM file.
    """
    return _read_dataset(data, elements, stop_before_pixels=True)


def check_size(rows: int, columns: int) -> None:
    """Raise ImageError unless an image of that many pixels is read."""
    if rows * columns > MAX_PIXELS:
        raise ImageError(f"The image claims {rows}x{columns} pixels; at most {MAX_PIXELS:,} are read.")
    if min(rows, columns) < MIN_SIDE:
        raise ImageError(f"The image has {rows}x{columns} pixels, which is too small for a radiograph.")


def decode_stored_values(dataset: "Dataset") -> NDArray[Any]:
    """Return the first frame: (rows, columns) or (rows, columns, 3), uint8, uint16, int8 or int16.

    Raises:
        ImageError: The pixel data is damaged, or its decoder is not installed.
    """
    from pydicom.pixels.utils import pixel_array

    if _get_syntax(dataset) is None:
        _assume_syntax(dataset)
    plugin = _choose_decoder(dataset) if _is_compressed(dataset) else ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if plugin not in {"", "pydicom"}:  # pydicom itself decodes RLE, which states no size
                _check_stream(dataset)
            values = pixel_array(dataset, index=0, decoding_plugin=plugin)
    except Exception as error:  # each decoder raises its own kinds
        raise ImageError("The pixel data of the DICOM file is damaged or truncated.") from error
    return np.asarray(values)


def _read_dataset(data: bytes, elements: Sequence[str], *, stop_before_pixels: bool) -> "Dataset":
    """Parse the file and convert `elements`, which pydicom would put off until they are used."""
    import pydicom

    for magic, name in _FOREIGN_FORMATS.items():
        if data.startswith(magic):
            raise ImageError(f"The file is {name}, not an image.")
    has_preamble = data[128:132] == b"DICM"
    # Without a preamble a DICOM data set starts with a low, even group number (little or big endian).
    if not has_preamble and not re.match(rb"[\x02\x08]\x00[\x00-\xff]{2}|\x00[\x02\x08]", data):
        raise ImageError("The file is not a DICOM, PNG or JPEG image.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check_deflated(data)
            dataset = pydicom.dcmread(
                io.BytesIO(data), force=not has_preamble, stop_before_pixels=stop_before_pixels
            )
            _drop_broken_window(dataset)
            for element in elements:
                dataset.get(element)
    except ImageError:
        raise
    except Exception as error:  # pydicom raises many kinds for damaged files
        raise ImageError("The DICOM file is damaged or truncated.") from error
    if not len(dataset):
        raise ImageError("The file is not a DICOM, PNG or JPEG image.")
    return dataset


def _drop_broken_window(dataset: "Dataset") -> None:
    """Remove a window that cannot be read: it is only a hint how to show the image."""
    try:
        for element in WINDOW_ELEMENTS:
            dataset.get(element)
    except Exception:  # pydicom raises many kinds for damaged values
        for element in WINDOW_ELEMENTS:
            if element in dataset:
                delattr(dataset, element)


def _check_deflated(data: bytes) -> None:
    """Refuse a deflated data set that would unpack to more than MAX_IMAGE_BYTES; pydicom sets no limit."""
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    if DeflatedExplicitVRLittleEndian.encode() not in data:
        return
    file = io.BytesIO(data)
    read_preamble(file, True)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), MAX_IMAGE_BYTES + 1)
    if len(unpacked) > MAX_IMAGE_BYTES:
        raise ImageError(f"The DICOM file unpacks to more than the {MAX_IMAGE_BYTES:,} bytes that are read.")


def _check_dataset(dataset: "Dataset") -> None:
    modality = str(dataset.get("Modality", "") or "").strip().upper()
    if modality and modality not in RADIOGRAPH_MODALITIES:
        shown = modality if re.fullmatch(r"[A-Z0-9_]{1,16}", modality) else "unknown"
        raise ImageError(f"The DICOM file has modality {shown}, which is no radiograph.")
    if not dataset.get("PixelData"):
        raise ImageError("The DICOM file holds no pixel data.")
    try:
        rows, columns, held = int(dataset.Rows), int(dataset.Columns), len(dataset.PixelData)
        samples, frames = (int(dataset.get(name) or 1) for name in ("SamplesPerPixel", "NumberOfFrames"))
        allocated, stored = int(dataset.BitsAllocated), int(dataset.get("BitsStored", dataset.BitsAllocated))
    except (AttributeError, TypeError, ValueError) as error:
        raise ImageError("The DICOM file does not say how its pixels are stored.") from error
    check_size(rows, columns)
    if allocated not in {8, 16} or not 1 <= stored <= allocated:
        raise ImageError(
            f"The DICOM file stores {stored} of {allocated} bits per pixel, which is not supported."
        )
    if samples not in {1, 3} or frames < 1:
        raise ImageError(f"The DICOM file claims {samples} samples per pixel in {frames} frames.")
    needed = rows * columns * samples * (allocated // 8)
    if not _is_compressed(dataset) and held < needed:
        shape = f"{rows}x{columns} pixels"
        raise ImageError(f"The DICOM file is truncated: {shape} need {needed:,} bytes, it holds {held:,}.")


def _get_syntax(dataset: "Dataset") -> "UID | None":
    from pydicom.uid import UID

    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if not syntax:
        return None
    if not isinstance(syntax, UID) or not syntax.is_transfer_syntax:
        raise ImageError("The DICOM file names a transfer syntax that is not known.")
    return syntax


def _assume_syntax(dataset: "Dataset") -> None:
    """Give a data set without file meta information the syntax it was read with."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    implicit, little = dataset.original_encoding
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _is_compressed(dataset: "Dataset") -> bool:
    syntax = _get_syntax(dataset)
    return syntax is not None and syntax.is_compressed and not syntax.is_deflated


def _choose_decoder(dataset: "Dataset") -> str:
    """Return the pydicom plugin for a compressed image.

    gdcm comes last: damaged pixel data can end the whole process in it, where the others raise. Pillow
    decodes JPEG of 8 bits only.
    """
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        available = get_decoder(syntax).available_plugins
    except NotImplementedError:
        available = ()
    deep = syntax == JPEGExtended12Bit and int(dataset.get("BitsStored", 16)) > 8
    order = ("pydicom", "pylibjpeg", "gdcm") if deep else ("pydicom", "pylibjpeg", "pillow", "gdcm")
    for plugin in order:
        if plugin in available:
            return plugin
    raise ImageError(f"There is no decoder for {syntax.name}: pip install 'cxr-serving[image]'.")


def _check_stream(dataset: "Dataset") -> None:
    """Refuse a compressed frame that contradicts the header, before a decoder allocates for it."""
    from pydicom.encaps import get_frame

    frame = get_frame(dataset.PixelData, 0, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
    expected = int(dataset.Rows), int(dataset.Columns), int(dataset.get("SamplesPerPixel") or 1)
    if frame.startswith(b"\xff\xd8"):
        precision, *found = _read_jpeg_header(frame)
        if precision > int(dataset.BitsAllocated):
            raise ValueError(f"The JPEG stream claims {precision} bits.")
    else:
        start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
        if start < 0:
            raise ValueError("The frame is neither JPEG nor JPEG 2000.")
        # SIZ marker segment of JPEG 2000, ISO/IEC 15444-1 A.5.1
        right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
        found = [bottom - top, right - left, *struct.unpack_from(">H", frame, start + 40)]
    if tuple(found) != expected:
        raise ValueError(f"The compressed stream claims {found}, the DICOM header {expected}.")


def _read_jpeg_header(frame: bytes) -> tuple[int, ...]:
    """Return precision, rows, columns and components of a JPEG or JPEG-LS stream (ISO/IEC 10918-1 B.2.2).

    Every segment before the scan must join the next, and the tables must be there: gdcm does not survive a
    stream without them.
    """
    at, header, tables = 2, None, False
    while True:
        if frame[at] != 0xFF:
            raise ValueError("The segments of the JPEG stream do not join.")
        marker = frame[at + 1]
        if marker == 0xDA and header and tables:
            return header
        if marker in _FRAME_MARKERS:
            header = struct.unpack_from(">BHHB", frame, at + 4)
        tables = tables or marker in {0xC4, 0xF7}  # Huffman tables; JPEG-LS needs none
        at += 1 if marker == 0xFF else 2 + int(struct.unpack_from(">H", frame, at + 2)[0])
