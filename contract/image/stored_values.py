"""Map every possible word of the pixel data to its stored value within Bits Stored.

A word may use more bits than Bits Stored: older files keep overlays in the other bits, and lossy or wide streams exceed
the range. If the file declares overlays in those bits, the bits are masked. Otherwise the value is too large (or too
small) and is clipped to the range, because masking would turn saturated white into black.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from contract.image.field import SAMPLE_SIDE

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_OVERLAY_GROUPS: Final = range(0x6000, 0x6020, 2)
_OVERLAY_BIT_POSITION: Final = 0x0102
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


def read_values(dataset: "Dataset", words: NDArray[Any]) -> StoredValues:
    """Return the stored values of the words of an image (DICOM PS3.5 8.1.1).

    Args:
        dataset: A checked data set.
        words: Its pixels as stored, uint8 or uint16.
    """
    bits, high = _read_bits(dataset)
    signed = bool(int(dataset.PixelRepresentation))
    shift = high + 1 - bits
    every = np.arange(2 ** (8 * words.itemsize), dtype=np.int32)
    values = (every >> shift) & (2**bits - 1)
    if signed:  # two's complement
        values -= (values >> (bits - 1)) << bits
    beyond = _has_wide_words(dataset, words, bits, high)
    if not beyond or _declares_overlay_bits(dataset, high):
        return StoredValues(values, _find_padding(values, dataset), bits)
    wide = every.astype(f"i{words.itemsize}").astype(np.int32) if signed else every
    wide = wide >> shift
    low = -(2 ** (bits - 1)) if signed else 0
    values = np.clip(wide, low, low + 2**bits - 1)
    padding = _find_padding(values, dataset) | _find_padding(wide, dataset)
    outside = (values != wide) & ~padding
    return StoredValues(values, padding, bits, clipped=bool(outside[words].any()))


def _read_bits(dataset: "Dataset") -> tuple[int, int]:
    """Return Bits Stored and High Bit. An impossible High Bit is replaced by the usual one."""
    allocated = int(dataset.BitsAllocated)
    bits = int(dataset.get("BitsStored") or 0) or allocated
    high = dataset.get("HighBit")
    usable = isinstance(high, int) and bits <= high + 1 <= allocated
    return bits, int(high) if usable else bits - 1


def _has_wide_words(dataset: "Dataset", words: NDArray[Any], bits: int, high: int) -> bool:
    """Whether the values use the whole word instead of only the stored bits.

    A negative value has its sign in all higher bits, or only in the stored bits. A word with higher bits shows the
    first case. Without such a word, a large value is ambiguous, and the reading with the smoother image is taken.
    """
    if high + 1 == 8 * words.itemsize:
        return False
    if int(words.max()) >> (high + 1):
        return True
    if not int(dataset.PixelRepresentation):
        return False
    return _crosses_sign_bit(words >> (high + 1 - bits), 2 ** (bits - 1))


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


def _declares_overlay_bits(dataset: "Dataset", high: int) -> bool:
    """Whether an overlay uses the bits above the value: Overlay Bit Position, retired (DICOM PS3.3 C.9.2)."""
    order: Literal["little", "big"] = "little" if dataset.original_encoding[1] else "big"
    for group in _OVERLAY_GROUPS:
        element = dataset.get_item((group, _OVERLAY_BIT_POSITION))
        value = getattr(element, "value", None)  # the raw value: converting a malicious one takes long
        position = int.from_bytes(value, order) if isinstance(value, bytes) and len(value) == 2 else value
        if isinstance(position, int) and high < position < int(dataset.BitsAllocated):
            return True
    return False


def _find_padding(values: Table, dataset: "Dataset") -> NDArray[np.bool_]:
    """Mark padding values: Pixel Padding Value and its range limit (DICOM PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(values.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    ends_words = [value & 0xFFFF, (limit if isinstance(limit, int) else value) & 0xFFFF]
    # Signed images often have a padding value that was written as unsigned: 63536 means -2000.
    ends = np.array(ends_words, np.uint16).view(np.int16 if int(dataset.PixelRepresentation) else np.uint16)
    return np.asarray((values >= ends.min()) & (values <= ends.max()))


def describe_clipping(stored: StoredValues) -> str:
    """Return the warning for an image with clipped values."""
    return (
        f"Some pixels exceed the {stored.bits} bit{'s' * (stored.bits > 1)} that the file states. "
        "They were clipped to that range."
    )
