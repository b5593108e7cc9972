"""Draw why a query and a hit are similar: both radiographs side by side, with what adds to their cosine."""

import io
import textwrap
from pathlib import Path
from typing import Final

from client.explain.hit import HitExplanation, Side
from client.explain.overlay import (
    DPI,
    GAP_INCHES,
    PANEL_INCHES,
    PANEL_SIDE,
    draw_colour_bar,
    render_values,
    start_figure,
)
from contract.files import write_file
from contract.notes import NOTICE

SHOWN_WORDS: Final = 10
_TEXT_INCHES: Final = 1.5


def write_hit_overlay(found: HitExplanation, path: Path, hit_id: str) -> bool:
    """Write the query and the hit side by side as a PNG file.

    Args:
        found: The explanation.
        path: The file; see `contract.files`.
        hit_id: Name of the hit in the title.

    Returns:
        Whether one of both has an image. Without one, no file is written.

    Raises:
        ConfigError: The path is a directory, or the `explain` extra is not installed.
        ArtifactError: The file cannot be written. An existing file is not changed.
    """
    if found.query.original is None and found.hit.original is None:
        return False
    write_file(path, _draw_figure(found, hit_id))
    return True


def _draw_figure(found: HitExplanation, hit_id: str) -> bytes:
    width = 2 * (PANEL_INCHES + GAP_INCHES) + GAP_INCHES
    height = PANEL_INCHES + 2.1 + _TEXT_INCHES
    figure = start_figure(width, height, DPI)
    title = f"Why {hit_id} is similar: cosine {found.similarity:.3f}"
    figure.text(GAP_INCHES / width, 1 - 0.15 / height, title, fontsize=12, weight="bold", va="top")
    bottom = height - 0.85 - PANEL_INCHES
    for number, (name, side) in enumerate((("Query", found.query), (f"Hit {hit_id}", found.hit))):
        left = GAP_INCHES + number * (PANEL_INCHES + GAP_INCHES)
        place = (left / width, bottom / height, PANEL_INCHES / width, PANEL_INCHES / height)
        axes = figure.add_axes(place)
        axes.set_title(name, fontsize=10, loc="left", pad=3)
        axes.set_axis_off()
        if side.original is None or side.pixel_attribution is None or side.frame is None:
            axes.text(0.5, 0.5, "The report alone", ha="center", va="center", fontsize=10, color="#555555")
        else:
            picture = render_values(
                side.original, side.frame, side.pixel_attribution, signed=True, longest=PANEL_SIDE
            )
            axes.imshow(picture, interpolation="antialiased")
        text = textwrap.fill(_describe_side(side), 62)
        figure.text(left / width, (bottom - 0.62) / height, text, fontsize=8, va="top")
    bar = (GAP_INCHES / width, (bottom - 0.22) / height, 1 - 2 * GAP_INCHES / width, 0.1 / height)
    draw_colour_bar(figure, "managua_r", "less similar (dotted line)", "more similar (solid line)", bar)
    caption = (
        "Integrated Gradients of the cosine of both embeddings, from a black image and a report of [PAD], on each side "
        f"with the other one fixed. It shows what moved this model. Model {found.fingerprint[:12]}. {NOTICE}"
    )
    figure.text(
        GAP_INCHES / width,
        0.1 / height,
        textwrap.fill(caption, 120),
        fontsize=8,
        color="#333333",
        va="bottom",
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _describe_side(side: Side) -> str:
    strongest = sorted(side.words, key=lambda word: -abs(word.attribution))[:SHOWN_WORDS]
    words = ", ".join(f"{word.text} {word.attribution:+.3f}" for word in strongest)
    return f"{side.describe()}." + (f" Words: {words}." if strongest else "")
