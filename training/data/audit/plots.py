"""The plots of a data audit, as SVG for the page."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from contract.errors import ConfigError
from contract.labels import LABELS

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise ConfigError("Plots need matplotlib: pip install 'cxr-serving[train]'.") from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR: Final = "#3d6ea8"
SOFT: Final = "#5a6675"
PART_COLOURS: Final = {"train": "#3d6ea8", "validation": "#b35000", "test": "#1d6b45"}
# No mathematical text in labels, and equal audits give equal files.
_STYLE: Final[dict[str, Any]] = {
    "text.parse_math": False,
    "svg.hashsalt": "audit",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
}


def draw_prevalence(audit: Mapping[str, Any]) -> str:
    """Draw the share of each label, with a dot for each part of a split."""
    labels = audit["labels"]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 6.4), layout="constrained")
        axis = figure.subplots()
        positions = np.arange(len(labels))
        shares = [100 * figures["share"] for figures in labels.values()]
        axis.barh(positions, shares, color="#a9bdd4" if audit["parts"] else BAR, height=0.7)
        ends = list(shares)
        described = audit["parts"]["described"] if audit["parts"] else {}
        for shift, (part, figures) in zip((-0.22, 0, 0.22), described.items(), strict=False):
            dots = [100 * figures["labels"][key]["share"] for key in labels]
            axis.scatter(dots, positions + shift, s=13, color=PART_COLOURS[part], label=part, zorder=3)
            ends = [max(end, dot) for end, dot in zip(ends, dots, strict=True)]
        for position, figures, end in zip(positions, labels.values(), ends, strict=True):
            text = (
                f"{figures['studies']:,}  ({100 * figures['share']:.1f} %)" if figures["known"] else "unknown"
            )
            axis.text(end + 0.6, position, text, va="center", fontsize=8, color=SOFT)
        axis.set(
            xlabel="% of the studies whose label is known",
            xlim=(0, max(*ends, 1) * 1.18),
            ylim=(len(labels) - 0.4, -0.6),
        )
        axis.set_yticks(positions, [figures["name"] for figures in labels.values()])
        axis.tick_params(axis="y", length=0)
        if audit["parts"]:
            axis.legend(loc="lower right", bbox_to_anchor=(1, 0.1), frameon=False)
        return _write_svg(figure)


def draw_together(audit: Mapping[str, Any]) -> str:
    """Draw which labels occur together: of the studies with the row's label, the share with the column's label."""
    together = np.array(audit["together"], dtype=float)
    totals = np.array(audit["together_known"], dtype=float)
    shares = together / np.maximum(totals, 1)
    np.fill_diagonal(shares, np.nan)
    names = [label.name for label in LABELS]
    with mpl.rc_context({**_STYLE, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(9.6, 8.4), layout="constrained")
        axis = figure.subplots()
        limit = max(float(np.nanmax(shares)), 0.01)
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=limit, aspect="auto")
        for row, column in np.argwhere(together > 0):
            if row != column:
                colour = "white" if shares[row, column] > 0.6 * limit else "#1d2530"
                count = f"{int(together[row, column])}"
                axis.text(column, row, count, ha="center", va="center", fontsize=6.5, color=colour)
        axis.set_xticks(
            range(len(names)), names, rotation=55, ha="right", rotation_mode="anchor", fontsize=7.5
        )
        axis.set_yticks(
            range(len(names)),
            [f"{name} ({int(n)})" for name, n in zip(names, np.diag(together), strict=True)],
        )
        axis.tick_params(length=0, labelsize=7.5)
        axis.set_facecolor("#eef1f4")
        bar = figure.colorbar(
            image, ax=axis, shrink=0.5, pad=0.01, format=lambda share, _: f"{100 * share:.0f} %"
        )
        bar.outline.set_visible(False)
        return _write_svg(figure)


def draw_counts(audit: Mapping[str, Any]) -> str:
    """Draw labels per study, images per study and words per report."""
    words = audit["words"]["histogram"]
    panels: Sequence[tuple[str, Mapping[Any, int]]] = (
        ("labels of a study", audit["labels_per_study"]),
        ("images of a study", audit["images_per_study"]),
        ("words of a report (findings and impression)", words),
    )
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10.4, 2.9), layout="constrained")
        axes = figure.subplots(1, 3, width_ratios=(1, 0.8, 1.6))
        for axis, (title, counts) in zip(axes, panels, strict=True):
            _draw_bars(axis, title, counts, numbers=len(counts) <= 12)
        if words:
            axes[2].set_xticks(range(0, len(words), 2), [f"{start}" for start in list(words)[::2]])
        axes[0].set_ylabel("studies")
        return _write_svg(figure)


def _draw_bars(axis: "Axes", title: str, counts: Mapping[Any, int], *, numbers: bool) -> None:
    bars = axis.bar(range(len(counts)), list(counts.values()), color=BAR, width=0.8)
    axis.set_xticks(range(len(counts)), [str(name) for name in counts])
    axis.set_xlabel(title)
    axis.tick_params(length=0, labelsize=8)
    if numbers:
        axis.bar_label(bars, fontsize=7.5, color=SOFT, padding=1, fmt="{:,.0f}")
    axis.margins(y=0.12)


def _write_svg(figure: Figure) -> str:
    """Return a figure as a data URL."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
