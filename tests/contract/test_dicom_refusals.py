"""Files that are no radiographs, are damaged or lie: one sentence, no patient data, no memory, no crash."""

import contextlib
import io
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from contract import dicom_file
from contract.dicom import load_pixels
from contract.errors import ImageError
from contract.image_header import read_image_header

image_module = pytest.importorskip("PIL.Image")
COMPRESSED = (
    *(JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless),
    *(JPEG2000Lossless, HTJ2KLossless, RLELossless),
)
VALUES = np.random.default_rng(0).integers(0, 4096, (40, 36)).astype(np.uint16)


def refuse(dicom, data: bytes) -> str:
    """Check that a file is refused in one sentence that names no patient, and return it."""
    with pytest.raises(ImageError) as info:
        load_pixels(data, size=32)
    message = str(info.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert 10 < len(message) < 200
    assert not any(secret in message.upper() for secret in dicom.secrets), message
    return message


def zip_file() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("QUINCY_ZOE_4711.dcm", b"x")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"%PDF-1.7 MRN-4711", "PDF"),
        (zip_file(), "zip"),
        (b"\x1f\x8b\x08 4711", "gzip"),
        (b"Zoe Quincy, MRN-4711", "not a DICOM, PNG or JPEG"),
        (b"\x00", "not a DICOM, PNG or JPEG"),
        (b"\x00" * 500, "not a DICOM, PNG or JPEG"),
        (b"\x00" * 128 + b"DICM", "not a DICOM, PNG or JPEG"),
        (b"GIF89a" + b"\x00" * 60, "not a DICOM, PNG or JPEG"),
        (b"<eCitation/>", "not a DICOM, PNG or JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG or JPEG image is damaged"),
        (b"\xff\xd8\xff\xe0 4711", "PNG or JPEG image is damaged"),
    ],
)
def test_foreign_files(dicom, data, words):
    assert words in refuse(dicom, data)


