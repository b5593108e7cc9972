"""Map stored values to grey with a table that has an entry for every value a pixel can have.

    bits of the word -> modality LUT or rescale -> inversion -> VOI LUT, window or range -> grey
    (DICOM PS3.3 C.7.6.3.1, C.11.1, C.11.2 and PS3.4 N.2)

Each step maps one stored value to one grey. So only 256 or 65,536 values are computed instead of millions of pixels,
and the result is exactly the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.image.record import DicomImage, LookupTable, VoiFunction

WHITE: Final = 65535  # white in tables and pictures; black is 0
_LUMINANCE: Final = np.array([0.299, 0.587, 0.114], np.float32)  # weights of R, G and B, ITU-R BT.601
_LEAST_SLOPE: Final = 1e-9  # a smaller rescale slope is an error
_STEEPEST: Final = 64.0  # slope of a ramp per stored value: the whole range in 1,024 values
_FEWEST_SHOWN: Final = 0.005  # share of the pixels; the same share that a percentile leaves out of a range
_LEAST_SHOWN: Final = 1 / 8  # of the grey range

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


def apply_modality(values: NDArray[np.int32], image: DicomImage) -> Values:
    """Apply the modality LUT or rescale slope and intercept (DICOM PS3.3 C.11.1)."""
    if image.modality_lut is not None:
        return _apply_lut(values, image.modality_lut)
    # Many CR files have an empty or invalid slope. A slope of 0 would erase the image.
    if image.slope is None or abs(image.slope) < _LEAST_SLOPE:
        return values.astype(np.float32)
    return values.astype(np.float32) * np.float32(image.slope) + np.float32(image.intercept or 0.0)


def list_displays(values: Values, image: DicomImage) -> Iterator[Values]:
    """Yield grey 0..1 by the file's VOI LUT and by its first usable window, if it has them (DICOM PS3.3 C.11.2).

    0 is black, also in an inverted image.
    """
    inverted = is_inverted(image)
    if image.voi_lut is not None:
        entries = image.voi_lut.entries
        # Use the table's actual range, because many tables use fewer bits than their descriptor states.
        low, high = float(entries.min()), float(entries.max())
        found = _apply_lut(values, image.voi_lut)
        yield stretch(low + high - found if inverted else found, low, high)
    smallest = 1.0 if image.function == "LINEAR" else 0.0
    for centre, width in image.windows:
        if centre is not None and width is not None and width > smallest:
            middle = centre
            if inverted:
                ends = float(values.min()) + float(values.max())
                middle = ends - centre + (0 if image.function in {"LINEAR_EXACT", "SIGMOID"} else 1)
                values = mirror_values(values)
            yield _apply_window(values, middle, width, image.function)
            return


def mirror_values(values: Values) -> Values:
    """Return the values of an inverted image mirrored in their range, so that the smallest one is black.

    Both polarities then take the same path, and no rounding can tell them apart: for whole numbers these are exactly
    the values that the image would have with the other polarity. A linear window shows v as
    (v - (c - 0.5)) / (w - 1) + 0.5, so the centre of the mirrored one is low + high + 1 - c.

    Args:
        values: Value of each word, with both ends of the range.
    """
    mirrored: Values = values.min() + values.max() - values
    return mirrored


def mirror_words(
    words: NDArray[Any], table: NDArray[np.uint16], bits: int
) -> tuple[NDArray[Any], NDArray[np.uint16]]:
    """Return the words of an inverted image as those of the other polarity, and their table.

    Averages of words are rounded to whole numbers, and halves to even ones. So averages of both polarities would differ
    by rounding.

    Args:
        words: uint8 or uint16.
        table: Grey of each word, as in `pack_table`.
        bits: Bits Stored.
    """
    top = 2**bits - 1
    if int(words.max()) > top:
        top = len(table) - 1
    return words.dtype.type(top) - words, table[: top + 1][::-1]


def is_lost(shown: Values) -> bool:
    """Whether a window or table shows the image as all black or white, because it was written for other values.

    That is so if the image has only one grey, or if nearly all its pixels are close to black or close to white. For
    example, a window for 12 bits shows an image of 8 bits as black.
    """
    shares = ((shown >= _LEAST_SHOWN).mean(), (shown <= 1 - _LEAST_SHOWN).mean())
    return bool(not np.ptp(shown) > 0 or min(shares) < _FEWEST_SHOWN)


def is_inverted(image: DicomImage) -> bool:
    """Whether the smallest value of the image is shown white.

    MONOCHROME1 and Presentation LUT Shape INVERSE both mean this inversion. DX images state both (DICOM PS3.3
    C.8.11.3.1.2), and the inversion is applied once.
    """
    return image.photometric == "MONOCHROME1" or image.inverse


def pack_table(grey: Values, padding: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Return grey 0..1 as 0..WHITE, with black padding."""
    return np.where(padding, 0, np.rint(np.clip(grey, 0, 1) * WHITE)).astype(np.uint16)


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


def measure_luminance(colours: NDArray[Any], *, bits: int) -> NDArray[np.uint16]:
    """Turn RGB, (..., 3) of `bits` bits, into luminance 0..WHITE, (...)."""
    weights = _LUMINANCE * np.float32(WHITE / (2**bits - 1))
    grey = sum(colours[..., channel] * weight for channel, weight in enumerate(weights))
    return np.asarray(np.rint(np.clip(grey, 0, WHITE))).astype(np.uint16)


def stretch(values: Values, low: float, high: float) -> Values:
    """Return 0 at `low` and below, 1 at `high` and above, linear between."""
    scale = max(high - low, 1e-6)
    return np.clip((values - np.float32(low)) / np.float32(scale), 0, 1)


def _apply_lut(values: NDArray[Any], table: LookupTable) -> Values:
    """Look values up in a table (DICOM PS3.3 C.11.1.1.1)."""
    first = table.first
    if first > 2**15 and values.min() < 0:  # a negative start that was written as unsigned
        first -= 2**16
    index = np.rint(values).astype(np.int64) - first
    found: Values = np.take(table.entries, index, mode="clip")
    return found


def _apply_window(values: Values, centre: float, width: float, function: VoiFunction) -> Values:
    """Apply a window (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values - centre) / width, -60, 60)
        return np.asarray(1 / (1 + np.exp(exponent)), np.float32)
    if function == "LINEAR_EXACT":
        return stretch(values, centre - width / 2, centre + width / 2)
    low = centre - 0.5 - (width - 1) / 2
    return stretch(values, low, low + width - 1)
