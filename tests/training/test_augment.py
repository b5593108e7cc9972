"""Each change of a radiograph: what it does, how far it goes, and that it leaves alone what it should."""

import math

import pytest
import torch
from torch.nn import functional as F

from training.augment import COLUMNS, DRAWS, augment
from training.config.settings import AugmentConfig

SIZE = 64
OFF = {"rotation_degrees": 0.0, "scale": 0.0, "shift": 0.0, "gamma": 0.0, "gain": 0.0}
STRONG = AugmentConfig(30.0, 0.5, 0.3, 1.0, 0.8, noise=0.3, flip=True)
HIGHEST = 1.0 - 2.0**-24  # the largest float32 below 1
EACH = {
    "rotation_degrees": 10.0,
    "scale": 0.2,
    "shift": 0.1,
    "gamma": 0.5,
    "gain": 0.3,
    "noise": 0.1,
    "flip": True,
}


def only(**settings) -> AugmentConfig:
    """A config with nothing else switched on."""
    return AugmentConfig(**{**OFF, **settings})


def make_draws(count=1, **columns) -> torch.Tensor:
    """Draws in the middle, where a change of either sign does nothing, but for some columns."""
    draws = torch.full((count, DRAWS), 0.5)
    for name, value in columns.items():
        draws[:, COLUMNS.index(name)] = value
    return draws


def draw(count, seed=0) -> torch.Tensor:
    return torch.rand((count, DRAWS), generator=torch.Generator().manual_seed(seed))


def make_images(count, size=SIZE, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8, generator=generator)


def make_dot(right, down) -> torch.Tensor:
    """An image with a soft dot so many pixels right of and below the centre."""
    places = torch.arange(SIZE) + 0.5 - SIZE / 2
    dot = torch.exp(-((places[None, :] - right) ** 2 + (places[:, None] - down) ** 2) / 8)
    return (255 * dot).round().to(torch.uint8)[None, None]


def find_dot(image) -> tuple[float, float]:
    """Where the dot is: its centre of mass, in pixels right of and below the image's centre."""
    places = torch.arange(SIZE) + 0.5 - SIZE / 2
    weights = image[0, 0] / image.sum()
    return float((weights.sum(0) * places).sum()), float((weights.sum(1) * places).sum())


def change(pixels, config, draws, seed=0) -> torch.Tensor:
    return augment(pixels, config, draws, torch.Generator().manual_seed(seed))


def test_all_changes_off_give_the_values_back(monkeypatch):
    monkeypatch.setattr(F, "grid_sample", None)
    pixels = make_images(5)
    changed = change(pixels, only(), draw(5))
    assert changed.dtype == torch.float32
    assert torch.equal(changed, pixels.float())


@pytest.mark.parametrize("name", EACH)
def test_each_change_does_something_alone_and_keeps_the_original(name):
    pixels = make_images(16)
    kept = pixels.clone()
    assert not torch.equal(change(pixels, only(**{name: EACH[name]}), draw(16)), pixels.float())
    assert torch.equal(pixels, kept)


@pytest.mark.parametrize("name", sorted(set(EACH) - {"rotation_degrees", "scale", "shift"}))
def test_only_a_movement_interpolates(monkeypatch, name):
    monkeypatch.setattr(F, "grid_sample", None)
    change(make_images(2), only(**{name: EACH[name]}), draw(2))


@pytest.mark.parametrize(("drawn", "degrees"), [(0.0, -40), (0.25, -20), (0.5, 0), (HIGHEST, 40)])
def test_rotation_turns_counter_clockwise_up_to_its_bound(drawn, degrees):
    changed = change(make_dot(18, 0), only(rotation_degrees=40.0), make_draws(turn=drawn))
    right, down = find_dot(changed)
    assert math.degrees(math.atan2(-down, right)) == pytest.approx(degrees, abs=0.3)
    assert math.hypot(right, down) == pytest.approx(18, abs=0.1)


