"""A DICOM data set -> its record (`contract.image.record`).

The elements that are used are converted in one pass. pydicom would convert each one on first use, where a damaged value
would raise an error of its own kind.
"""

import contextlib
import re
import unicodedata
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Literal

from contract.errors import ImageError
from contract.image.record import (
    DicomImage,
    Edges,
    Opening,
    Shutter,
    ViewElements,
    VoiFunction,
    Window,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_PALETTE_ELEMENTS: Final = tuple(
    f"{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue")
    for part in ("Descriptor", "Data")
)
_TABLE_ELEMENTS: Final = ("ModalityLUTSequence", "VOILUTSequence", *_PALETTE_ELEMENTS)
# Elements that are needed to read an image correctly. A broken one is an error.
_STRICT_ELEMENTS: Final = (
    "PixelData",
    "Modality",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "NumberOfFrames",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "VOILUTFunction",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PresentationLUTShape",
    *_PALETTE_ELEMENTS,
)
_SHUTTER_ELEMENTS: Final = tuple(
    f"{part}{name}"
    for part in ("Shutter", "Collimator")
    for name in (
        "Shape",
        "LeftVerticalEdge",
        "RightVerticalEdge",
        "UpperHorizontalEdge",
        "LowerHorizontalEdge",
    )
)
_ROUND_SHUTTER_ELEMENTS: Final = tuple(
    f"{start}{part}"
    for part in ("Shutter", "Collimator")
    for start in ("CenterOfCircular", "RadiusOfCircular", "VerticesOfThePolygonal")
)
# Optional elements. A broken one counts as absent.
_HINTS: Final = (
    "WindowCenter",
    "WindowWidth",
    "SOPClassUID",
    "ViewPosition",
    "ImageLaterality",
    "Laterality",
    "BodyPartExamined",
    "ViewCodeSequence",
    "PatientOrientation",
    "AcquisitionDeviceProcessingCode",
    "PostprocessingFunction",
    "Manufacturer",
    "PlateType",
    "Exposure",
    "ExposureInuAs",
    *_SHUTTER_ELEMENTS,
    *_ROUND_SHUTTER_ELEMENTS,
)
_LONGEST_VALUE: Final = 4096  # bytes of an element that holds neither pixels nor a table
_LONGEST_TABLE: Final = 2**20
_MOST_ITEMS: Final = 1000
_ITEM_TAGS: Final = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # little and big endian
# A larger number of a window, a rescale or a table is an error, and might overflow.
LARGEST_NUMBER: Final = 1e9
_FARTHEST_PLACE: Final = 2**15  # rows or columns from the first one
_OPENINGS: Final[tuple[Opening, ...]] = ("RECTANGULAR", "CIRCULAR", "POLYGONAL")
_FUNCTIONS: Final[dict[str, VoiFunction]] = {
    "": "LINEAR",
    "LINEAR": "LINEAR",
    "LINEAR_EXACT": "LINEAR_EXACT",
    "SIGMOID": "SIGMOID",
}
_OVERLAY_GROUPS: Final = range(0x6000, 0x6020, 2)
_OVERLAY_BIT_POSITION: Final = 0x0102


class Elements:
    """The elements of a data set that are used, by keyword.

    Attributes:
        dataset: The data set, without the optional elements that are broken.
    """

    def __init__(self, dataset: "Dataset") -> None:
        """Convert the elements.

        Raises:
            ImageError: A value is too long.
            Exception: A needed value is damaged; pydicom raises many error types.
        """
        self.dataset = dataset
        self._values: dict[str, Any] = {}
        for name in (*_STRICT_ELEMENTS, *_HINTS):
            if name in dataset and name != "PixelData":
                self._convert(name)
        self._values["PixelData"] = dataset.get("PixelData")

    def _convert(self, name: str) -> None:
        try:
            _check_length(self.dataset, name)
            self._values[name] = self.dataset.get(name)
        except Exception:  # pydicom raises many error types for damaged values
            if name in _STRICT_ELEMENTS:
                raise
            delattr(self.dataset, name)

    def get(self, name: str) -> Any:
        """Return an element's value; None if it is absent or empty."""
        return self._values.get(name)

    def set(self, name: str, value: int) -> None:
        """Replace an element's value, in the data set, too."""
        self._values[name] = value
        setattr(self.dataset, name, value)

    def read_text(self, name: str) -> str:
        """Return an element's text in capitals: "" if it is absent, "?" if it is not a single text."""
        value = self.get(name)
        return "" if value is None else _clean(value)

    def read_code(self, name: str) -> str:
        """Return a coded value. A value that does not look like a code might hold patient data, so it becomes ""."""
        return _require_code(self.read_text(name))

    def read_values(self, name: str) -> list[Any]:
        """Return an element's values as a list; empty if it is absent."""
        from pydicom.multival import MultiValue

        value = self.get(name)
        if value is None or value == "":
            return []
        return list(value) if isinstance(value, MultiValue | list) else [value]

    def read_integer(self, name: str, *, default: int = 0) -> int:
        """Return a whole number; `default` if it is absent or not a number."""
        try:
            return int(self.get(name) or default)
        except (TypeError, ValueError, OverflowError):
            return default

    def read_number(self, name: str) -> float | None:
        """Return an element's first value; None if it is absent, empty or not a usable number."""
        values = self.read_values(name)
        return _convert_number(values[0]) if values else None

    def read_places(self, name: str) -> tuple[int, ...]:
        """Return rows and columns; empty if they are absent or one of them is not a possible place."""
        try:
            places = tuple(int(number) for number in self.read_values(name))
        except (TypeError, ValueError, OverflowError):
            return ()
        return places if all(abs(place) <= _FARTHEST_PLACE for place in places) else ()


