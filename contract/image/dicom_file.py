"""A DICOM file's bytes -> its checked record (`contract.image.record`).

The file is untrusted. Its claims are checked before any memory is allocated for them, and every failure is an
ImageError whose message holds no patient data. Memory is bounded by limits on the size of the file, on its inflated
size and on the number of pixels. Time is bounded by limits on the number of reads (MAX_READS; pydicom reads two or
three times per element) and on the length of converted values. `contract.image.decode` decodes the pixels.
"""

import io
import re
import warnings
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from contract.errors import ImageError
from contract.image.elements import Elements, fill_record
from contract.image.record import DicomImage
from contract.image.tables import read_table

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
_PIXEL_PRESENTATION: Final = 0x00089205  # with it, pydicom refuses a colour palette that is only supplemental
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


def read_radiograph(data: bytes) -> DicomImage:
    """Parse a DICOM file and check that it holds a readable radiograph.

    Raises:
        ImageError: The file is damaged, not a radiograph, or stored in an unsupported way.
    """
    return _read_checked(data)[0]


def read_dataset(data: bytes) -> "Dataset":
    """Return all elements of a radiograph that `read_radiograph` accepts. They name the patient.

    Raises:
        ImageError: As in `read_radiograph`.
    """
    return _read_checked(data)[1]


def _read_checked(data: bytes) -> "tuple[DicomImage, Dataset]":
    """Return the record of a radiograph, and all its elements."""
    elements = _read_elements(data, stop_before_pixels=False)
    _check_kind(elements)
    _fill_empty(elements)
    _check_counts(elements)
    image = fill_record(elements)
    _check_layout(image)
    image = replace(image, dataset=_keep_pixels(elements.dataset, get_syntax(image)))
    if image.photometric.startswith("MONOCHROME"):
        image = replace(
            image,
            modality_lut=read_table(elements, "ModalityLUTSequence", "modality LUT"),
            voi_lut=read_table(elements, "VOILUTSequence", "VOI LUT"),
        )
    return image, elements.dataset


def read_header(data: bytes) -> DicomImage:
    """Parse the elements before the pixels.

    Raises:
        ImageError: The file is damaged or not a DICOM file.
    """
    return fill_record(_read_elements(data, stop_before_pixels=True))


def check_size(rows: int, columns: int, samples: int = 1) -> None:
    """Raise ImageError if an image of this size is too small or too large to be read."""
    if rows * columns * samples > MAX_PIXELS:
        colours = f" of {samples} samples" if samples > 1 else ""
        raise ImageError(
            f"The image claims {rows}x{columns} pixels{colours}; at most {MAX_PIXELS:,} are read."
        )
    if min(rows, columns) < MIN_SIDE:
        raise ImageError(f"The image has {rows}x{columns} pixels, which is too small for a radiograph.")


def get_syntax(image: DicomImage) -> "UID":
    """Return the transfer syntax. For a file that does not state it, return the one that it was read with.

    Raises:
        ImageError: The file names an unknown transfer syntax.
    """
    from pydicom.config import IGNORE
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if not image.syntax:
        explicit = ExplicitVRLittleEndian if image.little_endian else ExplicitVRBigEndian
        return ImplicitVRLittleEndian if image.implicit_vr else explicit
    syntax = UID(image.syntax, IGNORE)
    if not syntax.is_transfer_syntax:
        raise ImageError("The DICOM file names an unknown transfer syntax.")
    return syntax


def is_compressed(image: DicomImage) -> bool:
    """Whether the pixels are encapsulated in fragments (DICOM PS3.5 A.4)."""
    syntax = get_syntax(image)
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


def _read_elements(data: bytes, *, stop_before_pixels: bool) -> Elements:
    """Parse the file and convert the elements that are used."""
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
            elements = Elements(dataset)
            if inflated is not None:
                _note_deflated(dataset)
    except ImageError:
        raise
    except Exception as error:  # pydicom raises many error types for damaged files
        raise ImageError("The DICOM file is damaged or truncated.") from error
    if not len(dataset):
        raise ImageError("The file is not a DICOM, PNG or JPEG image.")
    return elements


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


