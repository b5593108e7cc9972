"""Each map as a picture at the full resolution of the radiograph, and the values of all maps."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from client.explain.geometry import Picture
from client.explain.maps import encode_png
from client.explain.overlay import (
    LIMITS,
    describe_finding,
    describe_map,
    draw_legend,
    render_map,
    start_figure,
    take_strip,
)
from client.explanation import Explanation, ImageMap
from contract.files import write_file
from contract.notes import NOTICE


def write_maps(explanations: Sequence[Explanation], directory: Path) -> list[Path]:
    """Write each map at the full resolution of the radiograph, with its legend below, and all values as maps.npz.

    The arrays of maps.npz are named finding/method, (H, H) float32 over the square that the model reads. `frame` holds
    the rows and columns of the radiograph, the side of the square, and where the radiograph lies in it: top, left,
    height, width. For the images of a study, all names end in view1, view2, and so on.

    Args:
        explanations: Explanations of one case with an image.
        directory: It is created if needed.

    Returns:
        The written files.

    Raises:
        ArtifactError: A file cannot be written.
    """
    written, arrays = [], {}
    for explanation in explanations:
        for found in explanation.maps:
            arrays[f"{explanation.key}/{found.method}{_end(explanation, '/')}"] = found.values
            picture = render_map(explanation, found)
            legend = _draw_legend_strip(explanation, found, picture.shape[1])
            path = directory / f"{explanation.key}-{found.method}{_end(explanation, '-')}.png"
            write_file(path, encode_png(np.vstack([picture, legend])))
            written.append(path)
    if not arrays:
        return []
    for explanation in explanations:
        if explanation.frame is not None:
            values = list(vars(explanation.frame).values())
            arrays[f"frame{_end(explanation, '/')}"] = np.array(values, np.int64)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_file(directory / "maps.npz", buffer.getvalue())
    return [*written, directory / "maps.npz"]


def _end(explanation: Explanation, separator: str) -> str:
    return f"{separator}view{explanation.view}" if explanation.views > 1 else ""


def _draw_legend_strip(explanation: Explanation, found: ImageMap, columns: int) -> Picture:
    """Return the legend of one map as a strip (H, columns, 3) uint8."""
    width, height = 7.0, 1.5
    dpi = columns / width
    figure = start_figure(width, height, dpi)
    title = f"{describe_finding(explanation)}. {describe_map(explanation, found)}."
    figure.text(0.01, 0.97, textwrap.fill(title, 100), fontsize=9, va="top", weight="bold")
    draw_legend(figure, found, (0.01, 0.56, 0.98, 0.08), 6.0)
    caption = textwrap.fill(f"{LIMITS} Model {explanation.fingerprint[:12]}. {NOTICE}", 125)
    figure.text(0.01, 0.02, caption, fontsize=7.5, va="bottom", color="#333333")
    return take_strip(figure, columns)
