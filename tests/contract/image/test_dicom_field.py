"""The part of an image that is image: shutters, borders, labels and air, and the grey range without a window."""

import cv2
import numpy as np
import pytest

from contract.image.field import find_range
from contract.image.read import load_pixels

SIDE = 120


def draw_chest(low: int = 1000, high: int = 3000) -> np.ndarray:
    """Smooth values from `low` to `high`, (SIDE, SIDE) uint16, without air."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    values = (
        np.sin(7 * rows) + np.cos(9 * columns + rows) + np.random.default_rng(1).normal(0, 0.02, rows.shape)
    ) / 4
    return np.interp(values, (values.min(), values.max()), (low, high)).round().astype(np.uint16)


def measure_spread(pixels: np.ndarray, inside: tuple[slice, slice]) -> float:
    """The share of the output range that the inner part of an image takes."""
    low, high = np.percentile(pixels[0][inside], (1, 99))
    return (high - low) / 255


BORDER = 20
INSIDE = (slice(BORDER + 2, -BORDER - 2), slice(BORDER + 2, -BORDER - 2))


def surround(values: np.ndarray, level: int, noise: float = 0.0, sides: str = "tblr") -> np.ndarray:
    """Cover the borders of an image with a level."""
    border = np.random.default_rng(2).normal(level, noise, values.shape).clip(0, 4095)
    covered = np.zeros(values.shape, bool)
    covered[:BORDER] |= "t" in sides
    covered[-BORDER:] |= "b" in sides
    covered[:, :BORDER] |= "l" in sides
    covered[:, -BORDER:] |= "r" in sides
    return np.where(covered, border.round(), values).astype(np.uint16)


# --- borders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("sides", ["tblr", "tb", "lr", "t"])
@pytest.mark.parametrize(("level", "noise"), [(0, 0), (4095, 0), (4000, 6)])
def test_border_has_no_say_in_the_range(dicom, level, noise, sides, photometric):
    """Black or white, made by a program, or white and a little exposed; the chest takes nine tenths of the range."""
    values = surround(draw_chest(), level, noise, sides)
    stored = 4095 - values if photometric == "MONOCHROME1" else values
    pixels = load_pixels(dicom.build(stored, photometric=photometric), size=SIDE)
    assert measure_spread(pixels, INSIDE) > 0.9
    assert pixels[0, 3, SIDE // 2] == (0 if level == 0 else 255) or "t" not in sides


def test_geometry_is_kept(dicom):
    """A border is not cut off: maps of attribution are laid over the whole image."""
    values = surround(draw_chest(), 0)
    pixels = load_pixels(dicom.build(values), size=SIDE)[0]
    assert not pixels[:BORDER].any()
    assert (
        pixels[BORDER + 1 : -BORDER - 1, BORDER + 1 : -BORDER - 1].all(axis=None) or pixels[SIDE // 2].any()
    )
    window = load_pixels(dicom.build(values, WindowCenter="2000", WindowWidth="2000"), size=SIDE)[0]
    assert np.corrcoef(window.ravel(), pixels.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("angle", [3, 20])
def test_tilted_bright_collimation(dicom, angle):
    turn = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), angle, 0.75)
    values = cv2.warpAffine(draw_chest(), turn, (SIDE, SIDE), flags=cv2.INTER_NEAREST, borderValue=4095)
    pixels = load_pixels(dicom.build(values), size=SIDE)
    assert measure_spread(pixels, (slice(40, 80), slice(40, 80))) > 0.75


@pytest.mark.parametrize("level", [4095, 3700])
def test_label_burnt_into_the_image(dicom, level):
    values = draw_chest()
    alone = load_pixels(dicom.build(values), size=SIDE)
    values[50:62, 10:50] = level  # 3 % of the pixels
    labelled = load_pixels(dicom.build(values), size=SIDE)
    dicom.assert_close(labelled[:, 65:], alone[:, 65:], tolerance=5)


def test_hot_and_dead_pixels_are_clipped(dicom):
    values = draw_chest()
    values[np.arange(20), np.arange(20)] = 4095
    values[np.arange(20), np.arange(20) + 50] = 0
    assert measure_spread(load_pixels(dicom.build(values), size=SIDE), np.s_[30:, :]) > 0.9


# --- air ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0, 15])
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_air_stays_darker_than_the_patient(dicom, photometric, noise):
    """Air on both sides of an oval patient, saturated or noisy: no part of the patient becomes black."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1) - 0.5
    patient = (rows / 0.7) ** 2 + (columns / 0.35) ** 2 < 1
    air = np.random.default_rng(3).normal(400, noise, rows.shape)
    values = np.where(patient, draw_chest(1000, 3000), air.round()).astype(np.uint16)
    stored = 4095 - values if photometric == "MONOCHROME1" else values
    pixels = load_pixels(dicom.build(stored, photometric=photometric), size=SIDE)[0]
    assert pixels[~patient].max() < 12
    assert pixels[patient].min() > 40
    assert len(np.unique(pixels[patient])) > 150