def _check_length(dataset: "Dataset", name: str) -> None:
    """Refuse a value that is so long that its conversion, item by item, would take long."""
    value = getattr(dataset.get_item(name), "value", None)
    if not isinstance(value, bytes | bytearray):
        return
    table = name in _TABLE_ELEMENTS
    items = sum(value.count(tag) for tag in _ITEM_TAGS) if table else 0
    if len(value) > (_LONGEST_TABLE if table else _LONGEST_VALUE) or items > _MOST_ITEMS:
        raise ImageError(f"The DICOM file has a value of {len(value):,} bytes where a short one is expected.")


def _clean(value: Any) -> str:
    """Return a text in capitals; "?" for another value.

    A damaged file may have a sequence instead of a text. Its text form would be its whole content.
    """
    return value.strip().upper() if isinstance(value, str) else "?"


def _require_code(text: str) -> str:
    return text if re.fullmatch(r"[A-Z0-9][A-Z0-9_ ]{0,15}", text) else ""


def _convert_number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < LARGEST_NUMBER else None


def fill_record(elements: Elements) -> DicomImage:
    """Return the record, without tables and data set."""
    pixels = elements.get("PixelData")
    implicit, little = elements.dataset.original_encoding
    file_meta = getattr(elements.dataset, "file_meta", None)
    centres, widths = (elements.read_values(name) for name in ("WindowCenter", "WindowWidth"))
    return DicomImage(
        modality=elements.read_code("Modality"),
        laterality=elements.read_code("ImageLaterality") or elements.read_code("Laterality"),
        body_part=_read_body_part(elements),
        view=fill_view(elements),
        syntax=str(getattr(file_meta, "TransferSyntaxUID", None) or ""),
        implicit_vr=bool(implicit),
        little_endian=bool(little),
        rows=elements.read_integer("Rows"),
        columns=elements.read_integer("Columns"),
        samples=elements.read_integer("SamplesPerPixel", default=1),
        frames=elements.read_integer("NumberOfFrames", default=1),
        allocated=elements.read_integer("BitsAllocated"),
        bits=elements.read_integer("BitsStored"),
        high_bit=_require_integer(elements.get("HighBit")),
        representation=elements.read_integer("PixelRepresentation"),
        photometric=elements.read_code("PhotometricInterpretation"),
        padding=_read_padding(elements),
        overlay_bits=tuple(_list_overlay_bits(elements.dataset)),
        inverse=elements.read_text("PresentationLUTShape") == "INVERSE",
        slope=elements.read_number("RescaleSlope"),
        intercept=elements.read_number("RescaleIntercept"),
        windows=tuple(
            Window(_convert_number(centre), _convert_number(width))
            for centre, width in zip(centres, widths, strict=False)
        ),
        function=_FUNCTIONS.get(elements.read_text("VOILUTFunction"), "OTHER"),
        has_voi_lut=bool(elements.get("VOILUTSequence")),
        shutter=_read_shutter(elements, "Shutter"),
        collimator=_read_shutter(elements, "Collimator"),
        pixels=pixels if isinstance(pixels, bytes) else b"",
    )


