"""What holds for every image: over bits, signs, photometric interpretations, tables, syntaxes and shapes.

And for every combination of headers in the real collection.
"""

import csv
import gzip
import time

import cv2
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from contract.image.grey import WHITE, find_ramp
from contract.image.read import load_pixels, load_radiograph

bounded = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LOSSLESS = (
    *(uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian),
    *(uid.RLELossless, uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless),
    *(uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL),
)
depths = st.sampled_from([8, 10, 12, 14, 15, 16])
sides = st.integers(16, 90)
seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([16, 24, 37, 64])


def draw_values(seed: int, bits: int, shape: tuple[int, int], *, signed: bool = False) -> np.ndarray:
    """Smooth values that reach both ends of most of the range, as radiographs do."""
    generator = np.random.default_rng(seed)
    coarse = generator.normal(size=(4, 4)).astype(np.float32)
    plane = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
    low, high = np.sort(generator.uniform((0, 0.6), (0.4, 1))) * (2**bits - 1)
    plane = np.interp(plane, (plane.min(), plane.max()), (low, high)).round()
    dtype = np.dtype(f"{'int' if signed else 'uint'}{8 if bits == 8 else 16}")
    return (plane - (2 ** (bits - 1) if signed else 0)).astype(dtype)


def make_table(bits: int, low: int, seed: int) -> Sequence:
    """A VOI LUT of every value, rising, not evenly."""
    entries = np.sort(np.random.default_rng(seed).integers(0, 65536, 2**bits)).astype(np.uint16)
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if low < 0 else "US", [2**bits % 65536, low, 16])
    item.add_new("LUTData", "OW", entries.tobytes())
    return Sequence([item])


# --- twins -------------------------------------------------------------------------------------------------


