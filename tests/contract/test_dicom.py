"""DICOM, PNG and JPEG to pixels: values against formulas written here or pydicom's own functions."""

import csv
import gzip
import io
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from contract.dicom import load_pixels
from contract.dicom_grey import is_inverted
from contract.errors import ImageError
from contract.image_header import read_image_header

image_module = pytest.importorskip("PIL.Image")
SIDE = 32  # images of this size are not scaled, so that each value can be compared


def ramp(bits: int, dtype=np.uint16, low: int = 0) -> np.ndarray:
    """Values from `low` over the whole range of `bits`, (SIDE, SIDE)."""
    return (np.linspace(0, 2**bits - 1, SIDE * SIDE).round() + low).astype(dtype).reshape(SIDE, SIDE)


def show(grey: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)[None]


def window_linear(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """The formula of DICOM PS3.3 C.11.2.1.2.1 with an output range of 0 to 1."""
    return (values - (centre - 0.5)) / (width - 1) + 0.5


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: int = 1) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= tolerance


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
    values = ramp(bits, dtype, low)
    centre, width = low + 0.4 * 2**bits, 0.6 * 2**bits
    data = dicom.build(values, bits=bits, WindowCenter=f"{centre:.8g}", WindowWidth=f"{width:.8g}")
    pixels = load_pixels(data, size=SIDE)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (1, SIDE, SIDE)
    assert_close(pixels, show(window_linear(values.astype(float), centre, width)))
    assert pixels.min() == 0
    assert pixels.max() == 255


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
)
def test_every_plain_syntax_gives_equal_pixels(dicom, syntax):
    expected = load_pixels(dicom.build(ramp(12)), size=SIDE)
    assert np.array_equal(load_pixels(dicom.build(ramp(12), syntax=syntax), size=SIDE), expected)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_file_without_preamble(dicom, syntax):
    expected = load_pixels(dicom.build(ramp(12)), size=SIDE)
    data = dicom.write(dicom.dataset(ramp(12), syntax=syntax), part10=False)
    assert data[128:132] != b"DICM"
    assert np.array_equal(load_pixels(data, size=SIDE), expected)


def test_first_frame_of_many_is_read(dicom):
    frames = np.stack([ramp(12), ramp(12)[::-1], ramp(12).T])
    expected = load_pixels(dicom.build(ramp(12)), size=SIDE)
    assert np.array_equal(load_pixels(dicom.build(frames), size=SIDE), expected)
    assert np.array_equal(load_pixels(dicom.build(frames[:1]), size=SIDE), expected)


@pytest.mark.parametrize(
    ("syntax", "encoder", "tolerance"),
    [
        (RLELossless, {}, 0),
        (JPEG2000Lossless, {}, 0),
        (JPEG2000, {"j2k_cr": [4]}, 4),
    ],
)
def test_compressed_by_pydicom(dicom, syntax, encoder, tolerance):
    pytest.importorskip("openjpeg")
    values = ramp(12)
    data = dicom.compress(values, syntax, encoder=encoder)
    assert len(data) < len(dicom.build(values)) or syntax == RLELossless
    assert_close(
        load_pixels(data, size=SIDE), load_pixels(dicom.build(values), size=SIDE), tolerance=tolerance
    )


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless])
def test_compressed_by_gdcm(dicom, tmp_path, syntax):
    gdcm = pytest.importorskip("gdcm")
    (tmp_path / "in.dcm").write_bytes(dicom.build(ramp(12)))
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(tmp_path / "in.dcm"))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(tmp_path / "out.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    expected = load_pixels(dicom.build(ramp(12)), size=SIDE)
    assert np.array_equal(load_pixels((tmp_path / "out.dcm").read_bytes(), size=SIDE), expected)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "YBR_FULL_422"])
def test_jpeg_baseline(dicom, photometric):
    grey = ramp(8, np.uint8)
    picture = image_module.fromarray(grey)
    stream = io.BytesIO()
    (picture if photometric == "MONOCHROME2" else picture.convert("RGB")).save(stream, "JPEG", quality=95)
    dataset = dicom.dataset(grey, bits=8, syntax=JPEGBaseline8Bit)
    dataset.PhotometricInterpretation = photometric
    dataset.SamplesPerPixel = 1 if photometric == "MONOCHROME2" else 3
    dataset.PlanarConfiguration = 0
    dataset.WindowCenter, dataset.WindowWidth = 128, 256
    dataset.PixelData = encapsulate([stream.getvalue()])
    assert_close(load_pixels(dicom.write(dataset), size=SIDE), grey[None], tolerance=4)


# --- black and white ---------------------------------------------------------------------------------------


def test_monochrome1_and_its_twin_are_equal(dicom):
    values = ramp(12)
    for window in ({}, {"WindowCenter": "2047.5", "WindowWidth": "3001"}):
        expected = load_pixels(dicom.build(values, **window), size=SIDE)
        found = load_pixels(dicom.build(4095 - values, photometric="MONOCHROME1", **window), size=SIDE)
        assert_close(found, expected)
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
    dataset = dicom.dataset(ramp(12), photometric=photometric, PresentationLUTShape=shape)
    assert is_inverted(dataset) is inverted
    pixels = load_pixels(dicom.write(dataset), size=SIDE)[0]
    assert (pixels[0, 0] > pixels[-1, -1]) is np.bool_(inverted)


