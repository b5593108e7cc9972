"""Turn the header elements that help to tell a frontal view from a lateral one into evidence.

View Position alone is not reliable, because CR readers write a menu preset into it. So other elements are read as well,
and `contract.image.view` weighs them. They hold no patient data.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

from contract.image.record import ViewElements

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


def read_clues(elements: ViewElements, *, rows: int, columns: int) -> ViewClues:
    """Return the view evidence of a file; `rows` and `columns` are the size of the image."""
    code = elements.processing_code
    return ViewClues(
        position=_find_position(elements),
        orientation=_find_orientation(elements.patient_orientation),
        maker=_find_maker(elements),
        code=code if _CODE.fullmatch(code) else "",
        program=elements.postprocessing,
        shape=describe_shape(rows, columns),
        exposure=_find_exposure(elements),
    )


def describe_shape(rows: int, columns: int) -> Shape:
    """Return the shape of an image; "" without rows or columns."""
    if not (rows and columns):
        return ""
    ratio = rows / columns
    if abs(ratio - 1) < _SQUARE:
        return "square"
    return "portrait" if ratio > 1 else "landscape"


def _find_position(elements: ViewElements) -> Position:
    position = elements.view_position
    if position == "PA":
        return "PA"
    if position == "AP":
        return "AP"
    if position in _LATERAL_CODES or "LATERAL" in position:
        return "LATERAL"
    return "" if position else _VIEW_CODES.get(elements.view_code, "")


def _find_orientation(directions: tuple[str, ...]) -> str:
    """Return Patient Orientation (DICOM PS3.3 C.7.6.1.1.1); "" if it is not a pair of directions."""
    valid = len(directions) == 2 and all(re.fullmatch(r"[APLRHF]{1,3}", part) for part in directions)
    return "\\".join(directions) if valid else ""


def _find_maker(elements: ViewElements) -> Maker:
    """Return the maker of the device by Manufacturer, its private blocks, or the names of its plates, in this order.

    Open-i has no Manufacturer. Only Agfa's devices use plate names such as code15.
    """
    manufacturer = elements.manufacturer
    if manufacturer:
        return "AGFA" if "AGFA" in manufacturer else "SIEMENS" if "SIEMENS" in manufacturer else ""
    for creator in elements.private_creators:
        for pattern, maker in _CREATORS:
            if re.fullmatch(pattern, creator):
                return maker
    return "AGFA" if _AGFA_PLATE.fullmatch(elements.plate_type) else ""


def _find_exposure(elements: ViewElements) -> float:
    """Return the exposure in mAs; 0 if the file does not state one that is possible."""
    for exposure in (elements.exposure_uas * 1e-3, elements.exposure_mas):
        if 0 < exposure < _MOST_MAS:
            return exposure
    return 0.0
