"""DICOM, PNG and JPEG to pixels: values against formulas written here or pydicom's own functions."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
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

from contract.image.dicom_file import read_header
from contract.image.grey import is_inverted
from contract.image.read import load_pixels, load_radiograph

image_module = pytest.importorskip("PIL.Image")
SIDE = 32  # images of this size are not scaled, so that each value can be compared


# --- stored values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "dtype", "low"),
    [
        (8, np.uint8, 0),
        (10, np.uint16, 0),
        (12, np.uint16, 0),
        (14, np.uint16, 0),
        (15, np.uint16, 0),
        (16, np.uint16, 0),
        (8, np.int8, -128),
        (12, np.int16, -2048),
        (16, np.int16, -32768),
    ],
)
def test_every_depth_gives_the_window_of_the_standard(dicom, bits, dtype, low):
    values = dicom.ramp(bits, dtype, low)
    centre, width = low + 0.4 * 2**bits, 0.6 * 2**bits
    data = dicom.build(values, bits=bits, WindowCenter=f"{centre:.8g}", WindowWidth=f"{width:.8g}")
    pixels = load_pixels(data, size=SIDE)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (1, SIDE, SIDE)
    dicom.assert_close(pixels, dicom.show(dicom.window_linear(values.astype(float), centre, width)))
    assert pixels.min() == 0
    assert pixels.max() == 255


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
)
def test_every_plain_syntax_gives_equal_pixels(dicom, syntax):
    expected = load_pixels(dicom.build(dicom.ramp(12)), size=SIDE)
    assert np.array_equal(load_pixels(dicom.build(dicom.ramp(12), syntax=syntax), size=SIDE), expected)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_file_without_preamble(dicom, syntax):
    expected = load_pixels(dicom.build(dicom.ramp(12)), size=SIDE)
    data = dicom.write(dicom.dataset(dicom.ramp(12), syntax=syntax), part10=False)
    assert data[128:132] != b"DICM"
    assert np.array_equal(load_pixels(data, size=SIDE), expected)


def test_first_frame_of_many_is_read(dicom):
    frames = np.stack([dicom.ramp(12), dicom.ramp(12)[::-1], dicom.ramp(12).T])
    expected = load_pixels(dicom.build(dicom.ramp(12)), size=SIDE)
    assert np.array_equal(load_pixels(dicom.build(frames), size=SIDE), expected)
    assert np.array_equal(load_pixels(dicom.build(frames[:1]), size=SIDE), expected)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "YBR_FULL_422"])
def test_jpeg_baseline(dicom, photometric):
    grey = dicom.ramp(8, np.uint8)
    picture = image_module.fromarray(grey)
    stream = io.BytesIO()
    (picture if photometric == "MONOCHROME2" else picture.convert("RGB")).save(stream, "JPEG", quality=95)
    dataset = dicom.dataset(grey, bits=8, syntax=JPEGBaseline8Bit)
    dataset.PhotometricInterpretation = photometric
    dataset.SamplesPerPixel = 1 if photometric == "MONOCHROME2" else 3
    dataset.PlanarConfiguration = 0
    dataset.WindowCenter, dataset.WindowWidth = 128, 256
    dataset.PixelData = encapsulate([stream.getvalue()])
    dicom.assert_close(load_pixels(dicom.write(dataset), size=SIDE), grey[None], tolerance=4)


LOSSLESS = [
    RLELossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
]


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize(
    ("bits", "dtype"), [(8, np.uint8), (10, np.uint16), (12, np.uint16), (16, np.uint16)]
)
def test_lossless_compression_changes_nothing(dicom, syntax, bits, dtype):
    values = dicom.ramp(bits, dtype)
    data = dicom.compress(values, syntax, bits=bits)
    assert syntax.encode() in data
    assert np.array_equal(
        load_pixels(data, size=SIDE), load_pixels(dicom.build(values, bits=bits), size=SIDE)
    )


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless])
def test_signed_values_survive_compression(dicom, syntax):
    """They are compressed as the words that they are stored in."""
    values = dicom.ramp(12, np.int16, -2048)
    if syntax == RLELossless:
        data = dicom.compress(values, syntax)
    else:
        data = dicom.compress(values.view(np.uint16) & 0x0FFF, syntax, PixelRepresentation=1)
    assert np.array_equal(load_pixels(data, size=SIDE), load_pixels(dicom.build(values), size=SIDE))


@pytest.mark.parametrize(
    ("syntax", "bits", "level", "tolerance"),
    [
        (JPEGBaseline8Bit, 8, 95, 3),
        (JPEGExtended12Bit, 8, 95, 3),
        (JPEGExtended12Bit, 12, 95, 2),
        (JPEGLSNearLossless, 12, 3, 1),
        (JPEGLSNearLossless, 8, 2, 3),
        (JPEG2000, 12, 90, 3),
        (HTJ2K, 12, None, 0),
    ],
)
def test_lossy_compression_changes_little(dicom, syntax, bits, level, tolerance):
    values = dicom.ramp(bits, np.uint8 if bits == 8 else np.uint16)
    window = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
    data = dicom.compress(values, syntax, level=level, bits=bits, **window)
    expected = load_pixels(dicom.build(values, bits=bits, **window), size=SIDE)
    dicom.assert_close(load_pixels(data, size=SIDE), expected, tolerance=tolerance)


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_colour_captures_survive_compression(dicom, syntax):
    colours = np.random.default_rng(8).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    settings = {"bits": 8, "photometric": "RGB", "Modality": "SC"}
    expected = load_pixels(dicom.build(colours, **settings), size=SIDE)
    assert np.array_equal(load_pixels(dicom.compress(colours, syntax, **settings), size=SIDE), expected)


def test_frame_in_many_fragments(dicom):
    """A stream may be cut anywhere (DICOM PS3.5 A.4)."""
    dataset = dicom.dataset(dicom.ramp(12), syntax=JPEGLosslessSV1)
    stream = dicom.encode(dicom.ramp(12), JPEGLosslessSV1, bits=12)
    dataset.PixelData = encapsulate([stream], fragments_per_frame=5)
    expected = load_pixels(dicom.build(dicom.ramp(12)), size=SIDE)
    assert np.array_equal(load_pixels(dicom.write(dataset), size=SIDE), expected)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1])
def test_first_of_many_compressed_frames(dicom, syntax):
    frames = [dicom.ramp(12), dicom.ramp(12)[::-1]]
    dataset = dicom.dataset(np.stack(frames), syntax=syntax)
    dataset.PixelData = encapsulate([dicom.encode(frame, syntax, bits=12) for frame in frames])
    expected = load_pixels(dicom.build(frames[0]), size=SIDE)
    assert np.array_equal(load_pixels(dicom.write(dataset), size=SIDE), expected)


# --- bits beside the stored ones ---------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_overlays_in_unused_bits_are_no_image(dicom, signed, syntax):
    """DICOM PS3.5 8.1.1: the bits beside the stored ones held overlays once."""
    values = dicom.ramp(12, np.int16 if signed else np.uint16, -2048 if signed else 0)
    overlay = np.random.default_rng(9).integers(0, 16, values.shape).astype(np.uint16) << 12
    words = (values.view(np.uint16) & 0x0FFF) | overlay
    dataset = dicom.dataset(words, syntax=syntax, PixelRepresentation=int(signed))
    for group, bit in zip((0x6000, 0x6002, 0x6004, 0x6006), (12, 13, 14, 15), strict=True):
        dataset.add_new((group, 0x0100), "US", 16)
        dataset.add_new((group, 0x0102), "US", bit)
    if syntax == RLELossless:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = pydicom.dcmread(io.BytesIO(dicom.write(dataset)))
        dataset.compress(syntax, encoding_plugin="pydicom")
    data = dicom.write(dataset)
    assert load_radiograph(data, size=SIDE).remarks == ()
    dicom.assert_close(load_pixels(data, size=SIDE), load_pixels(dicom.build(values), size=SIDE))


@pytest.mark.parametrize("high", [11, 13, 15])
def test_high_bit_says_where_the_value_stands(dicom, high):
    values = dicom.ramp(12)
    below = np.random.default_rng(9).integers(0, 1 << (high - 11), values.shape).astype(np.uint16)
    words = (values << (high - 11)) | below
    expected = load_pixels(dicom.build(values), size=SIDE)
    dicom.assert_close(load_pixels(dicom.build(words, HighBit=high), size=SIDE), expected)


@pytest.mark.parametrize("high", [0, 5, 99, None])
def test_impossible_high_bit_is_left_out(dicom, high):
    expected = load_pixels(dicom.build(dicom.ramp(12)), size=SIDE)
    assert np.array_equal(load_pixels(dicom.build(dicom.ramp(12), HighBit=high), size=SIDE), expected)


def test_overlay_groups_are_ignored(dicom):
    dataset = dicom.dataset(dicom.ramp(12))
    expected = load_pixels(dicom.write(dataset), size=SIDE)
    dataset.add_new(0x60000010, "US", SIDE)
    dataset.add_new(0x60000011, "US", SIDE)
    dataset.add_new(0x60003000, "OW", b"\xff" * (SIDE * SIDE // 8))
    assert np.array_equal(load_pixels(dicom.write(dataset), size=SIDE), expected)


@pytest.mark.parametrize("modality", ["CR", "DX", "DR", "XR", "RX", "rx ", "RF", "OT", "SC", ""])
def test_modality_of_radiographs(dicom, modality):
    expected = load_pixels(dicom.build(dicom.ramp(12)), size=SIDE)
    assert np.array_equal(load_pixels(dicom.build(dicom.ramp(12), Modality=modality), size=SIDE), expected)


# --- black and white ---------------------------------------------------------------------------------------


def test_monochrome1_and_its_twin_are_equal(dicom):
    values = dicom.ramp(12)
    for window in ({}, {"WindowCenter": "2047.5", "WindowWidth": "3001"}):
        expected = load_pixels(dicom.build(values, **window), size=SIDE)
        found = load_pixels(dicom.build(4095 - values, photometric="MONOCHROME1", **window), size=SIDE)
        dicom.assert_close(found, expected)
        assert found[0, 0, 0] == 0
        assert found[0, -1, -1] == 255


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", "", False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "", True),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME1", "INVERSE", True),
    ],
)
def test_inversion_is_done_once(dicom, photometric, shape, inverted):
    data = dicom.build(dicom.ramp(12), photometric=photometric, PresentationLUTShape=shape)
    assert is_inverted(read_header(data)) is inverted
    pixels = load_pixels(data, size=SIDE)[0]
    assert (pixels[0, 0] > pixels[-1, -1]) is np.bool_(inverted)


def test_nearly_flat_image_keeps_what_it_shows(dicom):
    values = np.full((SIDE, SIDE), 1000, np.uint16)
    values[5, 5] = 1200
    bright = load_pixels(dicom.build(values), size=SIDE)
    dark = load_pixels(dicom.build(4095 - values, photometric="MONOCHROME1"), size=SIDE)
    assert bright[0, 5, 5] == 255
    assert bright.sum() == 255
    assert np.array_equal(bright, dark)


# --- the square --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(64, 32), (32, 64), (48, 48), (40, 16), (17, 20)])
def test_aspect_ratio_is_kept_and_the_rest_black(dicom, rows, columns):
    values = np.full((rows, columns), 4095, np.uint16)
    data = dicom.build(values, WindowCenter="2048", WindowWidth="4096")
    pixels = load_pixels(data, size=16)[0]
    height, width = (round(side * 16 / max(rows, columns)) for side in (rows, columns))
    lit = np.argwhere(pixels == 255)
    assert len(lit) == height * width == np.count_nonzero(pixels)
    top, left = lit.min(axis=0)
    bottom, right = 15 - lit.max(axis=0)
    assert abs(top - bottom) <= 1
    assert abs(left - right) <= 1


def test_shrinking_averages_areas(dicom):
    values = np.random.default_rng(5).integers(0, 4096, (64, 64)).astype(np.uint16)
    pixels = load_pixels(dicom.build(values, WindowCenter="2048", WindowWidth="4096"), size=16)
    areas = values.reshape(16, 4, 16, 4).mean(axis=(1, 3))
    dicom.assert_close(pixels, dicom.show(dicom.window_linear(areas, 2048, 4096)))
