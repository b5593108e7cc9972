"""Draw maps over the radiograph, in its own geometry, with a legend that says what they mean.

Colours are perceptually uniform and safe for colour-blind readers. What speaks for the finding is orange to yellow
inside a solid line, what speaks against it is blue inside a dotted line (Crameri's "managua"). So colour is not the
only cue. A map without signs is drawn in "viridis".
"""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.explain.geometry import Picture, find_sides, unfit_map
from client.explain.maps import STRONG_LEVEL, Array, import_cv2, make_missing_error, smooth_map
from client.explanation import Explanation, ImageMap
from contract.errors import ConfigError
from contract.files import write_file
from contract.image.frame import Frame
from contract.notes import NOTICE

STRONGEST: Final = 0.8  # opacity of the largest value
FULL_COLOUR: Final = 3.0  # a map without signs has the full colour from so many times its mean on
PANEL_SIDE: Final = 720  # pixels, longer side of a radiograph in a figure
PANEL_INCHES: Final = 4.0
GAP_INCHES: Final = 0.2
TITLE_INCHES: Final = 0.75
LEGEND_INCHES: Final = 1.05
LEAST_INCHES: Final = 7.5  # width of a figure, so that its text fits
DPI: Final = 120
LIMITS: Final = (
    "A map shows what moved this model, not what the patient has. It may be right for the wrong reason, and it may "
    "miss what the model used."
)


def render_map(explanation: Explanation, found: ImageMap, *, longest: int | None = None) -> Picture:
    """Draw one map over the radiograph: (rows, columns, 3) uint8, without the padding.

    Args:
        explanation: The explanation that the map belongs to.
        found: One of its maps.
        longest: Longer side of the picture, in pixels. None: that of the radiograph.

    Raises:
        ConfigError: The explanation has no image.
    """
    picture, frame = _take_radiograph(explanation)
    drawn = render_values(picture, frame, found.values, signed=found.signed, longest=longest)
    return _mark_sides(drawn, explanation.orientation)


def render_plain(explanation: Explanation, *, longest: int | None = None) -> Picture:
    """Draw the radiograph without a map: (rows, columns, 3) uint8, with the sides of the patient if they are known.

    Args:
        explanation: The explanation.
        longest: Longer side of the picture, in pixels. None: that of the radiograph.

    Raises:
        ConfigError: The explanation has no image.
    """
    picture = _resize(_take_radiograph(explanation)[0], longest)
    return _mark_sides(picture[..., None].repeat(3, axis=2), explanation.orientation)


