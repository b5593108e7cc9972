"""The words of the pixel data -> stored values within Bits Stored, for every word a pixel can have.

Words may hold more than Bits Stored says: overlays stood in the bits beside the value once, and lossy or wide streams
run beyond its range. Where the file declares overlays in those bits, they are masked. Where it does not, such a word is
a value that is too large (or too small), and becomes the end of the range: masked, saturated white would turn black.
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
_FEWEST_STEPS: Final = 8  # between neighbours, to tell how negative values are stored
_CLEAR_SHARE: Final = 0.75

Table = NDArray[np.int32]


@dataclass(frozen=True)
class StoredValues:
    """What each word of an image stores.

    Attributes:
        values: (256,) or (65536,) int32, in the range of Bits Stored.
        padding: Of the same length: which words are no image.
        bits: Bits Stored.
        clipped: Whether a pixel that is no padding lies beyond the range.
    """

    values: Table
    padding: NDArray[np.bool_]
    bits: int
    clipped: bool = False


def read_values(dataset: "Dataset", words: NDArray[Any]) -> StoredValues:
    """Return what the words of an image store (DICOM PS3.5 8.1.1).

    Args:
        dataset: A checked data set.
        words: Its pixels as they are stored, uint8 or uint16.
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
    """Return Bits Stored and High Bit; an impossible High Bit is left out."""
    allocated = int(dataset.BitsAllocated)
    bits = int(dataset.get("BitsStored") or 0) or allocated
    high = dataset.get("HighBit")
    usable = isinstance(high, int) and bits <= high + 1 <= allocated
    return bits, int(high) if usable else bits - 1


def _has_wide_words(dataset: "Dataset", words: NDArray[Any], bits: int, high: int) -> bool:
    """Whether words of the image say more than the bits of the value do.

    Negative values are stored with their sign in all higher bits, or in the stored bits alone. The first shows itself;
    where there is no negative value, a large one may be either: the way in which the image is smoother is right.
    """
    if high + 1 == 8 * words.itemsize:
        return False
    if int(words.max()) >> (high + 1):
        return True
    if not int(dataset.PixelRepresentation):
        return False
    return _crosses_sign_bit(words >> (high + 1 - bits), 2 ** (bits - 1))


def _crosses_sign_bit(values: NDArray[Any], half: int) -> bool:
    """Whether neighbours pass from below `half` to above it in small steps, so that it is no sign."""
    step = -(-max(values.shape) // SAMPLE_SIDE)
    steps = []
    for lines in (values[::step], values[:, ::step].T):  # rows, columns
        numbers = lines.astype(np.int32)
        crossing = (numbers[:, 1:] >= half) != (numbers[:, :-1] >= half)
        steps.append(np.abs(np.diff(numbers))[crossing])
    small = np.concatenate(steps) < half
    return bool(small.size >= _FEWEST_STEPS and small.mean() > _CLEAR_SHARE)


def _declares_overlay_bits(dataset: "Dataset", high: int) -> bool:
    """Whether an overlay stands in the bits above the value: Overlay Bit Position, retired (DICOM PS3.3 C.9.2)."""
    order: Literal["little", "big"] = "little" if dataset.original_encoding[1] else "big"
    for group in _OVERLAY_GROUPS:
        element = dataset.get_item((group, _OVERLAY_BIT_POSITION))
        value = getattr(element, "value", None)  # as read: a hostile one would take long to convert
        position = int.from_bytes(value, order) if isinstance(value, bytes) and len(value) == 2 else value
        if isinstance(position, int) and high < position < int(dataset.BitsAllocated):
            return True
    return False


def _find_padding(values: Table, dataset: "Dataset") -> NDArray[np.bool_]:
    """Mark values that are no image: Pixel Padding Value and its range limit (DICOM PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(values.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    ends_words = [value & 0xFFFF, (limit if isinstance(limit, int) else value) & 0xFFFF]
    # Signed images whose padding was written as unsigned are common: 63536 means -2000.
    ends = np.array(ends_words, np.uint16).view(np.int16 if int(dataset.PixelRepresentation) else np.uint16)
    return np.asarray((values >= ends.min()) & (values <= ends.max()))


def describe_clipping(stored: StoredValues) -> str:
    """Return the warning of an image whose values were clipped."""
    return (
        f"Some pixels lie beyond the {stored.bits} bit{'s' * (stored.bits > 1)} that the file says it stores; "
        "they were read as the end of that range."
    )
