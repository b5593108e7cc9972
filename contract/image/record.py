"""The record of a DICOM image: what the reader uses of a file, converted once to plain types.

`contract.image.elements` fills it. The other modules read it, not the data set that pydicom parsed.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Opening = Literal["RECTANGULAR", "CIRCULAR", "POLYGONAL"]
VoiFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID", "OTHER"]


class Edges(NamedTuple):
    """Edges of a rectangle, inclusive; rows and columns are counted from 1."""

    top: int
    bottom: int
    left: int
    right: int


class Window(NamedTuple):
    """A window; None for a value that is not a usable number."""

    centre: float | None
    width: float | None


@dataclass(frozen=True)
class Shutter:
    """A display shutter (DICOM PS3.3 C.7.6.11) or a collimator (C.8.7.3); rows and columns are counted from 1.

    Attributes:
        openings: The kinds of its openings. What lies outside one of them is covered.
        edges: Edges of the rectangle; None without usable ones.
        centre: Row and column of the centre of the circle; None without a usable one.
        radius: Radius of the circle, in pixels, at least 0; None without a usable one.
        vertices: Row and column of each vertex of the polygon; empty without usable ones.
    """

    openings: tuple[Opening, ...]
    edges: Edges | None
    centre: tuple[int, int] | None
    radius: int | None
    vertices: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class LookupTable:
    """A modality LUT or VOI LUT (DICOM PS3.3 C.11.1.1.1).

    Attributes:
        first: The value of the first entry, 0 to 65,535, or below 0; a negative one may be written as unsigned.
        entries: (N,) float32, N at least 1. Values before the first entry have it, too; likewise after the last one.
    """

    first: int
    entries: NDArray[np.float32]


@dataclass(frozen=True)
class ViewElements:
    """The elements that help to tell a frontal view from a lateral one. Texts are in capitals; "" if not stated.

    Attributes:
        view_position: View Position.
        view_code: Code value of View Code Sequence.
        patient_orientation: The values of Patient Orientation.
        manufacturer: Manufacturer.
        private_creators: Names of the private blocks; not read if the manufacturer is stated.
        plate_type: Plate Type.
        processing_code: Acquisition Device Processing Code.
        postprocessing: Postprocessing Function.
        exposure_uas: Exposure in uAs; 0 if not stated.
        exposure_mas: Exposure in mAs; 0 if not stated.
    """

    view_position: str
    view_code: str
    patient_orientation: tuple[str, ...]
    manufacturer: str
    private_creators: tuple[str, ...]
    plate_type: str
    processing_code: str
    postprocessing: str
    exposure_uas: float
    exposure_mas: float


@dataclass(frozen=True, eq=False)
class DicomImage:
    """The elements of one DICOM file that are used.

    A file that was read with its pixels has been checked: every count is usable. In a file that was read without them,
    a count is 0 if the file does not state it, and there are no tables, no pixels and no data set.

    Attributes:
        modality: Modality; "" if it is absent or not a code. So are laterality, body part and photometric.
        laterality: Image Laterality, or else Laterality.
        body_part: Body Part Examined, without accents.
        view: The elements that state the view.
        syntax: Transfer syntax UID; "" if the file does not state it.
        implicit_vr: Whether the elements were read without value representations.
        little_endian: Whether the file was read as little endian.
        rows: Height in pixels.
        columns: Width in pixels.
        samples: Samples per pixel, 1 or 3; 1 if not stated.
        frames: Number of frames; 1 if not stated.
        allocated: Bits per sample in the pixel data, 8 or 16.
        bits: Bits of a sample that hold its value (Bits Stored), 1 to `allocated`.
        high_bit: Place of the highest of these bits, as stated; None if not stated.
        representation: Pixel representation: 1 for values in two's complement, otherwise 0.
        photometric: Photometric interpretation.
        padding: Pixel Padding Value and its range limit, equal without a limit; None without padding.
        overlay_bits: Bits of the words that overlays are stored in (Overlay Bit Position).
        inverse: Whether Presentation LUT Shape is INVERSE.
        slope: Rescale slope; None if it is absent or not a usable number.
        intercept: Rescale intercept; None likewise.
        windows: The windows, in their order; empty if centres or widths are absent.
        function: How a window is applied.
        has_voi_lut: Whether the file states a VOI LUT, even an empty one.
        modality_lut: First modality LUT that is not empty; only read for a monochrome image.
        voi_lut: First VOI LUT that is not empty; only read for a monochrome image.
        shutter: Display shutter; None without one.
        collimator: Collimator; None without one.
        pixels: The encoded pixel data.
        dataset: The elements that pydicom's decoder reads: the pixel module and the palette. Only
            `contract.image.decode` uses it.
    """

    modality: str
    laterality: str
    body_part: str
    view: ViewElements = field(repr=False)
    syntax: str
    implicit_vr: bool
    little_endian: bool
    rows: int
    columns: int
    samples: int
    frames: int
    allocated: int
    bits: int
    high_bit: int | None
    representation: int
    photometric: str
    padding: tuple[int, int] | None
    overlay_bits: tuple[int, ...]
    inverse: bool
    slope: float | None
    intercept: float | None
    windows: tuple[Window, ...]
    function: VoiFunction
    has_voi_lut: bool
    shutter: Shutter | None
    collimator: Shutter | None
    modality_lut: LookupTable | None = field(default=None, repr=False)
    voi_lut: LookupTable | None = field(default=None, repr=False)
    pixels: bytes = field(default=b"", repr=False)
    dataset: "Dataset | None" = field(default=None, repr=False)