@bounded
@given(
    depths,
    st.booleans(),
    st.sampled_from(["none", "window", "exact", "sigmoid", "table"]),
    sides,
    sides,
    seeds,
    sizes,
)
def test_twins_are_equal(dicom, bits, signed, shown, rows, columns, seed, size):
    """A MONOCHROME1 file holds 2^bits - 1 - v where its MONOCHROME2 twin holds v. No rounding tells them apart."""
    values = draw_values(seed, bits, (rows, columns), signed=signed)
    low = -(2 ** (bits - 1)) if signed else 0
    top = 2 * low + 2**bits - 1
    centre, width = low + 0.45 * 2**bits, 0.5 * 2**bits
    bright, dark = {}, {}
    if shown in {"window", "exact", "sigmoid"}:
        function = {"window": "LINEAR", "exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}[shown]
        bright = {"WindowCenter": f"{centre:.8g}", "WindowWidth": f"{width:.8g}", "VOILUTFunction": function}
        dark = bright | {"WindowCenter": f"{top - centre + (shown == 'window'):.8g}"}
    elif shown == "table":
        bright = {"VOILUTSequence": make_table(bits, low, seed)}
        dark = {"VOILUTSequence": make_table(bits, low, seed)}
        entries = np.frombuffer(bright["VOILUTSequence"][0].LUTData, np.uint16)
        dark["VOILUTSequence"][0].LUTData = (65535 - entries[::-1]).astype(np.uint16).tobytes()
    twin = (top - values.astype(int)).astype(values.dtype)
    expected = load_pixels(dicom.build(values, bits=bits, **bright), size=size)
    found = load_pixels(dicom.build(twin, bits=bits, photometric="MONOCHROME1", **dark), size=size)
    np.testing.assert_array_equal(found, expected)


@bounded
@given(depths, st.booleans(), st.sampled_from(["MONOCHROME1", "MONOCHROME2"]), sides, sides, seeds)
def test_without_window_the_range_is_used(dicom, bits, signed, photometric, rows, columns, seed):
    values = draw_values(seed, bits, (rows, columns), signed=signed)
    pixels = load_pixels(dicom.build(values, bits=bits, photometric=photometric), size=max(rows, columns))
    assert pixels.max() > 0.95 * 255
    image = pixels[0][pixels[0].any(axis=1)][:, pixels[0].any(axis=0)]
    assert image.min() < 0.05 * 255


# --- storage -----------------------------------------------------------------------------------------------


@bounded
@given(st.sampled_from(LOSSLESS), depths, st.booleans(), sides, sides, seeds, sizes)
def test_lossless_storage_changes_nothing(dicom, syntax, bits, windowed, rows, columns, seed, size):
    values = draw_values(seed, bits, (rows, columns))
    window = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits // 2} if windowed else {}
    expected = load_pixels(dicom.build(values, bits=bits, **window), size=size)
    if syntax.is_encapsulated:
        data = dicom.compress(values, syntax, bits=bits, **window)
    else:
        data = dicom.build(values, bits=bits, syntax=syntax, **window)
    assert np.array_equal(load_pixels(data, size=size), expected)


@bounded
@given(
    depths,
    st.sampled_from(["0.25", "0.5", "2", "3", "-1", "-0.5"]),
    st.integers(-3000, 3000),
    st.booleans(),
    sides,
    seeds,
)
def test_rescale_with_its_window_changes_nothing(dicom, bits, slope, intercept, windowed, side, seed):
    """v becomes slope v + intercept, and the window with it; a negative slope swaps black and white."""
    values = draw_values(seed, bits, (side, side))
    centre, width = 0.5 * 2**bits, 0.4 * 2**bits
    plain, rescaled = {}, {"RescaleSlope": slope, "RescaleIntercept": intercept}
    if windowed:
        plain = {
            "WindowCenter": f"{centre:.8g}",
            "WindowWidth": f"{width:.8g}",
            "VOILUTFunction": "LINEAR_EXACT",
        }
        rescaled |= {
            "WindowCenter": f"{float(slope) * centre + intercept:.8g}",
            "WindowWidth": f"{abs(float(slope)) * width:.8g}",
            "VOILUTFunction": "LINEAR_EXACT",
        }
    photometric = "MONOCHROME1" if slope.startswith("-") else "MONOCHROME2"
    expected = load_pixels(dicom.build(values, bits=bits, **plain), size=32)
    found = load_pixels(dicom.build(values, bits=bits, photometric=photometric, **rescaled), size=32)
    dicom.assert_close(found, expected)


# --- shape -------------------------------------------------------------------------------------------------


@bounded
@given(st.integers(16, 200), st.integers(16, 200), sizes)
def test_aspect_ratio_is_kept(dicom, rows, columns, size):
    """The image fills a centred rectangle of its own shape, and what is around is exactly black."""
    values = np.full((rows, columns), 4095, np.uint16)
    pixels = load_pixels(dicom.build(values, WindowCenter=2048, WindowWidth=4096), size=size)[0]
    height, width = (max(1, round(side * size / max(rows, columns))) for side in (rows, columns))
    top, left = (size - height) // 2, (size - width) // 2
    expected = np.zeros((size, size), np.uint8)
    expected[top : top + height, left : left + width] = 255
    assert np.array_equal(pixels, expected)


@bounded
@given(depths, st.sampled_from(["none", "LINEAR", "SIGMOID", "table"]), st.booleans(), sides, sides, seeds)
def test_pixels_are_averages_of_the_grey_of_each_pixel(dicom, bits, shown, inverted, rows, columns, seed):
    """However it is computed: the whole image is shown first, and areas are averaged then."""
    values = draw_values(seed, bits, (rows, columns))
    window = {"WindowCenter": 0.5 * 2**bits, "WindowWidth": 0.3 * 2**bits, "VOILUTFunction": shown}
    elements = {"table": {"VOILUTSequence": make_table(bits, 0, seed)}, "none": {}}.get(shown, window)
    data = dicom.build(values, bits=bits, photometric=f"MONOCHROME{1 if inverted else 2}", **elements)
    full = load_pixels(data, size=max(rows, columns))[0].astype(np.float32)
    top, left = ((max(rows, columns) - side) // 2 for side in (rows, columns))
    full = full[top : top + rows, left : left + columns]
    height, width = (max(1, round(side * 16 / max(rows, columns))) for side in (rows, columns))
    expected = cv2.resize(full, (width, height), interpolation=cv2.INTER_AREA)
    top, left = (16 - height) // 2, (16 - width) // 2
    found = load_pixels(data, size=16)[0][top : top + height, left : left + width]
    assert np.abs(found - expected).max() <= 1


def test_ramps():
    table = np.concatenate([np.zeros(100), np.linspace(0, WHITE, 3001).round(), np.full(50, WHITE)]).astype(
        np.uint16
    )
    ramp = find_ramp(table)
    assert (ramp.start, ramp.stop) == (100, 3100)
    assert abs(ramp.black - 100) < 0.1
    assert abs(ramp.white - 3100) < 0.1
    falling = find_ramp(WHITE - table)
    assert abs(falling.white - 100) < 0.1
    assert find_ramp((np.linspace(0, 1, 4096) ** 2 * WHITE).astype(np.uint16)) is None  # bent
    assert find_ramp(np.linspace(0, WHITE, 256).astype(np.uint16)) is None  # steep
    assert find_ramp(np.full(50, 7, np.uint16)) is None
    table[1000] = 0  # padding
    assert find_ramp(table) is None


# --- speed -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2000, "WindowWidth": 3000}])
def test_loading_takes_hardly_longer_than_decoding_and_shrinking(dicom, window):
    """A 2828x2320 image of 12 bits, as Open-i has them, in processor time."""
    generator = np.random.default_rng(0)
    values = generator.normal(2000, 30, (2828, 2320)) + np.linspace(-1500, 1500, 2320)
    data = dicom.build(values.clip(0, 4095).astype(np.uint16), **window)

    def decode_and_shrink() -> None:
        pixels = pydicom.dcmread(pydicom.filebase.DicomBytesIO(data)).pixel_array
        cv2.resize(pixels, (184, 224), interpolation=cv2.INTER_AREA)

    def measure_s(step) -> float:
        start = time.process_time()
        step()
        return time.process_time() - start

    pairs = [
        (measure_s(lambda: load_pixels(data, size=224)), measure_s(decode_and_shrink)) for _ in range(15)
    ]
    ours, theirs = (sorted(times)[len(times) // 2] for times in zip(*pairs, strict=True))
    assert ours < 1.3 * theirs


# --- real headers ------------------------------------------------------------------------------------------

COLUMNS = (
    *("Modality", "Photometric Interpretation", "Presentation LUT Shape", "Bits Stored", "High Bit"),
    *("Rescale Slope", "Rescale Intercept", "View Position", "Body Part Examined", "Image Laterality"),
    *("SOP Class UID", "Number of Frames", "Collimator Shape", "Pixel Intensity Relationship Sign"),
)
EXPECTED_VIEWS = {"PA": "PA", "AP": "AP", "": "UNKNOWN"}


def list_windows(header: dict[str, str]) -> list[list[str]]:
    """The windows of a header, centres and widths; lists stand in the csv as Python writes them."""
    return [
        [number.strip(" '") for number in header[name].strip("[]").split(",") if number]
        for name in ("Window Center", "Window Width")
    ]


@pytest.fixture(scope="module")
def combinations(openi_directory) -> dict[tuple[str, ...], dict[str, str]]:
    """Every distinct combination of headers of the real collection, with one header that has it."""
    with gzip.open(openi_directory / "nlmcxr_dicom_metadata.csv.gz", "rt", newline="") as file:
        headers = list(csv.DictReader(file))
    assert len(headers) == 7469
    found = {}
    for header in headers:
        windows, table = len(list_windows(header)[0]), bool(header["LUT Descriptor"])
        found[(*(header[name] for name in COLUMNS), str(windows), str(table))] = header
    return found


def build_real(dicom, header: dict[str, str]) -> bytes:
    """A ramp with the elements of a real header."""
    bits = int(header["Bits Stored"])
    names = {name.replace(" ", ""): header[name] for name in COLUMNS if header[name]}
    elements = {
        name: value
        for name, value in names.items()
        if name not in {"BitsStored", "PhotometricInterpretation"}
    }
    elements["SOPClassUID"] = elements.pop("SOPClassUID")
    for name in ("HighBit", "PixelIntensityRelationshipSign"):
        if name in elements:
            elements[name] = int(elements[name])
    centres, widths = list_windows(header)
    if centres:
        elements |= {"WindowCenter": centres, "WindowWidth": widths}
    if header["LUT Descriptor"]:
        descriptor = [int(number.strip(" '")) for number in header["LUT Descriptor"].strip("[]").split(",")]
        item = Dataset()
        item.add_new("LUTDescriptor", "US", descriptor)
        item.add_new("LUTData", "US", np.linspace(0, 65535, descriptor[0] or 65536).astype(int).tolist())
        elements["VOILUTSequence"] = Sequence([item])
    values = dicom.ramp(bits)
    return dicom.build(values, bits=bits, photometric=header["Photometric Interpretation"], **elements)


def test_every_combination_of_real_headers(dicom, combinations):
    assert len(combinations) == 45
    for combination, header in combinations.items():
        radiograph = load_radiograph(build_real(dicom, header), size=32)
        first, last = radiograph.pixels[0].flat[[0, -1]].astype(int)
        inverted = header["Photometric Interpretation"] == "MONOCHROME1"
        darker, brighter = (last, first) if inverted else (first, last)
        assert brighter > 200, combination
        assert darker < 50, combination
        assert radiograph.header.view == EXPECTED_VIEWS.get(header["View Position"], "LATERAL")
        assert radiograph.header.laterality == header["Image Laterality"]
        assert radiograph.header.body_part == header["Body Part Examined"]
        assert radiograph.header.bits == int(header["Bits Stored"])
        assert radiograph.header.window == bool(header["Window Center"])
        assert radiograph.header.voi_lut == bool(header["LUT Descriptor"])
