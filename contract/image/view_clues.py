"""Read the header elements that help to tell a frontal view from a lateral one.

View Position alone is not reliable, because CR readers write a menu preset into it. So other elements are read as well,
and `contract.image.view` weighs them. They hold no patient data.
"""

import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from contract.image import dicom_file

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Maker = Literal["AGFA", "SIEMENS", ""]
Position = Literal["PA", "AP", "LATERAL", ""]
Shape = Literal["portrait", "square", "landscape", ""]
Projection = Literal["FRONTAL", "LATERAL", ""]

_LATERAL_CODES: Final = {"LL", "RL", "LAT", "LLAT", "RLAT"}
# View codes of DICOM PS3.16 CID 4010, SNOMED CT and the SNOMED-RT codes before it.
_VIEW_CODES: Final[dict[str, Position]] = {
    **dict.fromkeys(("272479007", "R-10214", "R-40888"), "PA"),
    **dict.fromkeys(("399348003", "R-10206"), "AP"),
    **dict.fromkeys(("399067008", "R-102CD", "399173006", "R-10236", "399198007", "R-10232"), "LATERAL"),
}
# Prefixes of the private blocks of a device (DICOM PS3.5 7.8.1). Archives of the same makers use other names.
_CREATORS: Final[tuple[tuple[str, Maker], ...]] = (
    (r"AGFA( ADC\b.*)?", "AGFA"),
    (r"SIEMENS MEDCOM\b.*", "SIEMENS"),
)
_AGFA_PLATE: Final = re.compile(r"CODE[0-9]{1,3}")
_CODE: Final = re.compile(r"[A-Z0-9]{1,8}")
_SQUARE: Final = 0.05  # share by which rows and columns of a square may differ; collimation moves edges
_MOST_MAS: Final = 10_000  # a larger value is not the exposure of a patient


@dataclass(frozen=True)
class ViewClues:
    r"""The view evidence of one header. A value that the file does not state is "" or 0.

    Attributes:
        position: View by View Position, or by View Code Sequence if View Position does not state one.
        orientation: Patient Orientation as DICOM writes it: A\F has the front of the body on the right of the image.
        maker: Maker of the device, if its codes are known.
        code: Acquisition Device Processing Code. Its meaning depends on the maker and the hospital.
        program: Postprocessing Function, a name in words.
        shape: Shape of the image, by rows and columns.
        exposure: Exposure in mAs.
        projection: View by a published list, which people made by looking at the images; not from the header.
    """

    position: Position = ""
    orientation: str = ""
    maker: Maker = ""
    code: str = ""
    program: str = ""
    shape: Shape = ""
    exposure: float = 0.0
    projection: Projection = ""


def read_clues(dataset: "Dataset", *, rows: int, columns: int) -> ViewClues:
    """Return the view evidence of a parsed DICOM file; `rows` and `columns` are the size of the image."""
    return ViewClues(
        position=_read_position(dataset),
        orientation=_read_orientation(dataset),
        maker=_find_maker(dataset),
        code=_match(_CODE, dicom_file.read_text(dataset, "AcquisitionDeviceProcessingCode")),
        program=dicom_file.read_text(dataset, "PostprocessingFunction"),
        shape=describe_shape(rows, columns),
        exposure=_read_exposure(dataset),
    )


def describe_shape(rows: int, columns: int) -> Shape:
    """Return the shape of an image; "" without rows or columns."""
    if not (rows and columns):
        return ""
    ratio = rows / columns
    if abs(ratio - 1) < _SQUARE:
        return "square"
    return "portrait" if ratio > 1 else "landscape"


def _read_position(dataset: "Dataset") -> Position:
    position = dicom_file.read_text(dataset, "ViewPosition")
    if position == "PA":
        return "PA"
    if position == "AP":
        return "AP"
    if position in _LATERAL_CODES or "LATERAL" in position:
        return "LATERAL"
    return "" if position else _VIEW_CODES.get(_read_view_code(dataset), "")


def _read_view_code(dataset: "Dataset") -> str:
    """Return the code value of the View Code Sequence; "" if it is missing or broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return str(dataset.ViewCodeSequence[0].CodeValue).strip()
    except Exception:  # pydicom converts the values here and raises many error types for damaged ones
        return ""


def _read_orientation(dataset: "Dataset") -> str:
    """Return Patient Orientation (DICOM PS3.3 C.7.6.1.1.1); "" if it is not a pair of directions."""
    directions = [
        str(part).strip().upper() for part in dicom_file.read_numbers(dataset, "PatientOrientation")
    ]
    valid = len(directions) == 2 and all(re.fullmatch(r"[APLRHF]{1,3}", part) for part in directions)
    return "\\".join(directions) if valid else ""


def _find_maker(dataset: "Dataset") -> Maker:
    """Return the maker of the device by Manufacturer, its private blocks, or the names of its plates, in this order.

    Open-i has no Manufacturer. Only Agfa's devices use plate names such as code15.
    """
    manufacturer = dicom_file.read_text(dataset, "Manufacturer")
    if manufacturer:
        return "AGFA" if "AGFA" in manufacturer else "SIEMENS" if "SIEMENS" in manufacturer else ""
    for creator in _list_creators(dataset):
        for pattern, maker in _CREATORS:
            if re.fullmatch(pattern, creator):
                return maker
    return "AGFA" if _AGFA_PLATE.fullmatch(dicom_file.read_text(dataset, "PlateType")) else ""


def _list_creators(dataset: "Dataset") -> Iterator[str]:
    for tag in tuple(dataset.keys()):  # iterating over the data set would convert every value
        if tag.group % 2 and 0x10 <= tag.element <= 0xFF:
            value = getattr(dataset.get_item(tag), "value", None)
            text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
            yield text[:64].strip("\0 ").upper()


def _read_exposure(dataset: "Dataset") -> float:
    for name, unit in (("ExposureInuAs", 1e-3), ("Exposure", 1.0)):
        value = _read_number(dataset, name) * unit
        if 0 < value < _MOST_MAS:
            return value
    return 0.0


def _read_number(dataset: "Dataset", name: str) -> float:
    value: Any = dataset.get(name)
    try:
        number = float(value or 0)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def _match(pattern: re.Pattern[str], text: str) -> str:
    return text if pattern.fullmatch(text) else ""