def test_range_of_an_image_of_one_value():
    words, seen = np.full((40, 40), 7, np.uint16), np.ones((40, 40), bool)
    assert find_range(words, np.arange(65536, dtype=np.float32), seen) == (7, 7)
    assert find_range(words, np.arange(65536, dtype=np.float32), ~seen) == (7, 7)


# --- windows that show nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize("centre", ["60000", "-9000"])
def test_window_beside_all_values_counts_as_absent(dicom, centre):
    expected = load_pixels(dicom.build(draw_chest()), size=SIDE)
    data = dicom.build(draw_chest(), WindowCenter=centre, WindowWidth="100")
    assert np.array_equal(load_pixels(data, size=SIDE), expected)


# --- shutters ----------------------------------------------------------------------------------------------

RECTANGLE = {
    "LeftVerticalEdge": 31,
    "RightVerticalEdge": 90,
    "UpperHorizontalEdge": 21,
    "LowerHorizontalEdge": 110,
}
RECTANGULAR = {f"Shutter{name}": value for name, value in RECTANGLE.items()}
CIRCULAR = {"CenterOfCircularShutter": [60, 50], "RadiusOfCircularShutter": 30}
POLYGONAL = {"VerticesOfThePolygonalShutter": [21, 31, 21, 90, 110, 90, 110, 31]}


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": "2000", "WindowWidth": "2000"}])
@pytest.mark.parametrize(
    "shutter",
    [{"ShutterShape": "RECTANGULAR", **RECTANGULAR}, {"ShutterShape": "POLYGONAL", **POLYGONAL}],
)
def test_what_a_shutter_covers_is_black(dicom, shutter, window, photometric):
    values = draw_chest()
    covered = np.ones(values.shape, bool)
    covered[20:110, 30:90] = False
    values[covered] = np.where(np.arange(covered.sum()) % 2, 4095, 0)
    stored = 4095 - values if photometric == "MONOCHROME1" else values
    if photometric == "MONOCHROME1" and window:
        window = {"WindowCenter": "2096", "WindowWidth": "2000"}
    pixels = load_pixels(dicom.build(stored, photometric=photometric, **window, **shutter), size=SIDE)
    assert not pixels[0][covered].any()
    assert measure_spread(pixels, np.s_[20:110, 30:90]) > 0.9


def test_round_shutter(dicom):
    pixels = load_pixels(dicom.build(draw_chest() + 500, ShutterShape="CIRCULAR", **CIRCULAR), size=SIDE)[0]
    rows, columns = np.mgrid[1 : SIDE + 1, 1 : SIDE + 1]
    distance = np.hypot(rows - 60, columns - 50)
    assert not pixels[distance > 31].any()
    assert (pixels[distance < 29] > 0).mean() > 0.98


def test_two_shutters_cover_both(dicom):
    data = dicom.build(draw_chest(), ShutterShape=["RECTANGULAR", "CIRCULAR"], **RECTANGULAR, **CIRCULAR)
    pixels = load_pixels(data, size=SIDE)[0]
    assert not pixels[:, :30].any()  # by the rectangle
    assert not pixels[100:, :].any()  # by the circle


@pytest.mark.parametrize(
    "shutter",
    [
        {"ShutterShape": "RECTANGULAR"},
        {"ShutterShape": "RECTANGULAR", **RECTANGULAR, "ShutterLeftVerticalEdge": 95},
        {
            "ShutterShape": "RECTANGULAR",
            **RECTANGULAR,
            "ShutterRightVerticalEdge": 2**31 - 1,
        },
        {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [60, 50]},
        {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [60, 50], "RadiusOfCircularShutter": 0},
        {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [60, 50], "RadiusOfCircularShutter": 10**9},
        {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 2, 3]},
        {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 2, 3, 4]},
        {"ShutterShape": "BITMAP"},
        {"ShutterShape": ""},
    ],
)
def test_impossible_shutter_is_left_out(dicom, shutter):
    expected = load_pixels(dicom.build(draw_chest()), size=SIDE)
    assert np.array_equal(load_pixels(dicom.build(draw_chest(), **shutter), size=SIDE), expected)


def test_shutter_that_is_no_number_is_left_out(dicom):
    good = dicom.build(
        draw_chest(), ShutterShape="RECTANGULAR", **{**RECTANGULAR, "ShutterLeftVerticalEdge": 8765}
    )
    bad = good.replace(b"8765", b"zoe ")
    assert bad != good
    assert np.array_equal(load_pixels(bad, size=SIDE), load_pixels(dicom.build(draw_chest()), size=SIDE))


def test_collimator_sets_the_range_and_hides_nothing(dicom):
    values = draw_chest()
    values[:20] = 300 + np.arange(SIDE)  # scattered, hence no level border
    collimator = {f"Collimator{name}": value for name, value in RECTANGLE.items()}
    pixels = load_pixels(dicom.build(values, CollimatorShape="RECTANGULAR", **collimator), size=SIDE)
    assert measure_spread(pixels, np.s_[21:110, 31:90]) > 0.9
    shown = load_pixels(dicom.build(draw_chest(), CollimatorShape="RECTANGULAR", **collimator), size=SIDE)
    assert shown[0, :20].any()
