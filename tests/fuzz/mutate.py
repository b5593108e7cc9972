"""Mutations that know the form of a file, so that what they make gets past its first check.

Blind mutations mostly break the checksum of a picture or a compressed archive, and the tags of XML.
"""

import bz2
import gzip
import lzma
import random
import re
import struct
import zlib
from typing import Final

from mutate_dicom import COUNTS, Blind, Element, cut_out, damage, mutate_dicom, replace_blindly

_CHUNKS: Final = (
    *(b"sBIT", b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"gAMA"),
    *(b"acTL", b"fcTL", b"fdAT", b"zTXt", b"iTXt", b"IEND"),
)


def mutate_image(data: bytes, max_size: int, chance: random.Random, blind: Blind) -> bytes:
    """Change one to three things of a DICOM, PNG or JPEG file."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        if data.startswith(b"\x89PNG"):
            data = _mutate_png(data, max_size, chance, blind)
        elif data.startswith(b"\xff\xd8\xff"):
            data = _mutate_long(data, max_size, chance, blind)
        else:
            data = mutate_dicom(data, max_size, chance, blind)
    return data[:max_size]


def _mutate_long(data: bytes, max_size: int, chance: random.Random, blind: Blind) -> bytes:
    whole = Element((0, 0), b"", 0, 0, len(data))
    return chance.choice((damage, damage, cut_out, replace_blindly))(data, whole, chance, blind, "<")


def _mutate_png(data: bytes, max_size: int, chance: random.Random, blind: Blind) -> bytes:
    """Change, drop, copy or add one chunk and mend its checksum (PNG 5.3)."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return blind(data, max_size)
    place = chance.randrange(len(chunks))
    kind, body = chunks[place]
    chunks[place : place + 1] = chance.choice(
        (
            (),
            ((kind, body), (kind, body)),
            ((kind, _mutate_chunk(kind, body, chance, blind)),),
            ((kind, _mutate_chunk(kind, body, chance, blind)),),
            (
                (kind, body),
                (chance.choice(_CHUNKS), bytes(chance.choices(range(256), k=chance.choice((0, 1, 4, 9))))),
            ),
        )
    )
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return data[:8] + b"".join(packed)


def _mutate_chunk(kind: bytes, body: bytes, chance: random.Random, blind: Blind) -> bytes:
    if kind == b"IHDR" and len(body) == 13 and chance.random() < 0.8:
        sizes = struct.pack(
            ">2I", *(chance.choice((side, side, side, *COUNTS)) for side in struct.unpack(">2I", body[:8]))
        )
        return sizes + bytes(
            (
                chance.choice((1, 2, 4, 8, 8, 16, 16, 7)),
                chance.choice((0, 2, 3, 4, 6, 5)),
                0,
                0,
                chance.choice((0, 0, 1)),
            )
        )
    if kind == b"IDAT" and chance.random() < 0.6:
        try:
            return zlib.compress(blind(zlib.decompressobj().decompress(body, 2**18), 2**18), 1)
        except zlib.error:
            return body
    return blind(body or b"0", 2 * len(body) + 16)


def mutate_archive(data: bytes, max_size: int, chance: random.Random, blind: Blind) -> bytes:
    """Change what is inside a compressed archive, or a header of a plain one, and mend the checksums."""
    for magic, unpack, pack in _COMPRESSIONS:
        if data.startswith(magic) and chance.random() < 0.8:
            try:
                inner = unpack(data)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
                break
            return pack(_mutate_tar(inner[: 2**20], 8 * max_size, chance, blind))[:max_size]
    return _mutate_tar(data, max_size, chance, blind)[:max_size]


_COMPRESSIONS: Final = (
    (b"\x1f\x8b", gzip.decompress, lambda data: gzip.compress(data, 1, mtime=0)),
    (b"BZh", bz2.decompress, lambda data: bz2.compress(data, 1)),
    (b"\xfd7zXZ", lzma.decompress, lambda data: lzma.compress(data, preset=0)),
)


def _mutate_tar(data: bytes, max_size: int, chance: random.Random, blind: Blind) -> bytes:
    headers = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not headers or chance.random() < 0.3:
        return blind(data, max_size)
    at = chance.choice(headers)
    block = bytearray(data[at : at + 512])
    first, length = chance.choice(
        ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (345, 155))
    )
    field = (
        blind(bytes(block[first : first + length]), length) if chance.random() < 0.6 else _draw_field(chance)
    )
    block[first : first + length] = field[:length].ljust(length, b"\0")
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    return data[:at] + bytes(block) + data[at + 512 :]


def _draw_field(chance: random.Random) -> bytes:
    return chance.choice(
        (
            b"",
            b"0",
            b"5",
            b"x",
            b"g",
            b"L",
            b"S",
            b"V",
            b"77777777777",
            b"-1",
            b"\x80" + b"\xff" * 11,
            b"\xff" * 12,
            b"../a.xml",
        )
    )


_PIECES: Final = (
    *(
        b"<a>",
        b"</a>",
        b"<a/>",
        b"<!-- - -->",
        b"<![CDATA[<b>]]>",
        b"<?a b?>",
        b"&#xD7FF;",
        b"&#0;",
        b"&amp;",
        b"&a;",
    ),
    *(
        b'<uId id="CXR8"/>',
        b'<uId id="CXR"/>',
        b'<uId id="CXR\xd9\xa3"/>',
        b"<uId/>",
        b"<major>normal</major>",
    ),
    *(b"<major>No Indexing</major>", b"<major>/</major>", b"<major/>", b"<parentImage/>", b"<AbstractText>"),
    *(b'<AbstractText Label="FINDINGS">', b'<AbstractText Label=" impression ">', b"</AbstractText>"),
    *(
        b"XXXX",
        b"findings:",
        b"\nIMPRESSION :",
        b"\xc2\xa0",
        b"\xe2\x80\xa8",
        b"\x85",
        b"\xef\xbb\xbf",
        b"[MASK]",
        b"_",
    ),
)


def mutate_text(data: bytes, max_size: int, chance: random.Random, blind: Blind) -> bytes:
    """Change one to three tags or texts of a report and leave the others whole."""
    pieces = re.findall(rb"<[^<>]*>|[^<]+|<", data)
    if not pieces or chance.random() < 0.3:
        return blind(data, max_size)
    for _ in range(chance.choice((1, 1, 2, 3))):
        at, other = chance.randrange(len(pieces)), chance.randrange(len(pieces))
        pieces[at : at + 1] = chance.choice(
            (
                (),
                (pieces[at], pieces[at]),
                (pieces[other],),
                (pieces[at], chance.choice(_PIECES)),
                (chance.choice(_PIECES), pieces[at]),
                (b"<a>", pieces[at], b"</a>"),
                (blind(pieces[at], len(pieces[at]) + 8),),
            )
        )
        if not pieces:
            break
    return b"".join(pieces)[:max_size]