def _read_body_part(elements: Elements) -> str:
    """Return Body Part Examined without accents; "" if the value is not a code.

    Many exporters write words in their own language.
    """
    text = elements.read_text("BodyPartExamined")
    with contextlib.suppress(UnicodeError):
        text = text.encode("latin-1").decode("utf-8")  # pydicom reads code strings as Latin-1
    folded = "".join(letter for letter in unicodedata.normalize("NFKD", text) if letter.isprintable())
    folded = "".join(letter for letter in folded if not unicodedata.combining(letter))
    return _require_code(folded.strip().upper())


def _require_integer(value: Any) -> int | None:
    return int(value) if isinstance(value, int) else None


def _read_padding(elements: Elements) -> tuple[int, int] | None:
    """Return Pixel Padding Value and its range limit; None without padding."""
    value, limit = (
        _require_integer(elements.get(name)) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")
    )
    return None if value is None else (value, value if limit is None else limit)


def _list_overlay_bits(dataset: "Dataset") -> Iterator[int]:
    """Yield the bits of the words that hold overlays: Overlay Bit Position, retired (DICOM PS3.3 C.9.2)."""
    order: Literal["little", "big"] = "little" if dataset.original_encoding[1] else "big"
    for group in _OVERLAY_GROUPS:
        element = dataset.get_item((group, _OVERLAY_BIT_POSITION))
        value = getattr(element, "value", None)  # the raw value: converting a malicious one takes long
        position = int.from_bytes(value, order) if isinstance(value, bytes) and len(value) == 2 else value
        if isinstance(position, int):
            yield position


def _read_shutter(elements: Elements, part: str) -> Shutter | None:
    """Return a shutter ("Shutter") or a collimator ("Collimator"). Their elements differ only in this word.

    A bitmap is no opening, because it refers to an overlay, and overlays are not read.
    """
    kinds = [_clean(kind) for kind in elements.read_values(f"{part}Shape")]
    openings = tuple(opening for kind in kinds for opening in _OPENINGS if opening == kind)
    if not openings:
        return None
    names = ("UpperHorizontal", "LowerHorizontal", "LeftVertical", "RightVertical")
    edges = [elements.read_places(f"{part}{name}Edge") for name in names]
    centre = elements.read_places(f"CenterOfCircular{part}")
    radius = elements.read_places(f"RadiusOfCircular{part}")
    vertices = elements.read_places(f"VerticesOfThePolygonal{part}")
    return Shutter(
        openings=openings,
        edges=Edges(*(places[0] for places in edges)) if all(edges) else None,
        centre=(centre[0], centre[1]) if len(centre) == 2 else None,
        radius=abs(radius[0]) if radius else None,
        vertices=tuple(zip(vertices[::2], vertices[1::2], strict=True)) if len(vertices) % 2 == 0 else (),
    )


def fill_view(elements: Elements) -> ViewElements:
    """Return the elements that state the view."""
    manufacturer = elements.read_text("Manufacturer")
    return ViewElements(
        view_position=elements.read_text("ViewPosition"),
        view_code=_read_view_code(elements),
        patient_orientation=tuple(map(_clean, elements.read_values("PatientOrientation"))),
        manufacturer=manufacturer,
        private_creators=() if manufacturer else tuple(_list_creators(elements.dataset)),
        plate_type=elements.read_text("PlateType"),
        processing_code=elements.read_text("AcquisitionDeviceProcessingCode"),
        postprocessing=elements.read_text("PostprocessingFunction"),
        exposure_uas=_read_exposure(elements, "ExposureInuAs"),
        exposure_mas=_read_exposure(elements, "Exposure"),
    )


def _read_view_code(elements: Elements) -> str:
    """Return the code value of the View Code Sequence; "" if it is missing or broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return str(elements.get("ViewCodeSequence")[0].CodeValue).strip()
    except Exception:  # pydicom converts the values here and raises many error types for damaged ones
        return ""


def _list_creators(dataset: "Dataset") -> Iterator[str]:
    for tag in tuple(dataset.keys()):  # iterating over the data set would convert every value
        if tag.group % 2 and 0x10 <= tag.element <= 0xFF:
            value = getattr(dataset.get_item(tag), "value", None)
            text = value[:64].decode("ascii", "replace") if isinstance(value, bytes) else value
            if isinstance(text, str):
                yield text[:64].strip("\0 ").upper()


def _read_exposure(elements: Elements, name: str) -> float:
    values = elements.read_values(name)
    return (_convert_number(values[0]) if len(values) == 1 else None) or 0.0