def find_strong(explanation: Explanation, found: ImageMap) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return where a map speaks strongly for the finding, and where against it: (rows, columns) of the radiograph.

    A map without a sign speaks against nothing, and one that is nearly even has no strong spot.

    Raises:
        ConfigError: The explanation has no image.
    """
    _, frame = _take_radiograph(explanation)
    strength = _measure_strength(found.values, frame, signed=found.signed)
    return strength >= STRONG_LEVEL, strength <= -STRONG_LEVEL


def render_values(
    picture: Picture, frame: Frame, values: Array, *, signed: bool, longest: int | None = None
) -> Picture:
    """Draw values over a radiograph: (rows, columns, 3) uint8.

    Args:
        picture: (rows, columns), the radiograph.
        frame: Where it lies in the square that the model reads.
        values: (H, H), over that square.
        signed: Whether a value below 0 speaks against the finding.
        longest: Longer side of the result, in pixels. None: that of the radiograph.
    """
    picture = _resize(picture, longest)
    frame = replace(frame, rows=picture.shape[0], columns=picture.shape[1])
    strength = _measure_strength(values, frame, signed=signed)
    if not signed:
        return _blend(picture, strength, _look_up("viridis", strength))
    drawn = _blend(
        picture, np.abs(strength) ** 1.5, _look_up("managua_r", (strength + 1) / 2)
    )  # weak spots fade
    drawn = _outline(drawn, strength >= STRONG_LEVEL, dotted=False)
    return _outline(drawn, strength <= -STRONG_LEVEL, dotted=True)


def write_overlay(explanations: Explanation | Sequence[Explanation], path: Path) -> bool:
    """Write the radiograph and the maps of each finding side by side as a PNG file, one row for each finding.

    Args:
        explanations: Explanations of one case.
        path: The file; see `contract.files`.

    Returns:
        Whether the case has an image. Without one, no file is written.

    Raises:
        ConfigError: The path is a directory, or the `explain` extra is not installed.
        ArtifactError: The file cannot be written. An existing file is not changed.
    """
    rows = [explanations] if isinstance(explanations, Explanation) else list(explanations)
    if not rows or rows[0].radiograph is None:
        return False
    write_file(path, _draw_figure(rows))
    return True


def describe_colours(found: ImageMap) -> tuple[str, str, str]:
    """Return the name of the colours of a map, and what their lower and their upper end mean."""
    if found.signed:
        return "managua_r", "speaks against (dotted line)", "speaks for (solid line)"
    return "viridis", "nothing", _describe_top(found)


def _describe_top(found: ImageMap) -> str:
    if found.unit != "share of the attention":
        return "strongest"
    total = max(float(found.values.sum()), 1e-12)
    return (
        f"{float(found.values.max()) / total:.1%} in the strongest patch; even: {1 / found.values.size:.1%}"
    )


def describe_map(explanation: Explanation, found: ImageMap) -> str:
    """Return the name of a map. If its values sum to a difference of logits, also how much of it the pixels moved.

    The colours of each map reach to its own largest value. So a map of pixels that moved nearly nothing looks as strong
    as any other.
    """
    if found.delta is None:
        return found.title
    moved = float(found.values.sum(dtype=np.float64))
    whole = explanation.logit - explanation.baseline_logit
    return f"{found.title}: {moved:+.2f} of {whole:+.2f} logits"


def describe_finding(explanation: Explanation) -> str:
    """Return which finding is explained, with its probability against its threshold."""
    read = {"study": "image and report", "image": "the image alone", "text": "the report alone"}
    return (
        f"{explanation.name}: probability {explanation.probability:.3f}, {explanation.verdict}; "
        f"read from {read[explanation.kind]}{_name_view(explanation)}"
    )


def _name_view(explanation: Explanation) -> str:
    return f"; image {explanation.view} of {explanation.views}" if explanation.views > 1 else ""


def _take_radiograph(explanation: Explanation) -> tuple[Picture, Frame]:
    """Return the radiograph in its own geometry, and where it lies in the square that the model reads."""
    if explanation.radiograph is None:
        raise ConfigError("The explanation has no image, so there is nothing to draw.")
    if explanation.original is not None and explanation.frame is not None:
        return explanation.original, explanation.frame
    square = explanation.radiograph
    return square, Frame.fit(square.shape[0], square.shape[1], len(square))


def _measure_strength(values: Array, frame: Frame, *, signed: bool) -> Array:
    """Return how strongly a map speaks where: (rows, columns), -1 to 1; 0 to 1 without a sign."""
    strength = unfit_map(smooth_map(values, frame.size), frame)
    if signed:
        return strength
    return np.clip(strength, 0, 1) * _find_contrast(values)


def _resize(picture: Picture, longest: int | None) -> Picture:
    """Scale a picture to a longer side, in pixels; None leaves it as it is."""
    if longest is None or longest == max(picture.shape):
        return picture
    cv2 = import_cv2()
    scale = longest / max(picture.shape)
    rows, columns = (max(1, round(side * scale)) for side in picture.shape)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (columns, rows), interpolation=method))


def _find_contrast(values: Array) -> float:
    """Return the opacity of the largest value, 0 to 1: a map that is nearly even must not look as if it pointed."""
    top = float(values.max())
    return top / max(top, FULL_COLOUR * float(values.mean()), 1e-12)


def _look_up(name: str, values: Array) -> NDArray[np.uint8]:
    """Return the colours (R, C, 3) of values (R, C), 0 to 1."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise make_missing_error() from error
    colours: NDArray[np.uint8] = mpl.colormaps[name](values, bytes=True)[..., :3]
    return colours


def _blend(picture: Picture, opacity: Array, colours: NDArray[np.uint8]) -> Picture:
    """Blend colours (R, C, 3) over a grey picture (R, C). `opacity` is (R, C), 0 to 1."""
    alpha = (STRONGEST * opacity)[..., None]
    mixed = picture[..., None] * (1 - alpha) + colours * alpha
    return np.rint(np.clip(mixed, 0, 255)).astype(np.uint8)


def _outline(picture: Picture, mask: NDArray[np.bool_], *, dotted: bool) -> Picture:
    """Draw a white line around the areas of a mask."""
    cv2 = import_cv2()
    drawn = picture.copy()
    width = max(1, round(max(picture.shape) / 600))
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        if not dotted:
            cv2.drawContours(drawn, [contour], -1, (255, 255, 255), width, cv2.LINE_AA)
            continue
        for point in contour[:: 6 * width, 0]:
            cv2.circle(drawn, tuple(int(value) for value in point), width, (255, 255, 255), -1, cv2.LINE_AA)
    return drawn


