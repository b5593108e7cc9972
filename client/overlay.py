"""Draw an explanation over the radiograph: pixels that speak for and against the finding, and the model's attention.

Pixels for the finding are orange inside a solid line, pixels against it are blue inside a dotted line. So colour is not
the only cue.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from client.attribution import STRONG_LEVEL, Array, import_cv2, make_missing_error, smooth_attribution
from contract.errors import ConfigError
from contract.files import write_file

if TYPE_CHECKING:
    from client.explanation import Explanation

FOR_COLOUR: Final = (255, 140, 26)
AGAINST_COLOUR: Final = (64, 160, 255)
ATTENTION_COLOUR: Final = (64, 224, 160)
STRONGEST: Final = 0.8  # opacity of the largest value
ATTENTION_TOP: Final = 3.0  # at least so many times the even attention get the full colour
PANEL_INCHES: Final = 3.9
GAP_INCHES: Final = 0.15
FIGURE_INCHES: Final = (3 * PANEL_INCHES + 4 * GAP_INCHES, PANEL_INCHES + 1.8)

Picture = NDArray[np.uint8]


def render_overlay(explanation: "Explanation") -> Picture:
    """Draw the Integrated Gradients over the radiograph: (R, R, 3) uint8.

    Raises:
        ConfigError: The explanation has no image.
    """
    radiograph, attribution = explanation.radiograph, explanation.pixel_attribution
    if radiograph is None or attribution is None:
        raise _make_image_error()
    signed = smooth_attribution(attribution, len(radiograph))
    opacity = np.abs(signed) ** 1.5  # the exponent keeps weak spots from veiling the radiograph
    picture = _blend(radiograph, opacity * (signed > 0), FOR_COLOUR)
    picture = _blend(picture, opacity * (signed < 0), AGAINST_COLOUR)
    picture = _outline(picture, signed >= STRONG_LEVEL, dotted=False)
    return _outline(picture, signed <= -STRONG_LEVEL, dotted=True)


def render_attention(explanation: "Explanation") -> Picture:
    """Draw the label's attention over the radiograph, one block per patch: (R, R, 3) uint8.

    Raises:
        ConfigError: The explanation has no image.
    """
    radiograph, attention = explanation.radiograph, explanation.patch_attention
    if radiograph is None or attention is None:
        raise _make_image_error()
    cv2 = import_cv2()
    side = len(radiograph)
    top = max(float(attention.max()), ATTENTION_TOP / attention.size)
    blocks = cv2.resize(attention / top, (side, side), interpolation=cv2.INTER_NEAREST)
    return _blend(radiograph, blocks.astype(np.float32), ATTENTION_COLOUR)


def encode_png(array: NDArray[np.uint8]) -> bytes:
    """Encode (H, W) grey or (H, W, 3) RGB uint8 as a PNG file."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise make_missing_error() from error
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_overlay(explanation: "Explanation", path: Path) -> bool:
    """Write the radiograph, the Integrated Gradients and the attention side by side as a PNG file.

    Args:
        explanation: The explanation.
        path: The file; see `contract.files`.

    Returns:
        Whether the explanation has an image. Without one, no file is written.

    Raises:
        ConfigError: The path is a directory, or the `explain` extra is not installed.
        ArtifactError: The file cannot be written. An existing file is not changed.
    """
    if explanation.radiograph is None:
        return False
    write_file(path, _draw_figure(explanation))
    return True


def _draw_figure(explanation: "Explanation") -> bytes:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise make_missing_error() from error
    figure = Figure(figsize=FIGURE_INCHES, dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    width, height = FIGURE_INCHES
    panels = (
        ("Radiograph", explanation.radiograph),
        ("Integrated Gradients", render_overlay(explanation)),
        ("Attention of the label", render_attention(explanation)),
    )
    for column, (title, picture) in enumerate(panels):
        left = GAP_INCHES + column * (PANEL_INCHES + GAP_INCHES)
        axes = figure.add_axes((left / width, 1.0 / height, PANEL_INCHES / width, PANEL_INCHES / height))
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_axis_off()
    _add_words(figure, explanation)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _add_words(figure: Any, explanation: "Explanation") -> None:
    """Write the title, the meaning of the colours, and the caption."""
    width, height = FIGURE_INCHES
    columns = [GAP_INCHES + column * (PANEL_INCHES + GAP_INCHES) for column in range(3)]
    attention = explanation.patch_attention
    highest = 0.0 if attention is None else float(attention.max())
    even = 0.0 if attention is None else 1 / attention.size
    keys = (
        (columns[1], FOR_COLOUR, "for (solid line)"),
        (columns[1] + 1.55, AGAINST_COLOUR, "against (dotted line)"),
        (columns[2], ATTENTION_COLOUR, f"strongest patch {highest:.1%}, even attention {even:.1%}"),
    )
    for left, colour, meaning in keys:
        shade = [part / 255 for part in colour]
        figure.text(left / width, 0.84 / height, "■", fontsize=13, color=shade, va="center")
        figure.text((left + 0.2) / width, 0.84 / height, meaning, fontsize=9.5, va="center")
    left, top = GAP_INCHES / width, 1 - 0.28 / height
    title = (
        f"{explanation.name}: probability {explanation.probability:.3f}, {explanation.verdict}; "
        f"input: {explanation.kind}"
    )
    figure.text(left, top, title, fontsize=13, weight="bold", va="center")
    figure.text(
        left, 0.14 / height, _make_caption(explanation), fontsize=8.5, color="#444444", linespacing=1.5
    )


def _make_caption(explanation: "Explanation") -> str:
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in explanation.shares.items())
    return (
        f"Baseline: {explanation.baseline}. Logit {explanation.logit:+.2f}, baseline logit "
        f"{explanation.baseline_logit:+.2f}; {explanation.steps} steps, "
        f"{explanation.relative_delta:.1%} of the difference unexplained.\n"
        f"Share of the absolute attribution: {shares}. "
        f"Model {explanation.fingerprint[:12]}. Research and teaching only: never a diagnosis."
    )


def _blend(picture: Picture, opacity: Array, colour: tuple[int, int, int]) -> Picture:
    """Blend a colour over a grey or RGB picture. `opacity` is (R, R), 0 to 1."""
    base = picture[..., None].repeat(3, axis=2) if picture.ndim == 2 else picture
    alpha = (STRONGEST * opacity)[..., None]
    mixed = base * (1 - alpha) + np.array(colour, np.float32) * alpha
    return np.rint(np.clip(mixed, 0, 255)).astype(np.uint8)


def _outline(picture: Picture, mask: NDArray[np.bool_], *, dotted: bool) -> Picture:
    """Draw a white line around the areas of a mask. A dotted line has a dot on every sixth pixel."""
    cv2 = import_cv2()
    drawn = picture.copy()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        if not dotted:
            cv2.drawContours(drawn, [contour], -1, (255, 255, 255), 1, cv2.LINE_AA)
            continue
        for point in contour[::6, 0]:
            cv2.circle(drawn, tuple(int(value) for value in point), 1, (255, 255, 255), -1, cv2.LINE_AA)
    return drawn


def _make_image_error() -> ConfigError:
    return ConfigError("The explanation has no image, so there is nothing to draw.")
