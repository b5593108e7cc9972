"""Files that would cost memory or time: what they claim is not believed, what they hold is bounded."""

import contextlib
import io
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from contract.errors import ImageError
from contract.image import dicom_file
from contract.image.header import read_image_header
from contract.image.read import load_pixels

image_module = pytest.importorskip("PIL.Image")
COMPRESSED = (
    *(JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless),
    *(JPEG2000Lossless, HTJ2KLossless, RLELossless),
)
VALUES = np.random.default_rng(0).integers(0, 4096, (40, 36)).astype(np.uint16)


# --- claims that would cost memory or time -----------------------------------------------------------------


def measure(dicom, data: bytes) -> tuple[float, int]:
    """Return seconds and bytes at the peak that refusing a file takes."""
    dicom.refuse(data)  # imports
    tracemalloc.start()
    start = time.process_time()
    try:
        dicom.refuse(data)
        return time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def stream(size: tuple[int, int], kind: str) -> bytes:
    file = io.BytesIO()
    image_module.new("L", size).save(file, kind)
    return file.getvalue()


# Loads a file with 200 MB of address space more than what the imports and a small image took.
LOAD_IN_LITTLE = """
import pathlib, resource, sys, time
from contract.image.read import load_pixels
from contract.errors import ImageError
small, large = (pathlib.Path(name).read_bytes() for name in sys.argv[1:])
load_pixels(small, size=32)
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 200 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
start = time.process_time()
try:
    load_pixels(large, size=32)
except ImageError as error:
    print(time.process_time() - start, error)
"""


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, *COMPRESSED])
def test_huge_claim_costs_nothing(dicom, tmp_path, syntax):
    """65535 x 65535 pixels over 2 kB; the header is refused, or the stream that says the same."""
    bits = 8 if syntax == JPEGBaseline8Bit else 12
    values = (VALUES >> 4).astype(np.uint8) if bits == 8 else VALUES
    (tmp_path / "small").write_bytes(
        dicom.compress(values, syntax, bits=bits) if syntax.is_compressed else dicom.build(values)
    )
    dataset = dicom.dataset(VALUES[:28], Rows=65535, Columns=65535)
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax.is_compressed:
        dataset.PixelData = encapsulate([bytes(2000)])
    data = dicom.write(dataset)
    assert "claims 65535x65535 pixels" in dicom.refuse(data)
    (tmp_path / "large").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", LOAD_IN_LITTLE, str(tmp_path / "small"), str(tmp_path / "large")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert float(done.stdout.split()[0]) < 0.1


# --- files of 1 MB that would cost time --------------------------------------------------------------------

MEGABYTE = 2**20 - 4096
ITEM, OPEN_ITEM = b"\xfe\xff\x00\xe0\0\0\0\0", b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
END_ITEM, END_SEQUENCE = b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"
OPEN_SEQUENCE = b"\x08\x00\x18\x22SQ\0\0\xff\xff\xff\xff"
TINY = b"\x09\x00\x01\x10LO\0\0"


def nest(depth: int, *, defined: bool) -> bytes:
    """Sequences in sequences, of defined or of undefined length."""
    if not defined:
        return (OPEN_SEQUENCE + OPEN_ITEM) * depth + (END_ITEM + END_SEQUENCE) * depth
    inner = b""
    for _ in range(depth):
        item = ITEM[:4] + struct.pack("<I", len(inner)) + inner
        inner = OPEN_SEQUENCE[:8] + struct.pack("<I", len(item)) + item
    return inner


