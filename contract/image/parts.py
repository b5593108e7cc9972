"""Bound the number of parts of a PNG or JPEG file, because Pillow reads each one in Python and keeps it in memory.

A PNG file consists of chunks (PNG 5.3). A JPEG file consists of segments up to its scan (ISO/IEC 10918-1 B.1.1). Both
may be empty, so a file of the largest size that is read could hold 60 million of them.
"""

import struct
from typing import Final

from contract.errors import ImageError

_MOST_PARTS: Final = 50_000  # libpng writes chunks of 8 kB: 400 MB of compressed pixels
_SCAN: Final = 0xDA  # SOS
_STANDALONE: Final = frozenset(
    {0x00, 0x01, 0xFF, *range(0xD0, 0xDA)}
)  # without a length: TEM, RST, SOI, EOI, filling


def check_parts(data: bytes) -> None:
    """Raise ImageError if a PNG or JPEG file has more than `_MOST_PARTS` parts.

    Args:
        data: The start of a PNG or JPEG file, or all of it. It need not be intact.
    """
    has_too_many = _has_too_many_chunks if data.startswith(b"\x89PNG") else _has_too_many_segments
    if has_too_many(data):
        raise ImageError("The PNG or JPEG image has too many parts for a radiograph.")


def _has_too_many_chunks(data: bytes) -> bool:
    at = 8  # after the signature
    for _ in range(_MOST_PARTS):
        if at + 4 > len(data):
            return False
        at += 12 + int(struct.unpack_from(">I", data, at)[0])  # length, type, data and checksum
    return True


def _has_too_many_segments(data: bytes) -> bool:
    """Whether there are too many segments and single bytes between them. Pillow skips these, one at a time."""
    at, parts = 2, 0  # after SOI
    while parts <= _MOST_PARTS:
        start = data.find(b"\xff", at)
        if start < 0:
            return parts + len(data) - at > _MOST_PARTS
        parts += 1 + start - at
        if start + 4 > len(data) or data[start + 1] == _SCAN:
            return parts > _MOST_PARTS
        if data[start + 1] in _STANDALONE:
            at = start + 1
        else:
            at = start + 2 + int(struct.unpack_from(">H", data, start + 2)[0])
    return True
