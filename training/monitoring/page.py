"""Write a comparison as one HTML page, with its plots inside. It holds no path, no id and no text of a report."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from contract.errors import ConfigError
from contract.files import write_file
from contract.labels import LABEL_NAMES
from contract.notes import NOTICE
from training.monitoring.compare import RULE, Row
from training.monitoring.reference import Reference
from training.monitoring.results import Current
from training.monitoring.sample import CATEGORIES, IMAGE_STATISTICS, REPORT_STATISTICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS: Final[Mapping[str, str]] = {
    "no change seen": "#0b6e99",
    "changed": "#d9730d",
    "too few cases": "#bbbbbb",
}
WAYS: Final[Mapping[str, str]] = {
    "study": "Image and report",
    "image": "Image alone",
    "text": "Report alone",
}
_COLUMNS: Final = 4
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;font-size:13px}td,th{padding:.15rem .6rem;text-align:right;"
    "border-bottom:1px solid #ddd}td:first-child,th:first-child,td:last-child{text-align:left}img{max-width:100%}"
)


def write_page(
    reference: Reference, current: Current, rows: Sequence[Row], notes: Sequence[str], path: Path
) -> None:
    """Write the page.

    Args:
        reference: The reference.
        current: What was compared with it.
        rows: The rows of `training.monitoring.compare.compare`.
        notes: Sentences about the tables, for the top of the page.
        path: The file, which must end in .html.

    Raises:
        ConfigError: The path has another ending, or matplotlib is missing.
        ArtifactError: The file cannot be written.
    """
    check_page(path)
    parts = [f"<h1>Drift of model {escape(reference.fingerprint[:12])}</h1>"]
    parts += [f"<p>{escape(note)}</p>" for note in (*notes, f"Reference: {reference.source}", RULE)]
    for way in dict.fromkeys(row.way for row in rows):
        of_way = [row for row in rows if row.way == way]
        parts.append(f"<h2>{WAYS[way]}</h2>")
        parts.append(_embed(draw_psi(of_way), "Population stability index of each value"))
        inputs = [row for row in of_way if row.kind == "input"]
        if inputs:
            figure = draw_inputs(inputs, reference.ways[way].inputs, current.ways[way].inputs)
            parts.append(_embed(figure, "Distribution of each statistic of the inputs"))
        parts.append(_make_table(of_way))
    parts.append(f"<p>{escape(NOTICE)}</p>")
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>Drift</title><style>{_STYLE}</style>'
    write_file(path, f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n')


def check_page(path: Path) -> None:
    """Raise ConfigError if a page cannot be written to a path. Call this before comparing anything."""
    if path.suffix != ".html":
        raise ConfigError(f"{path} must end in .html.")


def name_row(row: Row) -> str:
    """Return the display name of a row."""
    if row.kind == "label":
        return LABEL_NAMES[row.name]
    return {**IMAGE_STATISTICS, **REPORT_STATISTICS}.get(row.name, "embedding")


def _make_table(rows: Sequence[Row]) -> str:
    titles = (
        "value",
        "before",
        "now",
        "mean",
        "shift",
        "PSI",
        "PSI by chance",
        "test",
        "adjusted p",
        "verdict",
    )
    head = "".join(f"<th>{title}</th>" for title in titles)
    lines = []
    for row in rows:
        interval = (
            "" if row.shift is None else f"{row.shift:+.3f} ({row.shift_low:+.3f} to {row.shift_high:+.3f})"
        )
        cells = (
            escape(name_row(row)),
            str(row.reference_cases),
            str(row.cases),
            show(row.mean),
            interval,
            show(row.psi),
            show(row.psi_by_chance),
            f"{row.test} {show(row.statistic)}" if row.test else "",
            show(row.p_adjusted),
            f'<span style="color:{COLOURS[row.verdict]}">{row.verdict}</span>',
        )
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def show(value: float | None) -> str:
    """Return a figure for a table; "" for None."""
    if value is None:
        return ""
    return f"{value:.3f}" if abs(value) >= 0.0005 or value == 0 else f"{value:.0e}"


def _make_figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("Plots need matplotlib: pip install 'cxr-serving[train]'.") from error
    return Figure(figsize=(width, height), layout="constrained")


def draw_psi(rows: Sequence[Row]) -> "Figure":
    """Draw a bar for the PSI of each row, and a mark at the value that chance rarely exceeds."""
    shown = [row for row in rows if row.psi is not None]
    figure = _make_figure(8.0, 1.2 + 0.24 * len(shown))
    axis: Any = figure.subplots()
    places = np.arange(len(shown))
    axis.barh(places, [row.psi for row in shown], color=[COLOURS[row.verdict] for row in shown])
    axis.scatter([row.psi_by_chance for row in shown], places, marker="|", s=60, color="#333333", zorder=3)
    axis.set_yticks(places, [row.name for row in shown], fontsize=8)
    axis.margins(y=0.01)
    axis.invert_yaxis()
    axis.set_xlabel("population stability index; stroke: one in 20 is above it by chance", fontsize=9)
    axis.set_title("Orange: changed. Blue: no change seen", fontsize=10)
    axis.grid(axis="x", alpha=0.2)
    return figure


def draw_inputs(rows: Sequence[Row], before: Mapping[str, Any], now: Mapping[str, Any]) -> "Figure":
    """Draw the distribution of each statistic, before and now: shares of categories, or cumulative shares."""
    lines = -(-len(rows) // _COLUMNS)
    figure = _make_figure(2.6 * _COLUMNS, 2.4 * lines + 0.4)
    axes = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
    for axis, row in zip(axes, rows, strict=False):
        for index, (title, values) in enumerate((("reference", before[row.name]), ("now", now[row.name]))):
            colour = ("#333333", COLOURS[row.verdict])[index]
            if row.name in CATEGORIES:
                names = CATEGORIES[row.name]
                shares = np.bincount(values.astype(np.int64), minlength=len(names)) / max(1, len(values))
                axis.bar(np.arange(len(names)) + 0.4 * index, shares, 0.4, color=colour, label=title)
                axis.set_xticks(np.arange(len(names)) + 0.2, names, fontsize=6, rotation=30)
            elif len(values):
                axis.ecdf(values, color=colour, label=title)
        axis.set_title(row.name, fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in axes[len(rows) :]:
        axis.set_visible(False)
    axes[0].legend(fontsize=7, frameon=False)
    return figure


def _embed(figure: "Figure", text: str) -> str:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
    data = base64.b64encode(picture.getvalue()).decode("ascii")
    return f'<p><img alt="{escape(text)}" src="data:image/png;base64,{data}"></p>'
