"""Map stored values to grey with a table that has an entry for every value a pixel can have.

    bits of the word -> modality LUT or rescale -> VOI LUT, window or range -> inversion -> grey
    (DICOM PS3.3 C.7.6.3.1, C.11.1, C.11.2 and PS3.4 N.2)

Each step maps one stored value to one grey. So only 256 or 65,536 values are computed instead of millions of pixels,
and the result is exactly the same.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from contract.errors import ImageError
from contract.image import dicom_file

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

WHITE: Final = 65535  # white in tables and pictures; black is 0
_LUMINANCE: Final = np.array([0.299, 0.587, 0.114], np.float32)  # weights of R, G and B, ITU-R BT.601
_LARGEST_NUMBER: Final = 1e9  # a larger window or rescale value is an error and would overflow float32
_LEAST_SLOPE: Final = 1 / _LARGEST_NUMBER

_STEEPEST: Final = 64.0  # slope of a ramp per stored value: the whole range in 1,024 values

_FEWEST_SHOWN: Final = 0.005  # share of the pixels; the same share that a percentile leaves out of a range
_LEAST_SHOWN: Final = 1 / 8  # of the grey range

T = TypeVar("T")
Values = NDArray[np.float32]


@dataclass(frozen=True)
class Grey:
    """An image, (rows, columns) uint8 or uint16, and its values for black and white."""

    values: NDArray[Any]
    black: float
    white: float


@dataclass(frozen=True)
class Ramp:
    """A table that is constant, then linear, then constant again.

    Attributes:
        start: First word of the slope.
        stop: Last word of the slope.
        black: Word at which the slope would reach black; it may lie outside the table.
        white: Word at which the slope would reach white.
    """

    start: int
    stop: int
    black: float
    white: float


def apply_modality(values: NDArray[np.int32], dataset: "Dataset") -> Values:
    """Apply the modality LUT or rescale slope and intercept (DICOM PS3.3 C.11.1)."""
    item = _find_table(dataset, "ModalityLUTSequence")
    if item is not None:
        return _guard(lambda: _apply_lut(values, dataset, item)[0], "modality LUT")
    slope = _read_number(dataset, "RescaleSlope")
    # Many CR files have an empty or invalid slope. A slope of 0 would erase the image.
    if slope is None or abs(slope) < _LEAST_SLOPE:
        return values.astype(np.float32)
    intercept = _read_number(dataset, "RescaleIntercept") or 0.0
    return values.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def list_displays(values: Values, dataset: "Dataset") -> Iterator[Values]:
    """Yield grey 0..1 by the file's VOI LUT and by its first window, if it has them (DICOM PS3.3 C.11.2)."""
    item = _find_table(dataset, "VOILUTSequence")
    if item is not None:
        grey, table = _guard(lambda: _apply_lut(values, dataset, item), "VOI LUT")
        # Use the table's actual range, because many tables use fewer bits than their descriptor states.
        yield stretch(grey, float(table.min()), float(table.max()))
    window = _read_window(dataset)
    if window is not None:
        yield _apply_window(values, *window)


def is_lost(shown: Values) -> bool:
    """Whether a window or table shows the image as all black or white, because it was written for other values.

    That is so if the image has only one grey, or if nearly all its pixels are close to black or close to white. For
    example, a window for 12 bits shows an image of 8 bits as black.
    """
    shares = ((shown >= _LEAST_SHOWN).mean(), (shown <= 1 - _LEAST_SHOWN).mean())
    return bool(not np.ptp(shown) > 0 or min(shares) < _FEWEST_SHOWN)


def is_inverted(dataset: "Dataset") -> bool:
    """Whether the smallest value of the image is shown white.

    MONOCHROME1 and Presentation LUT Shape INVERSE both mean this inversion. DX images state both (DICOM PS3.3
    C.8.11.3.1.2), and the inversion is applied once.
    """
    inverse = dicom_file.read_text(dataset, "PresentationLUTShape") == "INVERSE"
    return dicom_file.get_photometric(dataset) == "MONOCHROME1" or inverse


def pack_table(grey: Values, padding: NDArray[np.bool_], *, inverted: bool) -> NDArray[np.uint16]:
    """Return grey 0..1 as 0..WHITE, inverted if `inverted`, with black padding."""
    shown = 1 - grey if inverted else grey
    return np.where(padding, 0, np.rint(np.clip(shown, 0, 1) * WHITE)).astype(np.uint16)


