"""Pictures of explanations."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.explain.geometry import find_sides, unfit_map
from client.explain.map_files import write_maps
from client.explain.maps import encode_png, find_hottest_box, smooth_attribution, smooth_map
from client.explain.overlay import _make_caption, describe_map, render_map, write_overlay
from client.explanation import Explanation, ImageMap, WordAttribution
from contract.errors import ArtifactError, ConfigError
from contract.image.frame import Frame

pytest.importorskip("matplotlib")


def make_attribution() -> np.ndarray:
    """For the finding around (row 28, column 84), against it around (row 84, column 28)."""
    rows, columns = np.mgrid[0:112, 0:112]
    near = np.exp(-((rows - 28) ** 2 + (columns - 84) ** 2) / 128)
    far = np.exp(-((rows - 84) ** 2 + (columns - 28) ** 2) / 128)
    return (near - far).astype(np.float32)


def make_attention() -> np.ndarray:
    attention = np.full((7, 7), 0.5 / 48, np.float32)
    attention[1, 5] = 0.5
    return attention


def make_map(values: np.ndarray, *, signed: bool = True) -> ImageMap:
    if signed:
        return ImageMap("integrated_gradients", "Integrated Gradients", values, True, "logits", 0.1)
    return ImageMap("attention", "Attention of the label", values, False, "share of the attention", 0.1)


@pytest.fixture
def explanation() -> Explanation:
    return Explanation(
        kind="study",
        key="pleural",
        name="Pleural Disease (Effusion / Thickening)",
        probability=0.8,
        threshold=0.5,
        logit=2.0,
        baseline_logit=-1.0,
        steps=32,
        convergence_delta=0.01,
        baseline="a black image",
        fingerprint="ab" * 32,
        radiograph=np.full((448, 448), 120, np.uint8),
        pixel_attribution=make_attribution(),
        patch_attention=make_attention(),
        words=(WordAttribution("effusion", 0, 8, 1.0, 0.5),),
        report_text="effusion",
        maps=(make_map(make_attribution()), make_map(make_attention(), signed=False)),
        original=np.full((336, 448), 120, np.uint8),
        frame=Frame.fit(336, 448, 112),
    )


@pytest.fixture
def text_only(explanation: Explanation) -> Explanation:
    nothing = dict.fromkeys(("radiograph", "pixel_attribution", "patch_attention", "original", "frame"))
    return replace(explanation, kind="text", maps=(), **nothing)


def test_overlay_shows_the_radiograph_and_each_map(explanation, tmp_path: Path):
    path = tmp_path / "new" / "overlay.png"
    assert write_overlay(explanation, path) is True
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    colourful = np.ptp(pixels, axis=2) > 60
    third = pixels.shape[1] // 3
    panels = slice(100, 400)
    assert not colourful[panels, :third].any()
    assert colourful[panels, third : 2 * third].any()
    assert colourful[panels, 2 * third :].any()
    assert list(path.parent.iterdir()) == [path]
    write_overlay([explanation, replace(explanation, key="cardiac")], path)
    with Image.open(path) as picture:
        assert picture.size[1] > 1.7 * pixels.shape[0]  # a row for each finding


def test_without_a_map_that_passed_only_the_radiograph_is_drawn(explanation, tmp_path: Path):
    write_overlay(replace(explanation, maps=(), remarks=("No map is shown.",)), tmp_path / "overlay.png")
    with Image.open(tmp_path / "overlay.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert not (np.ptp(pixels, axis=2) > 60).any()


def test_equal_explanations_give_equal_files(explanation, tmp_path: Path):
    for name in ("first.png", "second.png"):
        write_overlay(explanation, tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_without_an_image_nothing_is_written(text_only, explanation, tmp_path: Path):
    assert write_overlay(text_only, tmp_path / "overlay.png") is False
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="has no image"):
        render_map(text_only, explanation.maps[0])


def test_colours_tell_for_from_against(explanation):
    picture = render_map(explanation, explanation.maps[0]).astype(int)
    assert picture.shape == (336, 448, 3)
    # The square of 112 pixels shows the radiograph, 4 times as large, from row 14 on.
    (red, _, blue), (back_red, _, back_blue) = picture[4 * 14, 4 * 84], picture[4 * 70, 4 * 28]
    assert red > blue + 80
    assert back_blue > back_red + 80
    np.testing.assert_array_equal(picture[8, 8], [120, 120, 120])  # far from both: the radiograph itself


def test_a_map_tells_how_much_its_pixels_moved(explanation):
    """Its colours do not: they reach to its own largest value."""
    gradients, attention = explanation.maps
    values = np.full_like(gradients.values, -0.6 / gradients.values.size)
    summed = replace(gradients, values=values, delta=0.001)
    expected = "Integrated Gradients: -0.60 of +3.00 logits"
    assert describe_map(explanation, summed) == expected
    for promises_no_sum in (gradients, attention):
        assert describe_map(explanation, promises_no_sum) == promises_no_sum.title


def test_the_shares_of_several_findings_are_told_apart(explanation):
    other = replace(explanation, name="Normal", words=())
    caption = " ".join(_make_caption([explanation, other], 400).split())
    assert "Pleural Disease (Effusion / Thickening): image" in caption
    assert "; Normal: image 100%." in caption
    assert "attribution: image" in _make_caption([explanation], 400)


def test_even_attention_does_not_look_as_if_it_pointed(explanation):
    picture = render_map(explanation, explanation.maps[1]).astype(int)
    assert np.abs(picture[4 * 10, 4 * 88] - 120).max() > 80
    flat = make_map(np.full((7, 7), 1 / 49, np.float32), signed=False)
    even = render_map(explanation, flat).astype(int)
    assert np.abs(even - 120).max() < 60


def test_a_map_lands_where_the_radiograph_shows_it():
    """A box of the radiograph, put into the square and back, covers the same pixels."""
    frame = Frame.fit(300, 200, 112)
    values = np.zeros((112, 112), np.float32)
    x0, y0, x1, y1 = (round(edge) for edge in frame.place_box((50, 60, 150, 120)))
    values[y0:y1, x0:x1] = 1
    back = unfit_map(values, frame) > 0.5
    assert back.shape == (300, 200)
    expected = np.zeros((300, 200), bool)
    expected[60:120, 50:150] = True
    assert (back & expected).sum() / (back | expected).sum() > 0.9


def test_full_resolution_files(explanation, tmp_path: Path):
    written = write_maps([explanation], tmp_path / "maps")
    names = [path.name for path in written]
    assert names == ["pleural-integrated_gradients.png", "pleural-attention.png", "maps.npz"]
    with Image.open(written[0]) as picture:
        assert picture.size[0] == 448
        assert picture.size[1] > 336  # the legend stands below
        np.testing.assert_array_equal(np.asarray(picture)[:336], render_map(explanation, explanation.maps[0]))
    with np.load(written[-1]) as arrays:
        np.testing.assert_array_equal(arrays["pleural/attention"], make_attention())
        assert arrays["frame"].tolist() == [336, 448, 112, 14, 0, 84, 112]


@pytest.mark.parametrize(
    ("orientation", "sides"),
    [("L\\F", ("R", "L")), ("R\\F", ("L", "R")), ("A\\F", None), ("", None)],
)
def test_sides_are_marked_only_if_known(orientation, sides, explanation):
    assert find_sides(orientation) == sides
    plain = render_map(explanation, explanation.maps[1])
    marked = render_map(replace(explanation, orientation=orientation), explanation.maps[1])
    assert (marked != plain).any() == (sides is not None)


def test_the_box_is_where_the_attribution_is_highest():
    box = find_hottest_box(make_attribution())
    assert box.left < 84 / 112 < box.right
    assert box.top < 28 / 112 < box.bottom
    assert box.right - box.left < 0.3
    assert find_hottest_box(-np.abs(make_attribution())) is None
    assert find_hottest_box(np.zeros((112, 112), np.float32)) is None


def test_smoothing_keeps_signs_and_range():
    smoothed = smooth_attribution(1e-4 * make_attribution(), 448)
    assert smoothed.shape == (448, 448)
    assert smoothed.dtype == np.float32
    assert smoothed.max() == pytest.approx(1, abs=0.02)
    assert smoothed.min() == pytest.approx(-1, abs=0.02)
    assert not smooth_attribution(np.zeros((112, 112), np.float32), 448).any()


def test_maps_of_pixels_and_of_patches_have_one_size():
    shown = smooth_map(make_attribution(), 112)
    assert np.unravel_index(shown.argmax(), shown.shape) == pytest.approx((28, 84), abs=2)
    assert np.unravel_index(shown.argmin(), shown.shape) == pytest.approx((84, 28), abs=2)
    patches = smooth_map(make_attention(), 112)
    assert np.unravel_index(patches.argmax(), patches.shape) == pytest.approx((24, 88), abs=2)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_png_holds_the_pixels(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(encode_png(array))) as picture:
        np.testing.assert_array_equal(np.asarray(picture), array)


def test_path_that_cannot_be_written(explanation, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="Could not write"):
        write_overlay(explanation, tmp_path / "file" / "overlay.png")
    (tmp_path / "directory").mkdir()
    with pytest.raises(ConfigError, match="is a directory"):
        write_overlay(explanation, tmp_path / "directory")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "file"]
