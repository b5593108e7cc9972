"""Mutations of DICOM files that keep the structure of their elements, which blind ones mostly break."""

import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

Blind = Callable[[bytes, int], bytes]  # (data, greatest size) -> data; libFuzzer's own mutation

LONG_VRS: Final = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
SHORT_VRS: Final = (b"US", b"SS", b"DS", b"IS", b"CS", b"LO", b"UI", b"PN", b"DA", b"FL", b"AT", b"ZZ")
_SYNTAXES: Final = (
    *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"),
    *("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.8.1", "1.2.840.10008.1.2.4.100", "1.2.3"),
    *(f"1.2.840.10008.1.2.4.{end}" for end in (50, 51, 57, 70, 80, 81, 90, 91, 92, 201, 202, 203)),
)
COUNTS: Final = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    9,
    12,
    15,
    16,
    17,
    32,
    39,
    41,
    255,
    256,
    4095,
    8000,
    32767,
    32768,
    65535,
)
_LENGTHS: Final = (0, 1, 2, 3, 7, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
_WORDS: Final = (
    *(
        b"",
        b" ",
        b"0",
        b"1",
        b"-1",
        b"1e38",
        b"1e999",
        b"-1e-300",
        b"nan",
        b"inf",
        b"2\\3",
        b"\\",
        b"1,5",
        b"\0\0",
    ),
    *(
        b"MONOCHROME1",
        b"MONOCHROME2",
        b"PALETTE COLOR",
        b"RGB",
        b"YBR_FULL",
        b"YBR_FULL_422",
        b"YBR_ICT",
        b"YBR_RCT",
    ),
    *(
        b"LINEAR",
        b"SIGMOID",
        b"LINEAR_EXACT",
        b"INVERSE",
        b"CR",
        b"CT",
        b"LL",
        b"PA",
        b"ISO_IR 192",
        b"\\ISO 2022 IR 87",
    ),
)
# Tags worth adding where they are missing: (group, element, value representation).
_TAGS: Final = (
    *(
        (0x28, 0x08, b"IS"),
        (0x28, 0x34, b"IS"),
        (0x28, 0x0120, b"US"),
        (0x28, 0x0121, b"US"),
        (0x28, 0x06, b"US"),
    ),
    *((0x28, 0x1050, b"DS"), (0x28, 0x1051, b"DS"), (0x28, 0x1052, b"DS"), (0x28, 0x1053, b"DS")),
    *((0x28, 0x1056, b"CS"), (0x28, 0x3000, b"SQ"), (0x28, 0x3010, b"SQ"), (0x2050, 0x20, b"CS")),
    *((0x28, 0x1101, b"US"), (0x28, 0x1201, b"OW"), (0x28, 0x1221, b"OW"), (0x7FE0, 0x08, b"OF")),
    *(
        (0x18, 0x1600, b"CS"),
        (0x18, 0x1602, b"IS"),
        (0x18, 0x1604, b"IS"),
        (0x18, 0x1606, b"IS"),
        (0x18, 0x1608, b"IS"),
    ),
    *(
        (0x18, 0x1610, b"IS"),
        (0x18, 0x1612, b"IS"),
        (0x18, 0x1620, b"IS"),
        (0x18, 0x1700, b"CS"),
        (0x54, 0x0220, b"SQ"),
    ),
    *((0x08, 0x05, b"CS"), (0x18, 0x5101, b"CS"), (0x28, 0x0A02, b"CS"), (0x7FE0, 0x01, b"OV")),
)


@dataclass(frozen=True)
class Element:
    """One data element of the top level, where it stands in the data."""

    tag: tuple[int, int]
    vr: bytes
    start: int
    value: int
    end: int


def find_elements(data: bytes, start: int, *, explicit: bool, big: bool = False) -> list[Element]:
    """Find the elements of the top level from `start` on, up to the first that does not fit.

    An element of undefined length is taken to reach to the end of the data.
    """
    order, found = ">" if big else "<", []
    while start + 8 <= len(data):
        tag, vr, value = struct.unpack_from(order + "HH", data, start), b"", start + 8
        if explicit or tag[0] == 2:
            vr = data[start + 4 : start + 6]
            if vr in LONG_VRS:
                value = start + 12
                if value > len(data):
                    break
                (length,) = struct.unpack_from(order + "I", data, start + 8)
            else:
                (length,) = struct.unpack_from(order + "H", data, start + 6)
        else:
            (length,) = struct.unpack_from(order + "I", data, start + 4)
        end = len(data) if length == 2**32 - 1 else value + length
        if end > len(data):
            break
        found.append(Element(tag, vr, start, value, end))
        start = end
    return found


def find_layout(data: bytes) -> tuple[list[Element], bool]:
    """Return the elements of a DICOM file and whether they are big endian."""
    start = 132 if data[128:132] == b"DICM" else 0
    meta = [element for element in find_elements(data, start, explicit=True) if element.tag[0] == 2]
    start = meta[-1].end if meta else start
    named = [data[element.value : element.end].rstrip(b"\0") for element in meta if element.tag[1] == 0x10]
    big = named == [b"1.2.840.10008.1.2.2"] or (not meta and data[:1] == b"\0")
    explicit = data[start + 4 : start + 6].isalpha() and data[start + 4 : start + 6].isupper()
    return meta + find_elements(data, start, explicit=explicit, big=big), big


def mutate_dicom(data: bytes, max_size: int, chance: random.Random, blind: Blind) -> bytes:
    """Change one thing of a DICOM file, mostly an element of its data set, deflated or not; other files blindly."""
    deflated = _find_deflated(data)
    if not deflated or chance.random() < 0.2:
        return _mutate_elements(data, max_size, chance, blind)
    inner = _mutate_elements(_inflate(data[deflated:]), 4 * max_size, chance, blind, meta=False)
    compressor = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return data[:deflated] + compressor.compress(inner) + compressor.flush()


def _find_deflated(data: bytes) -> int:
    """Return where the deflated data set starts, 0 where there is none."""
    if b"1.2.840.10008.1.2.1.99" not in data[:400]:
        return 0
    meta = [element for element in find_elements(data, 132, explicit=True) if element.tag[0] == 2]
    return meta[-1].end if meta else 0


def _inflate(data: bytes) -> bytes:
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, 2**20)
    except zlib.error:
        return data