images = st.tuples(
    st.sampled_from([8, 10, 12, 14, 15, 16]),
    st.booleans(),
    st.integers(16, 40),
    st.integers(16, 40),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(images)
def test_twins_of_any_image_are_equal(dicom, image):
    bits, signed, rows, columns, seed, windowed = image
    low = -(2 ** (bits - 1)) if signed else 0
    values = np.random.default_rng(seed).integers(low, low + 2**bits, (rows, columns))
    dtype = np.dtype(f"{'int' if signed else 'uint'}{8 if bits == 8 else 16}")
    window = {"WindowCenter": str(low + 2 ** (bits - 1)), "WindowWidth": str(2**bits)} if windowed else {}
    twin = 2 * low + 2**bits - 1 - values
    bright = load_pixels(dicom.build(values.astype(dtype), bits=bits, **window), size=24)
    dark = dicom.build(twin.astype(dtype), bits=bits, photometric="MONOCHROME1", **window)
    assert_close(load_pixels(dark, size=24), bright)
    assert bright.shape == (1, 24, 24)


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
    assert_close(pixels, show(window_linear(areas, 2048, 4096)))


# --- PNG and JPEG ------------------------------------------------------------------------------------------


def save(picture, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def test_pictures_of_one_image_are_equal():
    grey = ramp(8, np.uint8)
    picture = image_module.fromarray(grey)
    deep = image_module.fromarray(grey.astype(np.uint16) * 257)
    for data in (
        save(picture, "PNG"),
        save(deep, "PNG"),
        save(picture.convert("RGB"), "PNG"),
        save(picture.convert("RGBA"), "PNG"),
        save(picture.convert("LA"), "PNG"),
        save(picture.convert("P"), "PNG"),
    ):
        assert np.array_equal(load_pixels(data, size=SIDE)[0], grey)
    assert_close(load_pixels(save(picture, "JPEG", quality=98), size=SIDE), grey[None], tolerance=3)
    jpeg = save(picture.convert("RGB"), "JPEG", quality=98)
    assert_close(load_pixels(jpeg, size=SIDE), grey[None], tolerance=3)


def test_deep_png_is_read_as_16_bits():
    deep = save(image_module.fromarray(ramp(16)), "PNG")
    assert deep[24] == 16  # bit depth in IHDR
    assert_close(load_pixels(deep, size=SIDE), show(ramp(16) / 65535))


def test_dicom_and_png_of_one_image_are_equal(dicom):
    grey = np.random.default_rng(6).integers(0, 256, (60, 44)).astype(np.uint8)
    data = dicom.build(grey, bits=8, WindowCenter="128", WindowWidth="256")
    png = save(image_module.fromarray(grey), "PNG")
    assert np.array_equal(load_pixels(data, size=24), load_pixels(png, size=24))


def test_real_png_files_load(openi_directory):
    paths = sorted((openi_directory / "png").glob("*.png"))
    assert len(paths) == 5
    for path in paths:
        pixels = load_pixels(path.read_bytes(), size=224)[0]
        assert np.ptp(pixels) > 200, path.name
        assert 30 < pixels.mean() < 200, path.name
        assert read_image_header(path.read_bytes()).view == "UNKNOWN"


# --- views and real headers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "view"),
    [
        ("PA", "PA"),
        ("AP", "AP"),
        ("ap ", "AP"),
        ("LL", "LATERAL"),
        ("RL", "LATERAL"),
        ("LATERAL", "LATERAL"),
        ("LARGE LATERAL", "LATERAL"),
        ("", "UNKNOWN"),
        ("RLO", "UNKNOWN"),
        (["PA", "AP"], "UNKNOWN"),
    ],
)
def test_view(dicom, written, view):
    data = dicom.build(ramp(12), ViewPosition=written)
    assert read_image_header(data).view == view
    assert read_image_header(data[: len(data) // 2]).view == view  # the header is enough
    assert read_image_header(dicom.build(ramp(12))).view == "UNKNOWN"


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 zip", b"no image", b"%PDF-1.7"])
def test_view_of_no_image(data):
    with pytest.raises(ImageError):
        read_image_header(data)


@pytest.fixture(scope="module")
def headers(openi_directory) -> list[dict[str, str]]:
    with gzip.open(openi_directory / "nlmcxr_dicom_metadata.csv.gz", "rt", newline="") as file:
        return list(csv.DictReader(file))


def test_views_of_the_real_headers(dicom, headers):
    written = Counter(header["View Position"] for header in headers)
    views: Counter[str] = Counter()
    for text, count in written.items():
        views[read_image_header(dicom.build(ramp(12), ViewPosition=text)).view] += count
    assert views == {"PA": 3593, "AP": 423, "LATERAL": 867, "UNKNOWN": 2586}


def test_every_kind_of_real_header_gives_a_picture_the_right_way_round(dicom, headers):
    names = ("Photometric Interpretation", "Presentation LUT Shape", "Bits Stored", "Rescale Slope")
    kinds = {tuple(header[name] for name in names): header for header in headers}
    inverted = sum(header[names[0]] == "MONOCHROME1" for header in headers)
    assert inverted == 3584
    for (photometric, shape, bits, slope), header in kinds.items():
        window = {}
        if header["Window Center"] and "[" not in header["Window Center"]:
            window = {"WindowCenter": header["Window Center"], "WindowWidth": header["Window Width"]}
        data = dicom.build(
            ramp(int(bits)),
            bits=int(bits),
            photometric=photometric,
            PresentationLUTShape=shape,
            RescaleSlope=slope,
            RescaleIntercept=header["Rescale Intercept"],
            **window,
        )
        first, last = load_pixels(data, size=SIDE)[0].flat[[0, -1]].astype(int)
        brighter = first if photometric == "MONOCHROME1" else last
        assert brighter > 200, (photometric, shape, bits, slope)
        assert first + last - brighter < 50, (photometric, shape, bits, slope)
