"""One small case of nobody, for asking a server whether it still infers: a grey ramp and one sentence."""

import struct
import zlib
from typing import Final

_SIDE: Final = 128  # pixels


def _make_chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG file (PNG specification, section 5.3)."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _make_ramp() -> bytes:
    """Return an 8-bit grey PNG that goes from black to white, left to right."""
    row = b"\0" + bytes(255 * column // (_SIDE - 1) for column in range(_SIDE))
    header = struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(row * _SIDE)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_make_chunk(kind, data) for kind, data in chunks)


PROBE_IMAGE: Final = _make_ramp()
PROBE_REPORT: Final = b"FINDINGS: The lungs are clear. IMPRESSION: No acute disease."
PROBE_INPUTS: Final[dict[str, bytes]] = {"image_bytes": PROBE_IMAGE, "report": PROBE_REPORT}
PROBED: Final = ("predict_study", "predict_image", "predict_text")  # what a client of files asks