def _mark_sides(picture: Picture, orientation: str) -> Picture:
    """Write the sides of the patient at the edges of the picture, if the file states them."""
    sides = find_sides(orientation)
    if sides is None:
        return picture
    rows, columns = picture.shape[:2]
    scale = max(rows, columns) / 700
    for side, column in zip(sides, (round(12 * scale), columns - round(32 * scale)), strict=True):
        write_text(picture, side, (column, rows // 2), scale)
    return picture


def write_text(picture: Picture, text: str, place: tuple[int, int], scale: float) -> Picture:
    """Write white text with a black edge into a picture (rows, columns, 3), and return the picture.

    Args:
        picture: It is changed.
        text: ASCII.
        place: Column and row of the lower left corner of the text.
        scale: Size of the text; at 1, capitals are about 22 pixels high.
    """
    cv2 = import_cv2()
    width = max(1, round(2 * scale))
    for colour, thickness in (((0, 0, 0), 3 * width), ((255, 255, 255), width)):
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)
    return picture


def start_figure(width: float, height: float, dpi: float) -> Any:
    """Return a figure of a size in inches that draws into memory."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise make_missing_error() from error
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _draw_figure(rows: Sequence[Explanation]) -> bytes:
    square = _take_radiograph(rows[0])[0].shape
    panel_width = PANEL_INCHES * min(1.0, square[1] / square[0])
    panel_height = panel_width * square[0] / square[1]
    panels = 1 + max(len(row.maps) for row in rows)
    width = max(panels * (panel_width + GAP_INCHES) + GAP_INCHES, LEAST_INCHES)
    row_height = TITLE_INCHES + panel_height + LEGEND_INCHES
    caption = _make_caption(rows, round(width * 15))
    below = 0.25 + 0.16 * (caption.count("\n") + 1)
    height = len(rows) * row_height + below
    figure = start_figure(width, height, DPI)
    for number, explanation in enumerate(rows):
        _draw_row(figure, explanation, height - number * row_height, (panel_width, panel_height))
    place = {"x": GAP_INCHES / width, "y": 0.1 / height}
    figure.text(**place, s=caption, fontsize=8, color="#333333", linespacing=1.4, va="bottom")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_row(figure: Any, explanation: Explanation, top: float, panel: tuple[float, float]) -> None:
    """Draw the title, the radiograph and the maps of one finding. `top` and `panel` are in inches from the bottom."""
    width, height = figure.get_size_inches()
    title = textwrap.fill(describe_finding(explanation), round(width * 10.5))
    figure.text(GAP_INCHES / width, (top - 0.12) / height, title, fontsize=11.5, va="top", weight="bold")
    drawn: list[tuple[str, Picture, ImageMap | None]] = [
        ("Radiograph", render_plain(explanation, longest=PANEL_SIDE), None)
    ]
    drawn += [
        (describe_map(explanation, found), render_map(explanation, found, longest=PANEL_SIDE), found)
        for found in explanation.maps
    ]
    bottom = top - TITLE_INCHES - panel[1]
    for column, (name, picture, found) in enumerate(drawn):
        left = GAP_INCHES + column * (panel[0] + GAP_INCHES)
        axes = figure.add_axes((left / width, bottom / height, panel[0] / width, panel[1] / height))
        axes.imshow(picture, interpolation="antialiased")
        axes.set_title(textwrap.fill(name, round(panel[0] * 14)), fontsize=9.5, loc="left", pad=3)
        axes.set_axis_off()
        if found is not None:
            bar = (left / width, (bottom - 0.2) / height, panel[0] / width, 0.1 / height)
            draw_legend(figure, found, bar, panel[0])


def draw_legend(
    figure: Any, found: ImageMap, place: tuple[float, float, float, float], inches: float
) -> None:
    """Draw the colours of a map with the meaning of both ends, and below them its caveat.

    `place` is left, bottom, width, height, 0 to 1, and `inches` the width of the caveat.
    """
    draw_colour_bar(figure, *describe_colours(found), place)
    if found.caveat:
        left, bottom, _, height = place
        text = textwrap.fill(found.caveat, round(inches * 16))
        figure.text(left, bottom - 2.4 * height, text, fontsize=7.5, va="top", color="#a03000", weight="bold")


def draw_colour_bar(
    figure: Any, name: str, low: str, high: str, place: tuple[float, float, float, float]
) -> None:
    """Draw the colours `name` with the meaning of both ends; `place` is left, bottom, width, height, 0 to 1."""
    bar = figure.add_axes(place)
    bar.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=name)
    bar.set_axis_off()
    left, bottom, width, height = place
    figure.text(left, bottom - 0.4 * height, low, fontsize=8, va="top")
    figure.text(left + width, bottom - 0.4 * height, high, fontsize=8, va="top", ha="right")


def take_strip(figure: Any, columns: int) -> Picture:
    """Return a figure as a strip (H, columns, 3): white columns are added, or the last ones cut off."""
    figure.canvas.draw()
    strip = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    missing = max(0, columns - strip.shape[1])
    return np.ascontiguousarray(
        np.pad(strip[:, :columns], ((0, 0), (0, missing), (0, 0)), constant_values=255)
    )


def _make_caption(rows: Sequence[Explanation], columns: int) -> str:
    first = rows[0]
    shares = "; ".join(_describe_shares(row, named=len(rows) > 1) for row in rows)
    parts = [
        LIMITS,
        *dict.fromkeys(remark for row in rows for remark in row.remarks if remark not in _list_caveats(rows)),
        f"Share of image and report in the absolute attribution: {shares}. Baseline: {first.baseline}. "
        f"Model {first.fingerprint[:12]}. {NOTICE}",
    ]
    return "\n".join(textwrap.fill(part, columns) for part in parts)


def _describe_shares(row: Explanation, *, named: bool) -> str:
    """Return what image and report have of the attribution, after the finding if there are several."""
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in row.shares.items())
    return f"{row.name}{_name_view(row)}: {shares}" if named else shares


def _list_caveats(rows: Sequence[Explanation]) -> set[str]:
    return {found.caveat for row in rows for found in row.maps}