@pytest.mark.parametrize(("drawn", "share"), [(0.0, -0.2), (0.25, -0.1), (0.5, 0.0), (HIGHEST, 0.2)])
@pytest.mark.parametrize(("column", "axis"), [("right", 0), ("down", 1)])
def test_shift_moves_by_up_to_its_share_of_the_side(column, axis, drawn, share):
    moved = find_dot(change(make_dot(5, -7), only(shift=0.2), make_draws(**{column: drawn})))
    expected = [5.0, -7.0]
    expected[axis] += share * SIZE
    assert moved == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(("drawn", "factor"), [(0.0, 1 / 1.5), (0.25, 1.5**-0.5), (0.5, 1.0), (HIGHEST, 1.5)])
def test_scale_enlarges_by_up_to_its_bound(drawn, factor):
    changed = change(make_dot(12, -8), only(scale=0.5), make_draws(zoom=drawn))
    assert find_dot(changed) == pytest.approx([12 * factor, -8 * factor], abs=0.15)
    assert float(changed.sum() / make_dot(12, -8).sum()) == pytest.approx(factor**2, rel=0.02)


def test_an_image_is_turned_and_scaled_about_its_centre_before_it_is_shifted():
    config = only(rotation_degrees=45.0, scale=0.25, shift=0.1)
    changed = change(make_dot(12, 0), config, make_draws(turn=HIGHEST, zoom=HIGHEST, down=HIGHEST))
    side = 12 * 1.25 / math.sqrt(2)
    assert find_dot(changed) == pytest.approx([side, -side + 0.1 * SIZE], abs=0.15)


def test_what_comes_in_from_outside_is_black():
    white = torch.full((1, 1, SIZE, SIZE), 255, dtype=torch.uint8)
    shifted = change(white, only(shift=0.25), make_draws(right=HIGHEST))[0, 0]
    assert torch.equal(shifted[:, :15], torch.zeros(SIZE, 15))
    torch.testing.assert_close(shifted[:, 17:], torch.full((SIZE, SIZE - 17), 255.0), atol=1e-2, rtol=0)
    turned = change(white, only(rotation_degrees=45.0, gamma=2.0), make_draws(turn=0.0, gamma=0.0))[0, 0]
    assert turned[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0.0] * 4
    assert turned[32, 32] == pytest.approx(255.0)


def test_black_stays_black():
    black = torch.zeros((16, 1, SIZE, SIZE), dtype=torch.uint8)
    assert torch.equal(change(black, STRONG, draw(16)), black.float())


@pytest.mark.parametrize(("drawn", "logarithm"), [(0.0, -0.7), (0.25, -0.35), (0.5, 0.0), (HIGHEST, 0.7)])
def test_gamma_is_an_exponent_of_the_grey(drawn, logarithm):
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    changed = change(pixels, only(gamma=0.7), make_draws(gamma=drawn))
    expected = 255 * (pixels / 255.0) ** math.exp(logarithm)
    torch.testing.assert_close(changed, expected, atol=1e-3, rtol=0)
    assert changed[0, 0, 0, 0] == 0.0
    assert changed.max() == 255.0


