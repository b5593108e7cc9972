"""Map every possible word of the pixel data to its stored value within Bits Stored.

A word may use more bits than Bits Stored: older files keep overlays in the other bits, and lossy or wide streams exceed
the range. If the file declares overlays in those bits, the bits are masked. Otherwise the value is too large (or too
small) and is clipped to the range, because masking would turn saturated white into black.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.image.field import SAMPLE_SIDE
from contract.image.record import DicomImage

_FEWEST_STEPS: Final = 8  # steps between neighbours that are needed to decide how negative values are stored
_CLEAR_SHARE: Final = 0.75

Table = NDArray[np.int32]


@dataclass(frozen=True)
class StoredValues:
    """The stored value of each word of an image.

    Attributes:
        values: (256,) or (65536,) int32, in the range of Bits Stored.
        padding: Bool of the same length: whether the word is padding, not image.
        bits: Bits Stored.
        clipped: Whether a pixel that is not padding exceeds the range.
    """

    values: Table
    padding: NDArray[np.bool_]
    bits: int
    clipped: bool = False


def read_values(image: DicomImage, words: NDArray[Any]) -> StoredValues:
    """Return the stored values of the words of an image (DICOM PS3.5 8.1.1).

    Args:
        image: A checked image.
        words: Its pixels as stored, uint8 or uint16.
    """
    bits, high, signed = image.bits, _choose_high_bit(image), bool(image.representation)
    shift = high + 1 - bits
    every = np.arange(2 ** (8 * words.itemsize), dtype=np.int32)
    values = (every >> shift) & (2**bits - 1)
    if signed:  # two's complement
        values -= (values >> (bits - 1)) << bits
    has_overlays = any(high < position < image.allocated for position in image.overlay_bits)
    if has_overlays or not _has_wide_words(words, bits, high, signed=signed):
        return StoredValues(values, _find_padding(values, image), bits)
    wide = every.astype(f"i{words.itemsize}").astype(np.int32) if signed else every
    wide = wide >> shift
    low = -(2 ** (bits - 1)) if signed else 0
    values = np.clip(wide, low, low + 2**bits - 1)
    padding = _find_padding(values, image) | _find_padding(wide, image)
    outside = (values != wide) & ~padding
    return StoredValues(values, padding, bits, clipped=bool(outside[words].any()))


def _choose_high_bit(image: DicomImage) -> int:
    """Return High Bit. A missing or impossible one is replaced by the usual one."""
    high = image.high_bit
    return high if high is not None and image.bits <= high + 1 <= image.allocated else image.bits - 1


def _has_wide_words(words: NDArray[Any], bits: int, high: int, *, signed: bool) -> bool:
    """Whether the values use the whole word instead of only the stored bits.

    A negative value has its sign in all higher bits, or only in the stored bits. A word with higher bits shows the
    first case. Without such a word, a large value is ambiguous, and the reading with the smoother image is taken.
    """
    if high + 1 == 8 * words.itemsize:
        return False
    if int(words.max()) >> (high + 1):
        return True
    return signed and _crosses_sign_bit(words >> (high + 1 - bits), 2 ** (bits - 1))


def _crosses_sign_bit(values: NDArray[Any], half: int) -> bool:
    """Whether neighbouring values cross `half` in small steps, which shows that the top bit is not a sign."""
    step = -(-max(values.shape) // SAMPLE_SIDE)
    steps = []
    for lines in (values[::step], values[:, ::step].T):  # rows, columns
        numbers = lines.astype(np.int32)
        crossing = (numbers[:, 1:] >= half) != (numbers[:, :-1] >= half)
        steps.append(np.abs(np.diff(numbers))[crossing])
    small = np.concatenate(steps) < half
    return bool(small.size >= _FEWEST_STEPS and small.mean() > _CLEAR_SHARE)


def _find_padding(values: Table, image: DicomImage) -> NDArray[np.bool_]:
    """Mark padding values: Pixel Padding Value and its range limit (DICOM PS3.3 C.7.5.1.1.2)."""
    if image.padding is None:
        return np.zeros(values.shape, bool)
    # Signed images often have a padding value that was written as unsigned: 63536 means -2000.
    words = np.array([value & 0xFFFF for value in image.padding], np.uint16)
    ends = words.view(np.int16 if image.representation else np.uint16)
    return np.asarray((values >= ends.min()) & (values <= ends.max()))


def describe_clipping(stored: StoredValues) -> str:
    """Return the warning for an image with clipped values."""
    return (
        f"Some pixels exceed the {stored.bits} bit{'s' * (stored.bits > 1)} that the file states. "
        "They were clipped to that range."
    )
