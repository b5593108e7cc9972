"""Pictures of explanations."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client import overlay
from client.attribution import find_hottest_box, smooth_attribution
from client.explanation import Explanation, WordAttribution
from client.overlay import (
    encode_png,
    render_attention,
    render_overlay,
    write_overlay,
)
from contract.errors import ArtifactError, ConfigError

pytest.importorskip("matplotlib")


def make_attribution() -> np.ndarray:
    """For the finding around (row 28, column 84), against it around (row 84, column 28)."""
    rows, columns = np.mgrid[0:112, 0:112]
    near = np.exp(-((rows - 28) ** 2 + (columns - 84) ** 2) / 128)
    far = np.exp(-((rows - 84) ** 2 + (columns - 28) ** 2) / 128)
    return (near - far).astype(np.float32)


@pytest.fixture
def explanation() -> Explanation:
    attention = np.full((7, 7), 0.5 / 48, np.float32)
    attention[1, 5] = 0.5
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
        patch_attention=attention,
        words=(WordAttribution("effusion", 0, 8, 1.0, 0.5),),
        report_text="effusion",
    )


@pytest.fixture
def text_only(explanation: Explanation) -> Explanation:
    return replace(explanation, kind="text", radiograph=None, pixel_attribution=None, patch_attention=None)


def test_overlay_is_a_picture_of_three_panels(explanation, tmp_path: Path):
    path = tmp_path / "new" / "overlay.png"
    assert write_overlay(explanation, path) is True
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        expected = tuple(round(120 * inches) for inches in overlay.FIGURE_INCHES)
        assert picture.size == expected
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    colourful = np.ptp(pixels, axis=2) > 60
    third = pixels.shape[1] // 3
    panels = slice(100, 560)
    assert not colourful[panels, :third].any()
    assert colourful[panels, third : 2 * third].any()
    assert colourful[panels, 2 * third :].any()
    assert list(path.parent.iterdir()) == [path]


def test_equal_explanations_give_equal_files(explanation, tmp_path: Path):
    for name in ("first.png", "second.png"):
        write_overlay(explanation, tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_without_an_image_nothing_is_written(text_only, tmp_path: Path):
    assert write_overlay(text_only, tmp_path / "overlay.png") is False
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="has no image"):
        render_overlay(text_only)
    with pytest.raises(ConfigError, match="has no image"):
        render_attention(text_only)


def test_colours_tell_for_from_against(explanation):
    picture = render_overlay(explanation).astype(int)
    assert picture.shape == (448, 448, 3)
    (red, _, blue), (back_red, _, back_blue) = picture[4 * 28, 4 * 84], picture[4 * 84, 4 * 28]
    assert red > blue + 80
    assert back_blue > back_red + 80
    np.testing.assert_array_equal(picture[8, 8], [120, 120, 120])  # far from both: the radiograph itself


def test_attention_is_drawn_in_blocks(explanation):
    picture = render_attention(explanation).astype(int)
    patch = picture[64:128, 320:384].reshape(-1, 3)
    assert len(np.unique(patch, axis=0)) == 1
    assert patch[0, 1] - patch[0, 0] > 80
    even = render_attention(replace(explanation, patch_attention=np.full((7, 7), 1 / 49, np.float32)))
    assert len(np.unique(even.reshape(-1, 3), axis=0)) == 1
    assert int(even[0, 0, 1]) - int(even[0, 0, 0]) < 80  # even attention is no strong attention


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
