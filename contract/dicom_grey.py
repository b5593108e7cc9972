"""Stored values to grey, for every value a pixel can have: a table that a whole image is looked up in.

    bits of the word -> modality LUT or rescale -> VOI LUT, window or range -> inversion -> grey
    (DICOM PS3.3 C.7.6.3.1, C.11.1, C.11.2 and PS3.4 N.2)

All of it maps one stored value to one grey, so 256 or 65,536 values are computed instead of millions of pixels, and
the result is that of the chain on every pixel, exactly.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from contract import dicom_file
from contract.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

WHITE: Final = 65535  # of the grey that tables and pictures hold; black is 0
_LUMINANCE: Final = np.array([0.299, 0.587, 0.114], np.float32)  # of R, G and B, ITU-R BT.601
_LARGEST_NUMBER: Final = 1e9  # a window or rescale value beyond it is nonsense and would overflow float32

_STEEPEST: Final = 64.0  # of a ramp, per stored value: the whole range in 1,024 values

T = TypeVar("T")
Values = NDArray[np.float32]


@dataclass(frozen=True)
class Grey:
    """An image, (rows, columns) uint8 or uint16, and which of its values are black and white."""

    values: NDArray[Any]
    black: float
    white: float


@dataclass(frozen=True)
class Ramp:
    """A table that is level, then rises or falls evenly, then is level again.

    Attributes:
        start: Where the slope starts.
        stop: Where it ends.
        black: Where the slope would reach black; outside of the table's words, maybe.
        white: Where it would reach white.
    """

    start: int
    stop: int
    black: float
    white: float


def list_values(dataset: "Dataset", words: "np.dtype[Any]") -> NDArray[np.int32]:
    """Return the value that each word of a type stores, (256,) or (65536,) int32 (DICOM PS3.5 8.1.1).

    Bits outside Bits Stored hold overlays or nothing, and count for nothing.
    """
    stored = int(dataset.get("BitsStored") or 0) or int(dataset.BitsAllocated)
    high = dataset.get("HighBit")
    usable = isinstance(high, int) and stored <= high + 1 <= int(dataset.BitsAllocated)
    shift = int(high) + 1 - stored if usable else 0
    values = (np.arange(2 ** (8 * words.itemsize), dtype=np.int32) >> shift) & (2**stored - 1)
    if int(dataset.PixelRepresentation):  # two's complement
        values -= (values >> (stored - 1)) << stored
    return np.asarray(values)


def apply_modality(values: NDArray[np.int32], dataset: "Dataset") -> Values:
    """Apply the modality LUT or rescale slope and intercept (DICOM PS3.3 C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        return _guard(lambda: _apply_lut(values, dataset, "ModalityLUTSequence")[0], "modality LUT")
    slope = _read_number(dataset, "RescaleSlope")
    # Many CR files carry an empty or nonsensical slope; 0 would wipe out the image.
    if not slope:
        return values.astype(np.float32)
    intercept = _read_number(dataset, "RescaleIntercept") or 0.0
    return values.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def apply_voi(values: Values, dataset: "Dataset") -> Values | None:
    """Return grey 0..1 by the file's VOI LUT or its first window (DICOM PS3.3 C.11.2), None where it has neither."""
    if dataset.get("VOILUTSequence"):
        shown, table = _guard(lambda: _apply_lut(values, dataset, "VOILUTSequence"), "VOI LUT")
        # The table's own range: many tables use fewer bits than their descriptor says.
        return stretch(shown, float(table.min()), float(table.max()))
    window = _read_window(dataset)
    return None if window is None else _apply_window(values, *window)


def is_inverted(dataset: "Dataset") -> bool:
    """Whether the smallest value of the image is shown white.

    MONOCHROME1 says so, and so does Presentation LUT Shape INVERSE; they are two words for one inversion and
    stand together in DX images (DICOM PS3.3 C.8.11.3.1.2), so it is done once.
    """
    inverse = dicom_file.read_text(dataset, "PresentationLUTShape") == "INVERSE"
    return dicom_file.get_photometric(dataset) == "MONOCHROME1" or inverse


def find_padding(values: NDArray[np.int32], dataset: "Dataset") -> NDArray[np.bool_]:
    """Mark values that are no image: Pixel Padding Value and its range limit (DICOM PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(values.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    words = [value & 0xFFFF, (limit if isinstance(limit, int) else value) & 0xFFFF]
    # Signed images whose padding was written as unsigned are common: 63536 means -2000.
    ends = np.array(words, np.uint16).view(np.int16 if int(dataset.PixelRepresentation) else np.uint16)
    return np.asarray((values >= ends.min()) & (values <= ends.max()))


def pack_table(grey: Values, padding: NDArray[np.bool_], *, inverted: bool) -> NDArray[np.uint16]:
    """Return grey 0..1 as 0..WHITE, inverted where the file says so, with black padding."""
    shown = 1 - grey if inverted else grey
    return np.where(padding, 0, np.rint(np.clip(shown, 0, 1) * WHITE)).astype(np.uint16)


def find_ramp(table: NDArray[np.uint16]) -> Ramp | None:
    """Return the ramp that a table is, None where it is none or a steep one.

    Clipping an image at both ends and averaging it then does the same as looking it up and averaging that, in a tenth
    of the time. Averages of stored values are whole numbers, so that a steep ramp would be shown coarsely: this one
    is off by a quarter of one of 256 levels at most.
    """
    moving = np.flatnonzero(np.diff(table.astype(np.int32)))
    if not moving.size:
        return None
    start, stop = int(moving[0]), int(moving[-1]) + 1
    slope = (int(table[stop]) - int(table[start])) / (stop - start)
    line = int(table[start]) + slope * np.arange(stop - start + 1)
    # The ends of a window lie between two values.
    if not slope or abs(slope) > _STEEPEST or np.abs(line - table[start : stop + 1]).max() > 2 * _STEEPEST:
        return None
    black = start - int(table[start]) / slope
    return Ramp(start, stop, black, black + WHITE / slope)


def make_palette_table(dataset: "Dataset", words: NDArray[Any]) -> NDArray[np.uint16]:
    """Return the luminance of each word of a palette image (DICOM PS3.3 C.7.6.3.1.5), (256,) or (65536,)."""
    from pydicom.pixels.processing import apply_color_lut

    if "SegmentedRedPaletteColorLookupTableData" in dataset:  # a few bytes of it can expand without end
        raise ImageError("The colour palette of the DICOM file is segmented, which is not supported.")
    indices = np.arange(2 ** (8 * words.itemsize), dtype=words.dtype)
    colours = _guard(lambda: np.asarray(apply_color_lut(indices, dataset)), "colour palette")[..., :3]
    if colours.shape[-1] != 3:  # pydicom goes on without a table that is missing
        raise ImageError("The colour palette of the DICOM file is damaged.")
    return measure_luminance(colours, bits=8 * colours.itemsize)


def measure_luminance(colours: NDArray[Any], *, bits: int) -> NDArray[np.uint16]:
    """Turn RGB, (..., 3) of `bits` bits, into luminance 0..WHITE, (...)."""
    weights = _LUMINANCE * np.float32(WHITE / (2**bits - 1))
    grey = sum(colours[..., place] * weight for place, weight in enumerate(weights))
    return np.asarray(np.rint(np.clip(grey, 0, WHITE))).astype(np.uint16)


def stretch(values: Values, low: float, high: float) -> Values:
    """Return 0 at `low` and below, 1 at `high` and above, linear between."""
    scale = max(high - low, 1e-6)
    return np.clip((values - np.float32(low)) / np.float32(scale), 0, 1)


def _apply_lut(values: NDArray[Any], dataset: "Dataset", sequence: str) -> tuple[Values, Values]:
    """Look values up in the first table of a sequence (DICOM PS3.3 C.11.1.1.1); return them and the table."""
    item = dataset[sequence][0]
    count, first, _ = (int(float(number)) for number in item.LUTDescriptor)
    count = count or 2**16
    if first > 2**15 and values.min() < 0:  # a negative start, written as unsigned
        first -= 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        words = len(data) >= 2 * count  # else 8 bit entries, packed
        big = dataset.original_encoding[1] is False
        data = np.frombuffer(data, np.dtype("u1") if not words else np.dtype(">u2" if big else "<u2"))
    table = np.atleast_1d(np.asarray(data, np.float32))[:count]
    if table.size < count:
        raise ValueError(f"The table holds {table.size} of {count} entries.")
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)
    return table[index], table


def _read_window(dataset: "Dataset") -> tuple[float, float, str] | None:
    """Return centre, width and function of the first window, None where there is no usable one."""
    centre, width = (_read_number(dataset, name) for name in dicom_file.WINDOW_ELEMENTS)
    function = dicom_file.read_text(dataset, "VOILUTFunction") or "LINEAR"
    smallest = 1.0 if function == "LINEAR" else 0.0
    if centre is None or width is None or width <= smallest:
        return None
    return centre, width, function


def _read_number(dataset: "Dataset", name: str) -> float | None:
    """Return an element's first value, None where it is absent, empty or nonsense."""
    values = dicom_file.read_numbers(dataset, name)
    try:
        number = float(values[0])
    except (IndexError, TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < _LARGEST_NUMBER else None


def _apply_window(values: Values, centre: float, width: float, function: str) -> Values:
    """Apply a window (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values - centre) / width, -60, 60)
        return np.asarray(1 / (1 + np.exp(exponent)), np.float32)
    if function == "LINEAR_EXACT":
        return stretch(values, centre - width / 2, centre + width / 2)
    low = centre - 0.5 - (width - 1) / 2
    return stretch(values, low, low + width - 1)


def _guard(step: Callable[[], T], name: str) -> T:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return step()
    except Exception as error:  # a damaged table fails in many ways
        raise ImageError(f"The {name} of the DICOM file is damaged.") from error
