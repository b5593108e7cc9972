"""The modality LUT and the VOI LUT of a DICOM data set -> `contract.image.record.LookupTable`."""

import warnings
from typing import TYPE_CHECKING

import numpy as np

from contract.errors import ImageError
from contract.image.elements import LARGEST_NUMBER, Elements
from contract.image.record import LookupTable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def read_table(elements: Elements, sequence: str, kind: str) -> LookupTable | None:
    """Return the first table of a sequence; None without one.

    An item with empty data, or with an empty or all-zero descriptor, holds no table.

    Args:
        elements: The elements of the file.
        sequence: Keyword of the sequence.
        kind: What an error calls the table.

    Raises:
        ImageError: The table is damaged.
    """
    what = "table"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            items = elements.get(sequence) or ()
            item = next((item for item in items if _holds_table(item)), None)
            what = kind
            big = elements.dataset.original_encoding[1] is False
            return None if item is None else _make_table(item, big=big)
    except Exception as error:  # a damaged table fails in many ways
        raise ImageError(f"The {what} of the DICOM file is damaged.") from error


def _holds_table(item: "Dataset") -> bool:
    # Reading the data may fail if the descriptor is empty, so the descriptor comes first.
    parts = (item.get(name) for name in ("LUTDescriptor", "LUTData"))
    return all(part is not None and part not in ("", [0, 0, 0]) for part in parts)


def _make_table(item: "Dataset", *, big: bool) -> LookupTable:
    count, first, _ = (int(float(number)) for number in item.LUTDescriptor)
    count = count or 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        words = len(data) > count + 1  # otherwise packed 8 bit entries, of even length
        data = np.frombuffer(data, np.dtype("u1") if not words else np.dtype(">u2" if big else "<u2"))
    entries = np.atleast_1d(np.asarray(data, np.float32))[:count]
    if not 0 < count <= entries.size:
        raise ValueError(f"The table holds {entries.size} of {count} entries.")
    if not (np.abs(entries) < LARGEST_NUMBER).all():
        raise ValueError("An entry of the table is not a usable number.")
    return LookupTable(int(np.int64(first)), entries)