def _mutate_elements(
    data: bytes, max_size: int, chance: random.Random, blind: Blind, *, meta: bool = True
) -> bytes:
    elements, big = find_layout(data) if meta else (find_elements(data, 0, explicit=True), False)
    if len(elements) < 3 or chance.random() < 0.1:
        return blind(data, max_size)
    element = chance.choice(elements)
    if elements[-1].tag == (0x7FE0, 0x10) and chance.random() < 0.35:
        element = elements[-1]  # the decoders are worth more than one element's share
    change = chance.choice((_set_value, _set_value, _set_value, _set_length, _set_vr, _drop, _copy, _add))
    if element.end - element.value > 256:
        change = chance.choice((damage, damage, damage, cut_out, _set_length, _set_vr, replace_blindly))
    return change(data, element, chance, blind, ">" if big else "<")


def _set_value(data: bytes, element: Element, chance: random.Random, blind: Blind, order: str) -> bytes:
    """Put a telling value in place of the element's and keep its length field right."""
    if element.tag == (2, 0x10):
        value = chance.choice(_SYNTAXES).encode()
    elif element.vr in {b"US", b"SS"} or (not element.vr and element.end - element.value == 2):
        value = struct.pack(
            order + "H", chance.choice(COUNTS) if chance.random() < 0.8 else chance.randrange(2**16)
        )
        value *= chance.choice((1, 1, 1, 1, 2, 3))
    elif chance.random() < 0.6:
        value = chance.choice(_WORDS)
    else:
        value = blind(data[element.value : element.end] or b"1", 64)
    return _put(data, element, value + b" " * (len(value) % 2), order)


