"""The styles of the page on a phone, in dark mode and on paper."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("client/page.html", "training/data/audit/page.html")
TEXT = ("ink", "soft", "for", "against", "truth", "alarm", "warn")
BEHIND = ("paper", "ground")


def read_style(name: str) -> str:
    return re.search(r"<style>(.*)</style>", (ROOT / name).read_text(), flags=re.DOTALL)[1]


def read_colours(style: str) -> dict[str, dict[str, str]]:
    """Return the colours by name, in light and in dark mode."""
    roots = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    assert len(roots) == 2
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", root)) for root in roots)
    assert set(dark) == set(light), "a colour has no dark counterpart"
    return {"light": light, "dark": dark}


def compute_luminance(colour: str) -> float:
    """Return the relative luminance (WCAG 2.2) of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def compute_contrast(one: str, other: str) -> float:
    high, low = sorted((compute_luminance(one), compute_luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_known_colours():
    assert compute_contrast("#fff", "#000000") == pytest.approx(21)
    assert compute_contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_every_text_can_be_read_on_every_ground(page, mode):
    colours = read_colours(read_style(page))[mode]
    pairs = [(text, ground) for text in TEXT for ground in BEHIND if text in colours]
    if "alarm-ground" in colours:
        pairs += [("ink", "alarm-ground"), ("alarm", "alarm-ground")]
    weak = {pair: compute_contrast(*(colours[name] for name in pair)) for pair in pairs}
    assert len(pairs) >= 6
    assert {pair: value for pair, value in weak.items() if value < 4.5} == {}


@pytest.mark.parametrize("page", PAGES)
def test_dark_is_dark_and_paper_stays_white(page):
    style = read_style(page)
    colours = read_colours(style)
    assert compute_luminance(colours["dark"]["ground"]) < 0.05 < compute_luminance(colours["light"]["ground"])
    assert set(re.findall(r"@media ([^{]*prefers-color-scheme[^{]*) \{", style)) == {
        "screen and (prefers-color-scheme: dark)"
    }


@pytest.mark.parametrize("page", PAGES)
def test_no_colour_is_fixed_where_it_has_a_dark_counterpart(page):
    """A colour outside the variables would stay light in dark mode; the banner and what is printed may."""
    style = re.sub(r"@media print \{.*", "", read_style(page), flags=re.DOTALL)
    rules = re.sub(r":root \{.*?\}", "", style, flags=re.DOTALL)
    fixed = [line.strip() for line in rules.splitlines() if re.search(r"#[0-9a-f]{3,6}\b", line)]
    allowed = (
        ".banner",
        "img",
        ".read {",
    )  # white on red; black behind, or white under, a picture; words on white
    assert [line for line in fixed if not line.startswith(allowed)] == []
    assert "(max-width: 44rem)" in style