def repeat_charset() -> bytes:
    names = b"\\".join([b"ISO_IR 100"] * 5900)
    return b"\x08\x00\x05\x00CS" + struct.pack("<H", len(names) // 2 * 2) + names[: len(names) // 2 * 2]


BEFORE_MODALITY = {
    "elements": TINY * (MEGABYTE // 8),
    "elements of an item": OPEN_SEQUENCE + OPEN_ITEM + TINY * (MEGABYTE // 8 - 6) + END_ITEM + END_SEQUENCE,
    "items": OPEN_SEQUENCE + ITEM * (MEGABYTE // 8 - 3) + END_SEQUENCE,
    "items with an element": OPEN_SEQUENCE + (OPEN_ITEM + TINY + END_ITEM) * (MEGABYTE // 24) + END_SEQUENCE,
    "5,000 levels": nest(5000, defined=False),
    "5,000 levels of defined length": nest(5000, defined=True),
    "26,000 levels": nest(26000, defined=False),
    "no end": OPEN_SEQUENCE + OPEN_ITEM + bytes(MEGABYTE),
    "character sets": repeat_charset() * 15,
}


@pytest.mark.parametrize("name", BEFORE_MODALITY)
def test_hostile_structure(dicom, name):
    data = dicom.build(VALUES)
    at = data.index(b"\x08\x00\x60\x00CS")  # Modality
    assert load_within(data[:at] + BEFORE_MODALITY[name] + data[at:], seconds=2)


@pytest.mark.parametrize(
    "element",
    [
        *(
            "WindowCenter",
            "WindowWidth",
            "RescaleSlope",
            "PixelPaddingValue",
            "Rows",
            "ViewPosition",
            "ShutterShape",
        ),
        *(
            "VerticesOfThePolygonalShutter",
            "NumberOfFrames",
            "PixelAspectRatio",
            "LossyImageCompressionRatio",
        ),
    ],
)
@pytest.mark.parametrize("value", [b"1\\", b"\\", b"1.5\\"])
def test_element_of_very_many_values(dicom, element, value):
    """Implicit VR, where a length has 32 bits; the elements need not be in order."""
    data = dicom.build(VALUES, syntax=ImplicitVRLittleEndian)
    at = data.index(b"\xe0\x7f\x10\x00")
    tag = tag_for_keyword(element)
    many = value * (MEGABYTE // len(value) // 2 * 2)
    many += b"1" * (len(many) % 2)
    hostile = struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(many)) + many
    assert load_within(data[:at] + hostile + data[at:], seconds=2)


@pytest.mark.parametrize("sequence", [b"\x28\x00\x10\x30", b"\x28\x00\x00\x30", b"\x54\x00\x20\x02"])
@pytest.mark.parametrize("content", [ITEM * (MEGABYTE // 8), nest(20_000, defined=True)])
def test_table_of_very_many_items(dicom, sequence, content):
    """VOI LUT, modality LUT and view code: pydicom parses sequences of defined length when they are used."""
    data = dicom.build(VALUES)
    at = data.index(b"\xe0\x7f\x10\x00")
    hostile = sequence + b"SQ\0\0" + struct.pack("<I", len(content)) + content
    assert load_within(data[:at] + hostile + data[at:], seconds=2)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1, RLELossless])
@pytest.mark.parametrize("frames", [1, 99999])
def test_very_many_fragments(dicom, syntax, frames):
    dataset = dicom.dataset(VALUES, syntax=syntax, NumberOfFrames=frames)
    dataset.PixelData = encapsulate([b"x" * 10])
    data = dicom.write(dataset)
    at = data.index(b"\xe0\x7f\x10\x00")
    assert load_within(data[: at + 12] + ITEM * (MEGABYTE // 8) + END_SEQUENCE, seconds=2)


def load_within(data: bytes, *, seconds: float) -> bool:
    """Load or refuse a file; say whether that took less processor time, in the best of three tries."""
    assert len(data) <= 2**20
    for _ in range(3):  # others use the memory, too
        start = time.process_time()
        with contextlib.suppress(ImageError):
            load_pixels(data, size=224)
        if time.process_time() - start < seconds:
            return True
    return False


def add_parts(parts: bytes, kind: str) -> bytes:
    """Return a picture with further parts after its first one."""
    data = stream((128, 128), kind)
    at = 33 if kind == "PNG" else 2  # after IHDR; after SOI
    return data[:at] + parts + data[at:]


EMPTY_CHUNK = struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
MANY_PARTS = {
    "PNG chunks": add_parts(EMPTY_CHUNK * (MEGABYTE // 12), "PNG"),
    "PNG pixel chunks": add_parts(
        (struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))) * (MEGABYTE // 12), "PNG"
    ),
    "PNG chunks after the pixels": stream((128, 128), "PNG")[:-12] + EMPTY_CHUNK * (MEGABYTE // 12),
    "JPEG segments": add_parts(b"\xff\xe5\0\2" * (MEGABYTE // 4), "JPEG"),
    "JPEG filling": add_parts(b"\xff" * MEGABYTE, "JPEG"),
    "JPEG bytes between segments": add_parts(b"\xff\xe5\0\2" + bytes(MEGABYTE), "JPEG"),
}


@pytest.mark.parametrize("name", MANY_PARTS)
def test_picture_of_very_many_parts(dicom, name):
    """Pillow reads each part in Python: in a file of 256 MiB that took half an hour."""
    assert load_within(MANY_PARTS[name], seconds=0.3)
    assert "too many parts" in dicom.refuse(MANY_PARTS[name])
    with pytest.raises(ImageError, match="too many parts"):
        read_image_header(MANY_PARTS[name])


def test_picture_of_many_parts_is_read():
    """As many as a large radiograph has, whose chunks have 8 kB."""
    load_pixels(add_parts(EMPTY_CHUNK * 10_000, "PNG"), size=32)
    load_pixels(add_parts(b"\xff\xe5\0\2" * 1000 + b"\xff" * 100, "JPEG"), size=32)


def test_jpeg_stream_of_very_many_segments(dicom):
    frame = dicom.encode(VALUES, JPEGLosslessSV1, bits=12)
    dataset = dicom.dataset(VALUES, syntax=JPEGLosslessSV1)
    for many in (b"\xff" * MEGABYTE, b"\xff\xfe\0\2" * (MEGABYTE // 4)):
        dataset.PixelData = encapsulate([frame[:2] + many + frame[2:]])
        seconds, _ = measure(dicom, dicom.write(dataset))
        assert seconds < 0.3


def test_rle_stream_longer_than_its_image(dicom):
    """Each pair of bytes is a run of 128."""
    runs = b"\x81\0" * (MEGABYTE // 4)
    frame = struct.pack("<16I", 2, 64, 64 + len(runs), *[0] * 13) + runs + runs
    dataset = dicom.dataset(VALUES, syntax=RLELossless)
    dataset.PixelData = encapsulate([frame])
    _, peak = measure(dicom, dicom.write(dataset))
    assert peak < 8 * 2**20


BLACK = (8000, 7900)  # nearly as many pixels as are read


@pytest.mark.parametrize(
    "syntax", [DeflatedExplicitVRLittleEndian, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless]
)
def test_black_image_of_very_many_pixels(dicom, syntax):
    """1 kB to 1 MB that decode to 126 MB."""
    values = np.zeros(BLACK, np.uint16)
    deflated = syntax == DeflatedExplicitVRLittleEndian
    data = dicom.build(values, syntax=syntax) if deflated else dicom.compress(values, syntax)
    assert load_within(data, seconds=6)


def code_blocks(stream: bytes, *, precinct: int | None = None, block: int | None = None) -> bytes:
    """Change the sizes in COD (ISO/IEC 15444-1 A.6.1), given as exponents of 2."""
    at = stream.index(b"\xff\x52")
    length = struct.unpack_from(">H", stream, at + 2)[0]
    coding = bytearray(stream[at + 4 : at + 14])
    if block is not None:
        coding[6] = coding[7] = block - 2
    if precinct is not None:
        coding[0] |= 1
        coding += bytes([precinct << 4 | precinct] * (coding[5] + 1))
    return stream[:at] + b"\xff\x52" + struct.pack(">H", len(coding) + 2) + coding + stream[at + 2 + length :]


@pytest.mark.parametrize(
    "sizes", [{"precinct": 0}, {"precinct": 1}, {"precinct": 3}, {"block": 2}, {"block": 3}]
)
def test_jpeg2000_of_very_many_blocks(dicom, sizes):
    """openjpeg takes gigabytes for the precincts of 900 bytes."""
    values = np.zeros((4000, 4000), np.uint16)
    stream = dicom.encode(values, JPEG2000Lossless, bits=12)
    dataset = dicom.dataset(VALUES, syntax=JPEG2000Lossless, Rows=4000, Columns=4000)
    dataset.PixelData = encapsulate([code_blocks(stream, **sizes)])
    seconds, peak = measure(dicom, dicom.write(dataset))
    assert seconds < 0.2
    assert peak < 2**20
    dataset.PixelData = encapsulate([code_blocks(stream, precinct=7, block=6)])
    load_pixels(dicom.write(dataset), size=32)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEGLosslessSV1, JPEGExtended12Bit, JPEG2000Lossless])
def test_stream_deeper_than_its_header(dicom, syntax):
    dataset = dicom.dataset((VALUES >> 4).astype(np.uint8), bits=8, syntax=syntax)
    dataset.PixelData = encapsulate([dicom.encode(VALUES, syntax, bits=12)])
    dicom.refuse(dicom.write(dataset))


def test_jpeg2000_of_two_streams(dicom):
    """A small stream in front of another one would be checked instead of it."""
    small, large = (
        dicom.encode(np.zeros((side, side), np.uint16), JPEG2000Lossless, bits=12) for side in (40, 4000)
    )
    dataset = dicom.dataset(VALUES[:36, :36], syntax=JPEG2000Lossless, Rows=40, Columns=40)
    dataset.PixelData = encapsulate([b"box " + small + large])
    dicom.refuse(dicom.write(dataset))


@pytest.mark.parametrize("mode", ["L", "I;16", "LA", "P", "1", "JPEG"])
def test_black_picture_of_very_many_pixels(mode):
    file = io.BytesIO()
    picture = image_module.new("L" if mode == "JPEG" else mode, BLACK[::-1])
    picture.save(file, "JPEG" if mode == "JPEG" else "PNG")
    assert load_within(file.getvalue(), seconds=6)


@pytest.mark.parametrize(
    ("syntax", "kind"), [(JPEG2000Lossless, "JPEG2000"), (JPEGBaseline8Bit, "JPEG"), (JPEGLossless, "JPEG")]
)
def test_compressed_stream_larger_than_its_header(dicom, syntax, kind):
    """The decoder would allocate for the stream, not for the header that was checked."""
    dataset = dicom.dataset((VALUES // 16).astype(np.uint8), bits=8, syntax=syntax)
    dataset.PixelData = encapsulate([stream((3000, 3000), kind)])
    seconds, peak = measure(dicom, dicom.write(dataset))
    assert seconds < 0.2
    assert peak < 2**20


def test_deflated_bomb(dicom, monkeypatch):
    data = dicom.build(np.zeros((2000, 2000), np.uint16), syntax=DeflatedExplicitVRLittleEndian)
    assert len(data) < 20_000
    load_pixels(data, size=32)
    monkeypatch.setattr(dicom_file, "MAX_IMAGE_BYTES", 2**20)
    _, peak = measure(dicom, data)
    assert peak < 3 * 2**20


def test_picture_bomb(dicom):
    """A PNG of 20,000 x 20,000 pixels in its header, beyond what Pillow itself opens."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data += struct.pack(">I", 10) + b"IDAT" + bytes(14)
    assert "too many pixels" in dicom.refuse(data)
    assert "claims 9000x8000 pixels" in dicom.refuse(stream((8000, 9000), "PNG"))