def _check_kind(elements: Elements) -> None:
    from pydicom.config import IGNORE
    from pydicom.uid import UID

    modality = elements.read_text("Modality")
    if modality and modality not in RADIOGRAPH_MODALITIES:
        modality_name = modality if re.fullmatch(r"[A-Z0-9_]{1,16}", modality) else "unknown"
        if modality in _OTHER_RADIOGRAPHS:
            kind = _OTHER_RADIOGRAPHS[modality]
            raise ImageError(
                f"The DICOM file has modality {modality_name}: {kind}, which is not a chest radiograph."
            )
        raise ImageError(f"The DICOM file has modality {modality_name}, which is not a radiograph.")
    uid = UID(elements.read_text("SOPClassUID"), IGNORE)
    kind = uid.name if uid.name != uid else ""  # an unknown UID's name is the UID itself
    if not modality and _FOREIGN_CLASSES.search(kind):
        raise ImageError(f"The DICOM file is of the class {kind}, which is not a radiograph.")
    if "FloatPixelData" in elements.dataset or "DoubleFloatPixelData" in elements.dataset:
        raise ImageError(
            "The DICOM file stores its pixels as floating point numbers, so it is not a radiograph."
        )
    if not elements.get("PixelData"):
        raise ImageError("The DICOM file holds no pixel data.")


def _fill_empty(elements: Elements) -> None:
    """Set empty elements to their default value, because pydicom's decoders read them."""
    usual = {"SamplesPerPixel": 1, "PlanarConfiguration": 0}
    allocated = elements.get("BitsAllocated")
    if allocated in (8, 16):  # other values are refused later
        usual["BitsStored"] = int(allocated)
    for name, value in usual.items():
        if elements.get(name) is None:
            elements.set(name, value)


def _check_counts(elements: Elements) -> None:
    """Raise ImageError if a number that describes the pixels is missing or is not a number."""
    try:
        for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"):
            int(elements.get(name))
        for name in ("SamplesPerPixel", "NumberOfFrames"):
            int(elements.get(name) or 1)
    except (TypeError, ValueError, OverflowError) as error:
        raise ImageError("The DICOM file does not say how its pixels are stored.") from error


def _check_layout(image: DicomImage) -> None:
    """Check the declared pixel layout (DICOM PS3.3 C.7.6.3) against the number of bytes."""
    rows, columns, samples, frames = image.rows, image.columns, image.samples, image.frames
    check_size(rows, columns, samples)
    if image.allocated not in {8, 16} or not 1 <= image.bits <= image.allocated:
        raise ImageError(
            f"The DICOM file stores {image.bits} of {image.allocated} bits per pixel, which is not supported."
        )
    if samples not in {1, 3} or frames < 1:
        raise ImageError(f"The DICOM file claims {samples} samples per pixel in {frames} frames.")
    if image.representation not in {0, 1}:
        raise ImageError(
            f"The DICOM file claims pixel representation {image.representation}, which does not exist."
        )
    kinds = r"MONOCHROME[12]|PALETTE COLOR|RGB|YBR_(FULL|FULL_422|ICT|RCT)"  # DICOM PS3.3 C.7.6.3.1.2
    if not re.fullmatch(kinds, image.photometric):
        raise ImageError(
            "The DICOM file does not say what its pixel values mean (Photometric Interpretation)."
        )
    if (samples == 3) != image.photometric.startswith(("RGB", "YBR")):
        raise ImageError(
            f"The DICOM file claims {samples} samples per pixel of the kind {image.photometric}."
        )
    needed = frames * rows * columns * samples * (image.allocated // 8)
    if image.photometric == "YBR_FULL_422":  # two pixels share their chrominance (DICOM PS3.3 C.7.6.3.1.2)
        needed = needed * 2 // 3
    length = len(image.pixels)
    if not length:  # pydicom read something else than bytes
        raise ImageError("The pixel data of the DICOM file is damaged or truncated.")
    if not is_compressed(image) and length < needed:
        shape = f"{rows}x{columns} pixels" + (f" in {frames} frames" if frames > 1 else "")
        raise ImageError(
            f"The DICOM file is truncated: {shape} need {needed:,} bytes, but it holds {length:,}."
        )


def _keep_pixels(dataset: "Dataset", syntax: "UID") -> "Dataset":
    """Return the elements that pydicom's decoder reads, which do not name the patient."""
    from pydicom.dataset import FileMetaDataset

    kept = dataset[0x00280000:0x00290000]  # the pixel module and the palette
    for tag in tuple(dataset.keys()):  # iterating over the data set would convert every value
        if tag.group == 0x7FE0 or tag == _PIXEL_PRESENTATION:
            kept[tag] = dataset.get_item(tag)
    kept.file_meta = FileMetaDataset()
    kept.file_meta.TransferSyntaxUID = syntax
    return kept