def _put(data: bytes, element: Element, value: bytes, order: str) -> bytes:
    header = data[element.start : element.value]
    size = len(header) - 6 if len(header) == 8 and element.vr else len(header) - 4 if len(header) == 8 else 4
    size, code = (2, "H") if element.vr and len(header) == 8 else (4, "I")
    length = struct.pack(order + code, min(len(value), 2 ** (8 * size) - 1))
    return data[: element.value - size] + length + value + data[element.end :]


def _set_length(data: bytes, element: Element, chance: random.Random, blind: Blind, order: str) -> bytes:
    size = 2 if element.vr and element.value - element.start == 8 else 4
    length = chance.choice(_LENGTHS) % 2 ** (8 * size)
    packed = struct.pack(order + ("H" if size == 2 else "I"), length)
    return data[: element.value - size] + packed + data[element.value :]


def _set_vr(data: bytes, element: Element, chance: random.Random, blind: Blind, order: str) -> bytes:
    vrs = LONG_VRS if element.value - element.start == 12 else SHORT_VRS
    return data[: element.start + 4] + chance.choice(vrs) + data[element.start + 6 :]


def _drop(data: bytes, element: Element, chance: random.Random, blind: Blind, order: str) -> bytes:
    return data[: element.start] + data[element.end :]


def _copy(data: bytes, element: Element, chance: random.Random, blind: Blind, order: str) -> bytes:
    return data[: element.end] + data[element.start :]


def _add(data: bytes, element: Element, chance: random.Random, blind: Blind, order: str) -> bytes:
    group, number, vr = chance.choice(_TAGS)
    value = (
        chance.choice(_WORDS)
        if vr in {b"CS", b"DS", b"IS"}
        else struct.pack("<4H", *chance.choices(COUNTS, k=4))
    )
    if vr == b"SQ":  # one item that holds a descriptor, and sometimes a table
        table = struct.pack("<HH2sH3H", 0x28, 0x3002, b"US", 6, *chance.choices(COUNTS, k=3))
        table += struct.pack("<HH2sHI4H", 0x28, 0x3006, b"OW", 0, 8, *chance.choices(COUNTS, k=4))
        value = struct.pack("<HHI", 0xFFFE, 0xE000, len(table)) + table
    value += b" " * (len(value) % 2)
    head = struct.pack(order + "HH", group, number) + vr
    head += struct.pack(order + "xxI", len(value)) if vr in LONG_VRS else struct.pack(order + "H", len(value))
    if not element.vr:
        head = struct.pack(order + "HHI", group, number, len(value))
    return data[: element.start] + head + value + data[element.start :]


def damage(data: bytes, element: Element, chance: random.Random, blind: Blind, order: str) -> bytes:
    """Change a few bytes of a long value, mostly near its start, where streams hold their headers."""
    changed, length = bytearray(data), element.end - element.value
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        reach = min(length, chance.choice((16, 64, 128, 256, 512, length)))
        at = element.value + chance.randrange(reach)
        changed[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, changed[at] ^ 1 << chance.randrange(8)))
    return bytes(changed)


def cut_out(data: bytes, element: Element, chance: random.Random, blind: Blind, order: str) -> bytes:
    """Take a piece out of a long value or repeat it."""
    first, last = sorted(chance.randrange(element.value, element.end) for _ in range(2))
    piece = chance.choice((b"", b"", data[first:last] * 2, bytes(last - first)))
    return data[:first] + piece + data[last:]


def replace_blindly(data: bytes, element: Element, chance: random.Random, blind: Blind, order: str) -> bytes:
    value = blind(data[element.value : element.end], 2 * (element.end - element.value))
    return data[: element.value] + value + data[element.end :]
