"""Files that are no radiographs, are damaged or lie: one sentence, no patient data, no memory, no crash."""

import io
import random
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
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

from contract.errors import ImageError
from contract.image.header import read_image_header
from contract.image.read import load_pixels

image_module = pytest.importorskip("PIL.Image")
COMPRESSED = (
    *(JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless),
    *(JPEG2000Lossless, HTJ2KLossless, RLELossless),
)
VALUES = np.random.default_rng(0).integers(0, 4096, (40, 36)).astype(np.uint16)


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
    assert words in dicom.refuse(data)


def test_too_many_bytes(dicom, monkeypatch):
    monkeypatch.setattr("contract.image.read.MAX_IMAGE_BYTES", 2000)
    assert "at most 2,000" in dicom.refuse(dicom.build(VALUES))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_truncated_anywhere(dicom, syntax):
    data = dicom.build(VALUES, syntax=syntax, WindowCenter="2000", WindowWidth="3000")
    load_pixels(data, size=32)
    for length in [*range(1, 700, 13), *range(700, len(data) - 1, 199), len(data) - 2]:
        dicom.refuse(data[:length])


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_truncated_compressed(dicom, syntax):
    """The file is cut, or the stream in a whole file is: libjpeg would fill up what is missing."""
    bits = 8 if syntax == JPEGBaseline8Bit else 12
    values = (VALUES >> 4).astype(np.uint8) if bits == 8 else VALUES
    data = dicom.compress(values, syntax, bits=bits)
    load_pixels(data, size=32)
    for length in range(100, len(data) // 2, 97):
        dicom.refuse(data[:length])
    if syntax == RLELossless:
        return
    whole = dicom.encode(values, syntax, bits=bits)
    for share in (0.1, 0.5, 0.9, 0.99):
        dataset = dicom.dataset(values, bits=bits, syntax=syntax)
        dataset.PixelData = encapsulate([whole[: int(share * len(whole))]])
        dicom.refuse(dicom.write(dataset))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_pictures(dicom, kind):
    file = io.BytesIO()
    image_module.fromarray((VALUES // 16).astype(np.uint8)).save(file, kind)
    data = file.getvalue()
    for length in range(10, len(data) - 20, 50):
        dicom.refuse(data[:length])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"PixelData": b""}, "no pixel data"),
        ({"Modality": "CT"}, "modality CT"),
        ({"Modality": "SR"}, "modality SR"),
        ({"Modality": "MG"}, "modality MG: a mammogram, which is not a chest radiograph."),
        ({"Modality": "IO"}, "modality IO: a dental radiograph, which is not a chest radiograph."),
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
    assert words in dicom.refuse(dicom.build(VALUES, **changes))


@pytest.mark.parametrize(
    "name",
    ["PixelData", "Rows", "Columns", "BitsAllocated", "PhotometricInterpretation", "PixelRepresentation"],
)
def test_missing_elements(dicom, name):
    dataset = dicom.dataset(VALUES)
    delattr(dataset, name)
    dicom.refuse(dicom.write(dataset))


@pytest.mark.parametrize(("vr", "value"), [("UI", "1.2.3"), ("IS", "70000"), ("US", [16, 16]), ("US", None)])
def test_bits_allocated_of_another_kind(dicom, vr, value):
    """Found by fuzzing: what stands there was taken for Bits Stored, which the file leaves empty."""
    dataset = dicom.dataset(VALUES)
    dataset.BitsStored = None
    dataset.add_new("BitsAllocated", vr, value)
    assert "not say how its pixels are stored" in dicom.refuse(dicom.write(dataset))


def test_structured_report(dicom):
    dataset = dicom.dataset(VALUES, Modality="SR")
    for name in ("PixelData", "Rows", "Columns"):
        delattr(dataset, name)
    assert "modality SR" in dicom.refuse(dicom.write(dataset))


@pytest.mark.parametrize("syntax", ["1.2.3.4", "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.1.2.4.100"])
def test_transfer_syntax_that_is_none_of_an_image(dicom, syntax):
    dataset = dicom.dataset(VALUES)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = dicom.write(dataset).replace(
        b"1.2.840.10008.1.2.1\x00", syntax.encode().ljust(20, b"\x00")[:20], 1
    )
    dicom.refuse(data)


@pytest.mark.parametrize("vr", [b"UK", b"ZZ"])
def test_unknown_value_representation(dicom, vr):
    """pydicom puts off such errors until an element is used."""
    data = dicom.build(VALUES, RescaleSlope="1", PixelPaddingValue=0, ViewPosition="PA")
    for known in (b"\x28\x00\x10\x00US", b"\x28\x00\x20\x01US", b"\x28\x00\x53\x10DS"):
        assert known in data
        dicom.refuse(data.replace(known, known[:4] + vr))
    unnamed = data.replace(b"\x18\x00\x01\x51CS", b"\x18\x00\x01\x51" + vr)
    assert read_image_header(unnamed).view == "UNKNOWN"  # the image can be read without it


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
from contract.image.read import load_pixels
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
    monkeypatch.setattr("contract.image.decode.find_spec", lambda name: None)
    message = dicom.refuse(dicom.write(dataset))
    assert f"no decoder for {syntax.name}" in message
    assert message.endswith(f": pip install {package}.")


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.92"])
def test_compression_that_no_radiograph_has(dicom, syntax):
    """MPEG-2, JPEG 2000 of many components."""
    dataset = dicom.dataset(VALUES, syntax=UID(syntax))
    dataset.PixelData = encapsulate([bytes(100)])
    dicom.refuse(dicom.write(dataset))
