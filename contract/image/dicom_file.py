"""A DICOM file's bytes -> its checked data set.

The file is untrusted. Its claims are checked before any memory is allocated for them, and every failure is an
ImageError whose message holds no patient data. Memory is bounded by limits on the size of the file, on its inflated
size and on the number of pixels. Time is bounded by limits on the number of reads (MAX_READS; pydicom reads two or
three times per element) and on the length of converted values. `contract.image.decode` decodes the pixels.
"""

import io
import re
import warnings
import zlib
from typing import TYPE_CHECKING, Any, Final

from contract.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

MAX_IMAGE_BYTES: Final = 256 * 2**20
MAX_PIXELS: Final = 64_000_000
MAX_READS: Final = 60_000  # the largest header of the Open-i collection takes about 500
MIN_SIDE: Final = 16
# DR, XR and RX are not in the standard. Old exporters write them for DX.
RADIOGRAPH_MODALITIES: Final = ("CR", "DX", "DR", "XR", "RX", "RF", "XA", "RG", "PX", "OT", "SC", "HC")
_OTHER_RADIOGRAPHS: Final = {"MG": "a mammogram", "IO": "a dental radiograph", "BMD": "a bone densitometry"}
WINDOW_ELEMENTS: Final = ("WindowCenter", "WindowWidth")
TABLE_ELEMENTS: Final = ("ModalityLUTSequence", "VOILUTSequence")
PALETTE_ELEMENTS: Final = tuple(
    f"{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue")
    for part in ("Descriptor", "Data")
)
# Elements that are needed to read an image correctly. A broken one is an error.
_STRICT_ELEMENTS: Final = (
    *("PixelData", "Modality", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PhotometricInterpretation"),
    *("PlanarConfiguration", *TABLE_ELEMENTS, "RescaleSlope", "RescaleIntercept", "VOILUTFunction"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "PresentationLUTShape", *PALETTE_ELEMENTS),
)
# Optional elements. A broken one counts as absent.
_HINTS: Final = (
    *("SOPClassUID", "ViewPosition", "ImageLaterality", "Laterality", "BodyPartExamined", "ViewCodeSequence"),
    *("PatientOrientation", "AcquisitionDeviceProcessingCode", "PostprocessingFunction", "Manufacturer"),
    *("PlateType", "Exposure", "ExposureInuAs"),
    *(f"{part}Shape" for part in ("Shutter", "Collimator")),
    *(
        f"{part}{side}Edge"
        for part in ("Shutter", "Collimator")
        for side in ("LeftVertical", "RightVertical", "UpperHorizontal", "LowerHorizontal")
    ),
    *(
        f"{start}{part}"
        for part in ("Shutter", "Collimator")
        for start in ("CenterOfCircular", "RadiusOfCircular", "VerticesOfThePolygonal")
    ),
)
_LONGEST_VALUE: Final = 4096  # bytes of an element that holds neither pixels nor a table
_LONGEST_TABLE: Final = 2**20
_MOST_ITEMS: Final = 1000
_ITEM_TAGS: Final = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # little and big endian
_FOREIGN_FORMATS: Final = {
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
}
_FOREIGN_CLASSES: Final = re.compile(
    r"\b(CT|MR|PET|Ultrasound|Nuclear|Positron|Segmentation|Mammography|Tomosynthesis|RT|SR|Encapsulated"
    r"|Presentation State|Waveform|Ophthalmic|Endoscopic|Microscopic|Photographic|Parametric Map)\b"
)


def is_picture(data: bytes) -> bool:
    """Whether the bytes start as PNG or JPEG files do."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" or data[:3] == b"\xff\xd8\xff"


def read_radiograph(data: bytes) -> "Dataset":
    """Parse a DICOM file and check that it holds a readable radiograph.

    Raises:
        ImageError: The file is damaged, not a radiograph, or stored in an unsupported way.
    """
    dataset = _read_dataset(data, stop_before_pixels=False)
    _check_kind(dataset)
    _check_layout(dataset)
    return dataset


def read_header(data: bytes) -> "Dataset":
    """Parse the elements before the pixels.

    Raises:
        ImageError: The file is damaged or not a DICOM file.
    """
    return _read_dataset(data, stop_before_pixels=True)


def check_size(rows: int, columns: int, samples: int = 1) -> None:
    """Raise ImageError if an image of this size is too small or too large to be read."""
    if rows * columns * samples > MAX_PIXELS:
        colours = f" of {samples} samples" if samples > 1 else ""
        raise ImageError(
            f"The image claims {rows}x{columns} pixels{colours}; at most {MAX_PIXELS:,} are read."
        )
    if min(rows, columns) < MIN_SIDE:
        raise ImageError(f"The image has {rows}x{columns} pixels, which is too small for a radiograph.")


def get_syntax(dataset: "Dataset") -> "UID":
    """Return the transfer syntax. For a data set without file meta information, return the one used for reading.

    Raises:
        ImageError: The file names an unknown transfer syntax.
    """
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if not syntax:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        return ImplicitVRLittleEndian if implicit else explicit
    if not isinstance(syntax, UID) or not syntax.is_transfer_syntax:
        raise ImageError("The DICOM file names an unknown transfer syntax.")
    return syntax


def is_compressed(dataset: "Dataset") -> bool:
    """Whether the pixels are encapsulated in fragments (DICOM PS3.5 A.4)."""
    syntax = get_syntax(dataset)
    return bool(syntax.is_compressed and not syntax.is_deflated)


class _MeteredFile(io.BytesIO):
    """A file that limits the number of reads, because each element and item takes several short reads."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise ImageError("The DICOM file has too many elements for a radiograph.")
        return super().read(size)


def _read_dataset(data: bytes, *, stop_before_pixels: bool) -> "Dataset":
    """Parse the file and convert the elements that are used later. pydicom would convert them on first use."""
    import pydicom

    has_preamble = _check_start(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inflated = _inflate(data, limit=2**20 if stop_before_pixels else MAX_IMAGE_BYTES)
            dataset = pydicom.dcmread(
                _MeteredFile(inflated or data),
                force=not has_preamble or inflated is not None,
                stop_before_pixels=stop_before_pixels,
            )
            _convert_elements(dataset)
            if inflated is not None:
                _note_deflated(dataset)
    except ImageError:
        raise
    except Exception as error:  # pydicom raises many error types for damaged files
        raise ImageError("The DICOM file is damaged or truncated.") from error
    if not len(dataset):
        raise ImageError("The file is not a DICOM, PNG or JPEG image.")
    return dataset


def _check_start(data: bytes) -> bool:
    """Return whether a file has the preamble of DICOM PS3.10 7.1. Raise ImageError if it is not a DICOM file."""
    for magic, name in _FOREIGN_FORMATS.items():
        if data.startswith(magic):
            raise ImageError(f"The file is {name}, not an image.")
    has_preamble = data[128:132] == b"DICM"
    # Without a preamble a DICOM data set starts with a low, even group number (little or big endian).
    if not has_preamble and not re.match(rb"[\x02\x08]\x00[\x00-\xff]{2}|\x00[\x02\x08]", data):
        raise ImageError("The file is not a DICOM, PNG or JPEG image.")
    return has_preamble


def _convert_elements(dataset: "Dataset") -> None:
    for element in (*_STRICT_ELEMENTS, *WINDOW_ELEMENTS, *_HINTS):
        if element not in dataset or element == "PixelData":
            continue
        try:
            _check_length(dataset, element)
            dataset.get(element)
        except Exception:  # pydicom raises many error types for damaged values
            if element in _STRICT_ELEMENTS:
                raise
            delattr(dataset, element)
    dataset.get("PixelData")


def _check_length(dataset: "Dataset", element: str) -> None:
    """Refuse a value that is so long that its conversion, item by item, would take long."""
    value = getattr(dataset.get_item(element), "value", None)
    table = element in TABLE_ELEMENTS or element in PALETTE_ELEMENTS
    if not isinstance(value, bytes | bytearray):
        return
    items = sum(value.count(tag) for tag in _ITEM_TAGS) if table else 0
    if len(value) > (_LONGEST_TABLE if table else _LONGEST_VALUE) or items > _MOST_ITEMS:
        raise ImageError(f"The DICOM file has a value of {len(value):,} bytes where a short one is expected.")


def _inflate(data: bytes, *, limit: int) -> bytes | None:
    """Return the inflated data set of a deflated file; None for another file. pydicom would inflate without limit.

    Raises:
        ImageError: The data set inflates to more than MAX_IMAGE_BYTES.
    """
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    if DeflatedExplicitVRLittleEndian.encode() not in data[:4096]:
        return None
    file = _MeteredFile(data)
    read_preamble(file, True)  # type: ignore[no-untyped-call]
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return None
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.getbuffer()[file.tell() :], limit + 1)
    if len(inflated) > MAX_IMAGE_BYTES:
        raise ImageError(
            f"The DICOM file unpacks to more than {MAX_IMAGE_BYTES:,} bytes, which is the limit."
        )
    return inflated


def _note_deflated(dataset: "Dataset") -> None:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian


def _check_kind(dataset: "Dataset") -> None:
    from pydicom.config import IGNORE
    from pydicom.uid import UID

    modality = read_text(dataset, "Modality")
    if modality and modality not in RADIOGRAPH_MODALITIES:
        modality_name = modality if re.fullmatch(r"[A-Z0-9_]{1,16}", modality) else "unknown"
        if modality in _OTHER_RADIOGRAPHS:
            kind = _OTHER_RADIOGRAPHS[modality]
            raise ImageError(
                f"The DICOM file has modality {modality_name}: {kind}, which is not a chest radiograph."
            )
        raise ImageError(f"The DICOM file has modality {modality_name}, which is not a radiograph.")
    uid = UID(read_text(dataset, "SOPClassUID"), IGNORE)
    kind = uid.name if uid.name != uid else ""  # an unknown UID's name is the UID itself
    if not modality and _FOREIGN_CLASSES.search(kind):
        raise ImageError(f"The DICOM file is of the class {kind}, which is not a radiograph.")
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise ImageError(
            "The DICOM file stores its pixels as floating point numbers, so it is not a radiograph."
        )
    if not dataset.get("PixelData"):
        raise ImageError("The DICOM file holds no pixel data.")


def _fill_empty(dataset: "Dataset") -> None:
    """Set empty elements to their default value, because pydicom's decoders read them."""
    usual = {"SamplesPerPixel": 1, "PlanarConfiguration": 0}
    allocated = dataset.get("BitsAllocated")
    if allocated in (8, 16):  # other values are refused later
        usual["BitsStored"] = int(allocated)
    for name, value in usual.items():
        if dataset.get(name) is None:
            setattr(dataset, name, value)


def _check_layout(dataset: "Dataset") -> None:
    """Check the declared pixel layout (DICOM PS3.3 C.7.6.3) against the number of bytes."""
    _fill_empty(dataset)
    try:
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        samples, frames = (int(dataset.get(name) or 1) for name in ("SamplesPerPixel", "NumberOfFrames"))
        allocated, signed = int(dataset.BitsAllocated), int(dataset.PixelRepresentation)
        stored = int(dataset.BitsStored)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ImageError("The DICOM file does not say how its pixels are stored.") from error
    check_size(rows, columns, samples)
    if allocated not in {8, 16} or not 1 <= stored <= allocated:
        raise ImageError(
            f"The DICOM file stores {stored} of {allocated} bits per pixel, which is not supported."
        )
    if samples not in {1, 3} or frames < 1:
        raise ImageError(f"The DICOM file claims {samples} samples per pixel in {frames} frames.")
    if signed not in {0, 1}:
        raise ImageError(f"The DICOM file claims pixel representation {signed}, which does not exist.")
    photometric = get_photometric(dataset)
    if (samples == 3) != bool(re.match("RGB|YBR", photometric)):
        kind = photometric if re.fullmatch(r"[A-Z0-9_ ]{1,16}", photometric) else "unknown"
        raise ImageError(f"The DICOM file claims {samples} samples per pixel of the kind {kind}.")
    needed = frames * rows * columns * samples * (allocated // 8)
    if photometric == "YBR_FULL_422":  # two pixels share their chrominance (DICOM PS3.3 C.7.6.3.1.2)
        needed = needed * 2 // 3
    length = len(dataset.PixelData)
    if not is_compressed(dataset) and length < needed:
        shape = f"{rows}x{columns} pixels" + (f" in {frames} frames" if frames > 1 else "")
        raise ImageError(
            f"The DICOM file is truncated: {shape} need {needed:,} bytes, but it holds {length:,}."
        )


def get_photometric(dataset: "Dataset") -> str:
    """Return the photometric interpretation (DICOM PS3.3 C.7.6.3.1.2).

    Raises:
        ImageError: It is missing, or not one of a radiograph or its secondary capture.
    """
    photometric = read_text(dataset, "PhotometricInterpretation")
    if not re.fullmatch(r"MONOCHROME[12]|PALETTE COLOR|RGB|YBR_(FULL|FULL_422|ICT|RCT)", photometric):
        raise ImageError(
            "The DICOM file does not say what its pixel values mean (Photometric Interpretation)."
        )
    return photometric


def read_text(dataset: "Dataset", name: str) -> str:
    """Return an element's text in capitals: "" if it is absent, "?" if it is not a single text.

    A damaged file may have a sequence instead of a text. Its text form would be its whole content.
    """
    value = dataset.get(name)
    if isinstance(value, str):
        return value.strip().upper()
    return "" if value is None else "?"


def read_numbers(dataset: "Dataset", name: str) -> list[Any]:
    """Return an element's values as a list; empty if it is absent."""
    from pydicom.multival import MultiValue

    value = dataset.get(name)
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, MultiValue | list) else [value]