def test_too_many_bytes(dicom, monkeypatch):
    monkeypatch.setattr("contract.dicom.MAX_IMAGE_BYTES", 2000)
    assert "at most 2,000" in refuse(dicom, dicom.build(VALUES))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_truncated_anywhere(dicom, syntax):
    data = dicom.build(VALUES, syntax=syntax, WindowCenter="2000", WindowWidth="3000")
    load_pixels(data, size=32)
    for length in [*range(1, 700, 13), *range(700, len(data) - 1, 199), len(data) - 2]:
        refuse(dicom, data[:length])


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_truncated_compressed(dicom, syntax):
    """The file is cut, or the stream in a whole file is: libjpeg would fill up what is missing."""
    bits = 8 if syntax == JPEGBaseline8Bit else 12
    values = (VALUES >> 4).astype(np.uint8) if bits == 8 else VALUES
    data = dicom.compress(values, syntax, bits=bits)
    load_pixels(data, size=32)
    for length in range(100, len(data) // 2, 97):
        refuse(dicom, data[:length])
    if syntax == RLELossless:
        return
    whole = dicom.encode(values, syntax, bits=bits)
    for share in (0.1, 0.5, 0.9, 0.99):
        dataset = dicom.dataset(values, bits=bits, syntax=syntax)
        dataset.PixelData = encapsulate([whole[: int(share * len(whole))]])
        refuse(dicom, dicom.write(dataset))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_pictures(dicom, kind):
    file = io.BytesIO()
    image_module.fromarray((VALUES // 16).astype(np.uint8)).save(file, kind)
    data = file.getvalue()
    for length in range(10, len(data) - 20, 50):
        refuse(dicom, data[:length])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"PixelData": b""}, "no pixel data"),
        ({"Modality": "CT"}, "modality CT"),
        ({"Modality": "SR"}, "modality SR"),
        ({"Modality": "MRN-4711"}, "modality unknown"),
        ({"Rows": 0}, "too small"),
        ({"Columns": 0}, "too small"),
        ({"Rows": 15}, "too small"),
        ({"Rows": 65535, "Columns": 65535}, "claims 65535x65535 pixels"),
        ({"Rows": 8000, "Columns": 7000}, "truncated"),
        ({"Rows": [40, 36]}, "does not say how"),
        ({"Rows": None}, "does not say how"),
        ({"BitsAllocated": 32}, "12 of 32 bits"),
        ({"BitsAllocated": 12}, "12 of 12 bits"),
        ({"BitsAllocated": 1, "BitsStored": 1}, "1 of 1 bits"),
        ({"BitsAllocated": 0}, "12 of 0 bits"),
        ({"BitsAllocated": 8}, "12 of 8 bits"),
        ({"BitsAllocated": 65535}, "of 65535 bits"),
        ({"BitsStored": 0}, "0 of 16 bits"),
        ({"BitsStored": 17}, "17 of 16 bits"),
        ({"SamplesPerPixel": 4}, "4 samples"),
        ({"NumberOfFrames": -1}, "-1 frames"),
        ({"NumberOfFrames": 9}, "truncated: 40x36 pixels in 9 frames"),
        ({"PhotometricInterpretation": None}, "does not say what its pixel values mean"),
        ({"PhotometricInterpretation": "HSV"}, "does not say what its pixel values mean"),
        ({"PhotometricInterpretation": "RGB"}, "1 samples per pixel of the kind RGB"),
        ({"SamplesPerPixel": 3}, "3 samples per pixel of the kind MONOCHROME2"),
        ({"PixelRepresentation": 7}, "pixel representation 7"),
        ({"Modality": "", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "class CT Image Storage"),
        ({"Modality": "", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"}, "class Ultrasound Image Storage"),
    ],
)
def test_headers_that_lie(dicom, changes, words):
    assert words in refuse(dicom, dicom.build(VALUES, **changes))


@pytest.mark.parametrize(
    "name",
    ["PixelData", "Rows", "Columns", "BitsAllocated", "PhotometricInterpretation", "PixelRepresentation"],
)
def test_missing_elements(dicom, name):
    dataset = dicom.dataset(VALUES)
    delattr(dataset, name)
    refuse(dicom, dicom.write(dataset))


def test_structured_report(dicom):
    dataset = dicom.dataset(VALUES, Modality="SR")
    for name in ("PixelData", "Rows", "Columns"):
        delattr(dataset, name)
    assert "modality SR" in refuse(dicom, dicom.write(dataset))


@pytest.mark.parametrize("syntax", ["1.2.3.4", "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.1.2.4.100"])
def test_transfer_syntax_that_is_none_of_an_image(dicom, syntax):
    dataset = dicom.dataset(VALUES)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = dicom.write(dataset).replace(
        b"1.2.840.10008.1.2.1\x00", syntax.encode().ljust(20, b"\x00")[:20], 1
    )
    refuse(dicom, data)


@pytest.mark.parametrize("vr", [b"UK", b"ZZ"])
def test_unknown_value_representation(dicom, vr):
    """pydicom puts off such errors until an element is used."""
    data = dicom.build(VALUES, RescaleSlope="1", PixelPaddingValue=0, ViewPosition="PA")
    for known in (b"\x28\x00\x10\x00US", b"\x28\x00\x20\x01US", b"\x28\x00\x53\x10DS"):
        assert known in data
        refuse(dicom, data.replace(known, known[:4] + vr))
    unnamed = data.replace(b"\x18\x00\x01\x51CS", b"\x18\x00\x01\x51" + vr)
    assert read_image_header(unnamed).view == "UNKNOWN"  # the image can be read without it


# --- claims that would cost memory or time -----------------------------------------------------------------


def measure(dicom, data: bytes) -> tuple[float, int]:
    """Return seconds and bytes at the peak that refusing a file takes."""
    refuse(dicom, data)  # imports
    tracemalloc.start()
    start = time.perf_counter()
    try:
        refuse(dicom, data)
        return time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def stream(size: tuple[int, int], kind: str) -> bytes:
    file = io.BytesIO()
    image_module.new("L", size).save(file, kind)
    return file.getvalue()


# Loads a file with 200 MB of address space more than what the imports and a small image took.
LOAD_IN_LITTLE = """
import pathlib, resource, sys, time
from contract.dicom import load_pixels
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
    assert "claims 65535x65535 pixels" in refuse(dicom, data)
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


BLACK = (8000, 7900)  # nearly as many pixels as are read


@pytest.mark.parametrize(
    "syntax", [DeflatedExplicitVRLittleEndian, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless]
)
def test_black_image_of_very_many_pixels(dicom, syntax):
    """1 kB to 1 MB that decode to 126 MB."""
    values = np.zeros(BLACK, np.uint16)
    deflated = syntax == DeflatedExplicitVRLittleEndian
    data = dicom.build(values, syntax=syntax) if deflated else dicom.compress(values, syntax)
    assert load_within(data, seconds=2)


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
    refuse(dicom, dicom.write(dataset))


def test_jpeg2000_of_two_streams(dicom):
    """A small stream in front of another one would be checked instead of it."""
    small, large = (
        dicom.encode(np.zeros((side, side), np.uint16), JPEG2000Lossless, bits=12) for side in (40, 4000)
    )
    dataset = dicom.dataset(VALUES[:36, :36], syntax=JPEG2000Lossless, Rows=40, Columns=40)
    dataset.PixelData = encapsulate([b"box " + small + large])
    refuse(dicom, dicom.write(dataset))


@pytest.mark.parametrize("mode", ["L", "I;16", "LA", "P", "1", "JPEG"])
def test_black_picture_of_very_many_pixels(mode):
    file = io.BytesIO()
    picture = image_module.new("L" if mode == "JPEG" else mode, BLACK[::-1])
    picture.save(file, "JPEG" if mode == "JPEG" else "PNG")
    assert load_within(file.getvalue(), seconds=2)


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
    assert "too many pixels" in refuse(dicom, data)
    assert "claims 9000x8000 pixels" in refuse(dicom, stream((8000, 9000), "PNG"))


# --- damage at random --------------------------------------------------------------------------------------


def damage(data: bytes, seed: int, start: int, stop: int) -> bytes:
    rng = random.Random(seed)
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(start, stop)
        if rng.random() < 0.8:
            changed[at] = rng.choice((rng.randrange(256), rng.choice(b"0123456789.\\ -")))
        else:
            changed[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
    return bytes(changed)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_damaged_header_is_read_or_refused(dicom, syntax):
    window = {"WindowCenter": "2000", "WindowWidth": "3000", "RescaleSlope": "1", "RescaleIntercept": "0"}
    data = dicom.build(VALUES, syntax=syntax, PixelPaddingValue=0, ViewPosition="PA", **window)
    stop = data.index(VALUES[:1].tobytes())
    outcomes, messages = {"read": 0, "refused": 0}, set()
    for seed in range(400):
        changed = damage(data, seed, 132, stop)
        try:
            assert load_pixels(changed, size=32).shape == (1, 32, 32)
            assert read_image_header(changed).view in {"PA", "AP", "LATERAL", "UNKNOWN"}
            outcomes["read"] += 1
        except ImageError as error:
            messages.add(str(error).upper())
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 40
    assert not [secret for secret in dicom.secrets for message in messages if secret in message]


# Decoders are C: what ends the process would end the tests, so this runs in one of its own.
DECODE_ALL = """
import pathlib, sys
from contract.dicom import load_pixels
from contract.errors import ImageError
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.dcm")):
    try:
        load_pixels(path.read_bytes(), size=32)
        print("read")
    except ImageError:
        print("refused")
"""


def test_damaged_compressed_pixels_do_not_end_the_process(dicom, tmp_path):
    for number, syntax in enumerate(COMPRESSED):
        bits = 8 if syntax == JPEGBaseline8Bit else 12
        values = (VALUES >> 4).astype(np.uint8) if bits == 8 else VALUES
        data = dicom.compress(values, syntax, bits=bits)
        start = data.index(b"\xe0\x7f\x10\x00") + 20
        for seed in range(100):
            changed = damage(data, seed, start, min(start + 200, len(data) - 20))
            (tmp_path / f"{number}-{seed:03}.dcm").write_bytes(changed)
    done = subprocess.run(
        [sys.executable, "-c", DECODE_ALL, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    outcomes = done.stdout.split()
    assert len(outcomes) == 100 * len(COMPRESSED)
    assert min(outcomes.count("refused"), outcomes.count("read")) > 100


@pytest.mark.parametrize(
    ("syntax", "package"),
    [
        *(
            (syntax, "pylibjpeg pylibjpeg-openjpeg")
            for syntax in JPEG2000TransferSyntaxes
            if "Part 2" not in syntax.name
        ),
        *((syntax, "imagecodecs") for syntax in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes)),
    ],
)
def test_missing_decoder_is_named(dicom, monkeypatch, syntax, package):
    dataset = dicom.dataset(VALUES, syntax=syntax)
    dataset.PixelData = encapsulate([bytes(100)])
    monkeypatch.setattr("contract.dicom_decode.find_spec", lambda name: None)
    message = refuse(dicom, dicom.write(dataset))
    assert f"no decoder for {syntax.name}" in message
    assert message.endswith(f": pip install {package}.")


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.92"])
def test_compression_that_no_radiograph_has(dicom, syntax):
    """MPEG-2, JPEG 2000 of many components."""
    dataset = dicom.dataset(VALUES, syntax=UID(syntax))
    dataset.PixelData = encapsulate([bytes(100)])
    refuse(dicom, dicom.write(dataset))
