"""The text and the colours below a picture, as pixels. Fonts keep a legible size, so narrow pictures get more lines."""

import textwrap
from collections.abc import Sequence
from typing import Any, Final

from client.explain.geometry import Picture
from client.explain.overlay import describe_colours, draw_colour_bar, start_figure, take_strip
from client.explanation import ImageMap

_WIDEST: Final = 7.0  # inches; a wider picture has larger fonts
_DPI: Final = 90  # of a narrow picture
_LINE_INCHES: Final = 0.15
_LINE_CHARS: Final = 15  # for each inch
_BAR_INCHES: Final = 0.42


def draw_text_strip(paragraphs: Sequence[str], columns: int, *, bold: bool = False) -> Picture:
    """Return text as a white strip (H, columns, 3) uint8.

    Args:
        paragraphs: The text; a long paragraph is wrapped.
        columns: Width, in pixels.
        bold: Whether the text is bold.
    """
    chars = round(_LINE_CHARS * _find_width(columns))
    lines = [line for text in paragraphs for line in textwrap.wrap(text, chars) or [""]]
    height = _LINE_INCHES * (len(lines) + 0.8)
    figure = _start(columns, height)
    weight = "bold" if bold else "normal"
    place = {"x": 0.01, "y": 1 - 0.4 * _LINE_INCHES / height}
    figure.text(**place, s="\n".join(lines), fontsize=8, va="top", linespacing=1.25, weight=weight)
    return take_strip(figure, columns)


def draw_colour_strip(found: ImageMap, columns: int) -> Picture:
    """Return the colours of a map with the meaning of both ends as a white strip (H, columns, 3) uint8."""
    figure = _start(columns, _BAR_INCHES)
    draw_colour_bar(figure, *describe_colours(found), (0.01, 0.6, 0.98, 0.3))
    return take_strip(figure, columns)


def _find_width(columns: int) -> float:
    return min(_WIDEST, columns / _DPI)


def _start(columns: int, height: float) -> Any:
    width = _find_width(columns)
    return start_figure(width, height, columns / width)