def find_ramp(table: NDArray[np.uint16]) -> Ramp | None:
    """Return a table as a ramp; None if it is not a ramp or the ramp is too steep.

    With a ramp, clipping and averaging the stored values gives the same result as averaging the looked-up values, in a
    tenth of the time. Averages of stored values are whole numbers, so a steep ramp would give coarse greys. With this
    limit the error is at most a quarter of one of 256 levels.
    """
    moving = np.flatnonzero(np.diff(table.astype(np.int32)))
    if not moving.size:
        return None
    start, stop = int(moving[0]), int(moving[-1]) + 1
    slope = (int(table[stop]) - int(table[start])) / (stop - start)
    line = int(table[start]) + slope * np.arange(stop - start + 1)
    # The ends of a window are between two values.
    if not slope or abs(slope) > _STEEPEST or np.abs(line - table[start : stop + 1]).max() > 2 * _STEEPEST:
        return None
    black = start - int(table[start]) / slope
    return Ramp(start, stop, black, black + WHITE / slope)


def make_palette_table(dataset: "Dataset", values: NDArray[np.int32]) -> NDArray[np.uint16]:
    """Return the luminance of values of a palette image (DICOM PS3.3 C.7.6.3.1.5), of the same shape."""
    from pydicom.pixels.processing import apply_color_lut

    if "SegmentedRedPaletteColorLookupTableData" in dataset:  # a few bytes of it can expand without limit
        raise ImageError("The colour palette of the DICOM file is segmented, which is not supported.")
    colours = _guard(lambda: np.asarray(apply_color_lut(values, dataset)), "colour palette")[..., :3]
    if colours.shape[-1] != 3:  # pydicom does not report a missing table
        raise ImageError("The colour palette of the DICOM file is damaged.")
    return measure_luminance(colours, bits=8 * colours.itemsize)


def measure_luminance(colours: NDArray[Any], *, bits: int) -> NDArray[np.uint16]:
    """Turn RGB, (..., 3) of `bits` bits, into luminance 0..WHITE, (...)."""
    weights = _LUMINANCE * np.float32(WHITE / (2**bits - 1))
    grey = sum(colours[..., channel] * weight for channel, weight in enumerate(weights))
    return np.asarray(np.rint(np.clip(grey, 0, WHITE))).astype(np.uint16)


def stretch(values: Values, low: float, high: float) -> Values:
    """Return 0 at `low` and below, 1 at `high` and above, linear between."""
    scale = max(high - low, 1e-6)
    return np.clip((values - np.float32(low)) / np.float32(scale), 0, 1)


def _find_table(dataset: "Dataset", sequence: str) -> "Dataset | None":
    """Return the first item of a sequence that holds a table; None without one.

    An item with empty data, or with an empty or all-zero descriptor, holds no table.
    """
    items = dataset.get(sequence) or ()
    return _guard(lambda: next((item for item in items if _holds_table(item)), None), "table")


def _holds_table(item: "Dataset") -> bool:
    parts = (
        item.get(name) for name in ("LUTDescriptor", "LUTData")
    )  # reading the data may fail if the descriptor is empty
    return all(part is not None and part not in ("", [0, 0, 0]) for part in parts)


def _apply_lut(values: NDArray[Any], dataset: "Dataset", item: "Dataset") -> tuple[Values, Values]:
    """Look values up in a table (DICOM PS3.3 C.11.1.1.1); return them and the table."""
    count, first, _ = (int(float(number)) for number in item.LUTDescriptor)
    count = count or 2**16
    if first > 2**15 and values.min() < 0:  # a negative start that was written as unsigned
        first -= 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        words = len(data) > count + 1  # otherwise packed 8 bit entries, of even length
        big = dataset.original_encoding[1] is False
        data = np.frombuffer(data, np.dtype("u1") if not words else np.dtype(">u2" if big else "<u2"))
    table = np.atleast_1d(np.asarray(data, np.float32))[:count]
    if table.size < count:
        raise ValueError(f"The table holds {table.size} of {count} entries.")
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)
    return table[index], table


def _read_window(dataset: "Dataset") -> tuple[float, float, str] | None:
    """Return centre, width and function of the first usable window; None without one."""
    centres, widths = (dicom_file.read_numbers(dataset, name) for name in dicom_file.WINDOW_ELEMENTS)
    function = dicom_file.read_text(dataset, "VOILUTFunction") or "LINEAR"
    smallest = 1.0 if function == "LINEAR" else 0.0
    for numbers in zip(centres, widths, strict=False):
        centre, width = map(_convert_number, numbers)
        if centre is not None and width is not None and width > smallest:
            return centre, width, function
    return None


def _read_number(dataset: "Dataset", name: str) -> float | None:
    """Return an element's first value; None if it is absent, empty or invalid."""
    values = dicom_file.read_numbers(dataset, name)
    return _convert_number(values[0]) if values else None


def _convert_number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
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
