"""Read the header of an image file: how the image was taken and stored, and warnings that follow from it."""

import io
import warnings
from dataclasses import dataclass, field
from typing import Any, Final

from contract.errors import ConfigError, ImageError
from contract.image.dicom_file import is_picture, read_header
from contract.image.parts import check_parts
from contract.image.record import DicomImage
from contract.image.view import View, ViewVerdict, weigh_view
from contract.image.view_clues import ViewClues, describe_shape, read_clues

ORIENTATION: Final = 0x0112  # EXIF tag
TURNED: Final = (5, 6, 7, 8)  # orientations that swap rows and columns
# Words for the chest in the languages of the exporters, without accents. 51185008 is the code of SNOMED CT.
_CHEST_WORDS: Final = (
    "CHEST",
    "THORAX",
    "THORACI",
    "LUNG",
    "RIB",
    "STERNUM",
    "CXR",
    "TRUNK",
    "51185008",
    "TORAX",
    "TORAC",
    "TORAKS",
    "TRONCO",
    "TORSE",
    "PECHO",
    "PEITO",
    "PULM",
    "POITRINE",
    "POUMON",
    "BRUST",
    "BORST",
    "BROST",
    "BRYST",
    "PETTO",
    "KLATKA",
    "PIERSI",
    "HRUDN",
    "KRUTINE",
    "MELLKAS",
    "RINTAKEHA",
    "RINDKERE",
    "GOGUS",
    "GRUDN",
    "CHST",
    "TORSO",
    "HEART",
)
_NO_BODY_PARTS: Final = ("UNKNOWN", "UNDEFINED", "UNSPECIFIED", "OTHER", "NONE", "NA", "NULL", "0")
_SPINE_WORDS: Final = ("SPIN", "RACHIS", "COLON", "COLUM", "WIRBEL", "VERTEB")  # thoracic or not


@dataclass(frozen=True)
class ImageHeader:
    """The header of one image, without patient data. A value that the file does not state is "" or 0.

    Attributes:
        format: "DICOM", "PNG" or "JPEG".
        modality: DICOM modality, "CR" or "DX" for most radiographs.
        view: The view, decided from the whole header (`contract.image.view`).
        view_confidence: Probability that the view is right, 0.5 to 1; for UNKNOWN, that of the likelier kind.
        view_source: The evidence for the view, separated by "; ".
        laterality: "L", "R", "B" (both) or "U" (unpaired), as DICOM writes it.
        body_part: DICOM Body Part Examined.
        photometric: DICOM Photometric Interpretation; MONOCHROME1 stores air white.
        inverse: Whether Presentation LUT Shape is INVERSE.
        bits: Bits stored per sample.
        rows: Height in pixels.
        columns: Width in pixels.
        frames: Number of frames; 1 if the file does not state it.
        window: Whether it has a window (Window Center and Window Width).
        voi_lut: Whether it has a VOI LUT sequence.
        syntax: DICOM transfer syntax UID.
        clues: The header elements that the view was decided from.
    """

    format: str
    modality: str = ""
    view: View = "UNKNOWN"
    view_confidence: float = 0.5
    view_source: str = ""
    laterality: str = ""
    body_part: str = ""
    photometric: str = ""
    inverse: bool = False
    bits: int = 0
    rows: int = 0
    columns: int = 0
    frames: int = 1
    window: bool = False
    voi_lut: bool = False
    syntax: str = ""
    clues: ViewClues = field(default=ViewClues(), compare=False, repr=False)


def read_image_header(data: bytes) -> ImageHeader:
    """Read the header of a DICOM, PNG or JPEG file; the first 64 kB of most files are enough.

    Raises:
        ImageError: The bytes are not an image.
    """
    return describe_picture(data) if is_picture(data) else describe_dicom(read_header(data))


def describe_dicom(image: DicomImage) -> ImageHeader:
    """Return the header of a DICOM file."""
    rows, columns = max(image.rows, 0), max(image.columns, 0)
    return ImageHeader(
        format="DICOM",
        modality=image.modality,
        laterality=image.laterality,
        body_part="" if image.body_part in _NO_BODY_PARTS else image.body_part,
        photometric=image.photometric,
        inverse=image.inverse,
        bits=max(image.bits, 0),
        rows=rows,
        columns=columns,
        frames=max(image.frames, 1),
        window=bool(image.windows),
        voi_lut=image.has_voi_lut,
        syntax=image.syntax,
        **_weigh(read_clues(image.view, rows=rows, columns=columns)),
    )


def make_missing_error() -> ConfigError:
    """Return the error for a missing 'image' extra."""
    return ConfigError("Reading images needs the 'image' extra: pip install 'cxr-serving[image]'.")


def list_warnings(header: ImageHeader, *, is_first: bool = True) -> tuple[str, ...]:
    """Return warnings about the image, one sentence each.

    Args:
        header: The header of the image.
        is_first: Whether it is the first image of its study. The others are expected to be other views.
    """
    found = []
    if header.view == "LATERAL" and is_first:
        found.append("The image is a lateral view; the model learned mostly from frontal ones.")
    if header.body_part and not _is_chest(header.body_part):
        found.append(f"The image is labelled {header.body_part}, not chest.")
    if header.frames > 1:
        found.append(f"The image has {header.frames} frames; only the first was read.")
    return tuple(found)


def _is_chest(body_part: str) -> bool:
    if any(word in body_part for word in _SPINE_WORDS):
        return False
    return any(word in body_part for word in _CHEST_WORDS)


def describe_picture(data: bytes) -> ImageHeader:
    """Return the header of a PNG or JPEG file, with rows and columns as displayed.

    Raises:
        ImageError: It is damaged, or has too many parts.
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
                png = data[:4] == b"\x89PNG"
                rows, columns = image.height, image.width
                # Call Image's method: PNG's own method decodes the whole image to find chunks after the pixels.
                if Image.Image.getexif(image).get(ORIENTATION, 1) in TURNED:
                    rows, columns = columns, rows
                bits = data[24] if png else 8  # IHDR, PNG 11.2.1
                kind, clues = "PNG" if png else "JPEG", ViewClues(shape=describe_shape(rows, columns))
                return ImageHeader(kind, bits=bits, rows=rows, columns=columns, **_weigh(clues))
    except Exception as error:  # the decoders raise many error types for damaged files
        raise ImageError("The PNG or JPEG image is damaged or truncated.") from error


def _weigh(clues: ViewClues) -> dict[str, Any]:
    """Return the view fields of a header."""
    return {"clues": clues, **describe_verdict(weigh_view(clues))}


def describe_verdict(verdict: ViewVerdict) -> dict[str, Any]:
    """Return a verdict as the fields of a header."""
    return {
        "view": verdict.view,
        "view_confidence": verdict.confidence,
        "view_source": verdict.source,
    }