@pytest.mark.parametrize(("drawn", "factor"), [(0.0, 0.7), (0.5, 1.0), (0.75, 1.15), (HIGHEST, 1.3)])
def test_gain_multiplies_the_grey_up_to_white(drawn, factor):
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    changed = change(pixels, only(gain=0.3), make_draws(gain=drawn))
    torch.testing.assert_close(changed, (pixels * factor).clamp(max=255.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("drawn", [0.25, 0.5, HIGHEST])
def test_noise_has_the_drawn_deviation_and_no_mean(drawn):
    grey = torch.full((4, 1, SIZE, SIZE), 128, dtype=torch.uint8)
    noise = change(grey, only(noise=0.1), make_draws(4, noise=drawn)) - 128.0
    assert float(noise.std()) == pytest.approx(255 * 0.1 * drawn, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.6)


def test_noise_alone_uses_the_generator():
    pixels, draws = make_images(2), draw(2)
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    augment(pixels, AugmentConfig(flip=True), draws, generator)
    assert torch.equal(generator.get_state(), before)
    first, again, other = (change(pixels, only(noise=0.2), draws, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_flip_mirrors_half_of_the_images():
    pixels = make_images(400, size=8)
    changed = change(pixels, only(flip=True), draw(400))
    mirrored = (changed == pixels.flip(-1)).flatten(1).all(1)
    same = (changed == pixels).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 0.4 < float(mirrored.float().mean()) < 0.6


@pytest.mark.parametrize("size", [1, 5, 40])
def test_an_image_is_changed_equally_in_any_batch(size):
    """To the last bit, though a processor computes cosines and powers of few numbers otherwise than of many."""
    config = AugmentConfig(20.0, 0.2, 0.1, 0.5, 0.3, flip=True)
    pixels, draws = make_images(1000, size=16), draw(1000)
    parts = zip(pixels.split(size), draws.split(size), strict=True)
    alone = torch.cat([change(part, config, drawn) for part, drawn in parts])
    assert torch.equal(alone, change(pixels, config, draws))


def test_switching_one_change_off_leaves_the_others():
    pixels, draws = make_images(8), draw(8)
    both = change(pixels, only(gamma=0.5, flip=True), draws)
    exposed, mirrored = (change(values, only(gamma=0.5), draws) for values in (pixels, pixels.flip(-1)))
    flipped = draws[:, COLUMNS.index("mirrored")] < 0.5
    assert 0 < flipped.sum() < len(flipped)
    assert torch.equal(both, torch.where(flipped[:, None, None, None], mirrored, exposed))


def test_the_strongest_changes_stay_in_range():
    draws = torch.cat([draw(16), torch.zeros(1, DRAWS), torch.full((1, DRAWS), HIGHEST)])
    config = AugmentConfig(45.0, 1.0, 1.0, 2.0, 1.0, noise=1.0, flip=True)
    for settings in (STRONG, config):
        changed = change(make_images(18), settings, draws)
        assert torch.isfinite(changed).all()
        assert changed.min() >= 0.0
        assert changed.max() <= 255.0


def test_no_images_are_no_error():
    assert change(make_images(0), STRONG, draw(0)).shape == (0, 1, SIZE, SIZE)


@pytest.mark.parametrize(
    ("pixels", "draws", "message"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.rand(2, DRAWS), "pixels must be"),
        (torch.zeros(2, 1, 8, 9, dtype=torch.uint8), torch.rand(2, DRAWS), "pixels must be"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), torch.rand(2, DRAWS), "pixels must be"),
        (torch.zeros(2, 1, 8, 8), torch.rand(2, DRAWS), "uint8, not .* torch.float32"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.rand(1, DRAWS), "draws must be"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.rand(2, DRAWS - 1), "draws must be"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.rand(2, DRAWS).double(), "torch.float64"),
    ],
)
def test_wrong_shapes_and_types_are_refused(pixels, draws, message):
    with pytest.raises(ValueError, match=message):
        change(pixels, AugmentConfig(), draws)


def test_nothing_reads_a_value_back():
    """Tensors of the meta device have no values: whatever would make the program wait for a GPU fails on them."""
    pixels = torch.empty((4, 1, 32, 32), dtype=torch.uint8, device="meta")
    config = AugmentConfig(flip=True)
    changed = augment(pixels, config, torch.empty((4, DRAWS), device="meta"), torch.Generator())
    assert changed.shape == pixels.shape


def test_autocast_does_not_blur_the_places():
    pixels, draws = make_images(4), draw(4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = change(pixels, AugmentConfig(), draws)
    assert torch.equal(inside, change(pixels, AugmentConfig(), draws))


def test_compile_makes_one_graph():
    config = AugmentConfig(flip=True)
    pixels, draws = make_images(4, size=32), draw(4)
    compiled = torch.compile(augment, fullgraph=True, backend="aot_eager")
    found = compiled(pixels, config, draws, torch.Generator())
    torch.testing.assert_close(found, change(pixels, config, draws), atol=1e-3, rtol=0)
