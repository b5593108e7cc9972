"""Plot the results of an evaluation: ROC and precision-recall grids, reliability, abstention, search."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError
from contract.files import write_file
from contract.labels import LABEL_INDEX, LABEL_NAMES
from contract.report.text import TextMode
from training.evaluation.labels import CALIBRATION_BINS, place_in_bins
from training.evaluation.plan import Way
from training.evaluation.report_search import BLOCKS, GALLERIES
from training.evaluation.split_predictions import SplitPredictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Final = ("#0b6e99", "#d9730d", "#448361")
_COLUMNS: Final = 6
# Title -> probabilities, targets, and whether the targets are known, each (M, K).
Curves = Mapping[str, tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]]


def draw_plots(
    predictions: SplitPredictions, results: Mapping[str, Any], mode: TextMode, directory: Path
) -> list[Path]:
    """Write the pictures of `training.evaluation.report.PLOTS` and return their paths.

    Raises:
        ConfigError: Matplotlib is not installed.
    """
    ways = [way for way in (Way(True, None), Way(True, mode), Way(False, mode)) if way in predictions.answers]
    curves = {way.title: _get_answers(predictions, way) for way in ways}
    by_key = {row["key"]: row for row in results["classification"]}
    averaged = [by_key[way.key]["averaged"] for way in ways]
    keys = [key for key in LABEL_INDEX if any(key in names for names in averaged)]
    figures = {
        "roc": _draw_grid(curves, keys, _draw_roc, "false positive rate", "true positive rate"),
        "precision_recall": _draw_grid(curves, keys, _draw_precision_recall, "recall", "precision"),
        "reliability": _draw_reliability(curves, keys),
        "risk_coverage": _draw_risk_coverage(results),
        "retrieval": _draw_retrieval(results),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(directory / f"{name}.png")
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
        write_file(paths[-1], picture.getvalue())
    return paths


def _get_answers(
    predictions: SplitPredictions, way: Way
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    rows = predictions.answers[way].answered
    return (
        predictions.answers[way].probabilities[rows],
        predictions.test.targets[rows],
        predictions.test.known[rows],
    )


def _make_figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("Plots need matplotlib: pip install 'cxr-serving[train]'.") from error
    return Figure(figsize=(width, height), layout="constrained")


def _draw_grid(curves: Curves, keys: Sequence[str], draw: Any, x_title: str, y_title: str) -> "Figure":
    """Draw one small picture per label."""
    rows = max(1, -(-len(keys) // _COLUMNS))
    figure = _make_figure(2.1 * _COLUMNS, 2.2 * rows + 0.6)
    axes = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, key in zip(axes, keys, strict=False):
        k = LABEL_INDEX[key]
        for colour, (probabilities, targets, known) in zip(COLOURS, curves.values(), strict=False):
            rows_known = known[:, k]
            if 0 < targets[rows_known, k].sum() < rows_known.sum():
                draw(axis, targets[rows_known, k], probabilities[rows_known, k], colour)
        axis.set_title(f"{_shorten(LABEL_NAMES[key])}", fontsize=7)
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axis.tick_params(labelsize=7)
    for axis in axes[len(keys) :]:
        axis.set_visible(False)
    figure.supxlabel(x_title, fontsize=9)
    figure.supylabel(y_title, fontsize=9)
    _add_legend(figure, list(curves))
    return figure


def _draw_roc(axis: "Axes", targets: NDArray[np.bool_], scores: NDArray[np.float32], colour: str) -> None:
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(targets, scores)
    axis.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.7, linestyle=":")
    axis.plot(false, true, color=colour, linewidth=1.2)


def _draw_precision_recall(
    axis: "Axes", targets: NDArray[np.bool_], scores: NDArray[np.float32], colour: str
) -> None:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(targets, scores)
    axis.axhline(targets.mean(), color="#bbbbbb", linewidth=0.7, linestyle=":")
    axis.plot(recall, precision, color=colour, linewidth=1.2, drawstyle="steps-post")


def _draw_reliability(curves: Curves, keys: Sequence[str]) -> "Figure":
    """Draw for each way the share of positives over the mean probability in each bin, for all labels together."""
    figure = _make_figure(3.6 * max(len(curves), 1), 4.0)
    axes = figure.subplots(1, max(len(curves), 1), sharey=True, squeeze=False).ravel()
    columns = [LABEL_INDEX[key] for key in keys]
    for axis, colour, (title, tables) in zip(axes, COLOURS, curves.items(), strict=False):
        probabilities, targets, known = (table[:, columns] for table in tables)
        values, truth = probabilities[known], targets[known]
        bins = place_in_bins(values)
        counts = np.bincount(bins, minlength=CALIBRATION_BINS)
        filled = counts > 0
        mean = np.bincount(bins, values, CALIBRATION_BINS)[filled] / counts[filled]
        share = np.bincount(bins, truth, CALIBRATION_BINS)[filled] / counts[filled]
        axis.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8, linestyle=":")
        axis.plot(mean, share, color=colour, linewidth=1.0)
        axis.scatter(mean, share, s=4 + 60 * np.sqrt(counts[filled] / counts.max()), color=colour, alpha=0.6)
        axis.set(title=title, xlabel="mean probability", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes[0].set_ylabel("share of positives")
    figure.suptitle("Reliability; a dot's size shows how many answers lie in its bin", fontsize=10)
    return figure


def _draw_risk_coverage(results: Mapping[str, Any]) -> "Figure":
    """Draw the mean risk over labels by coverage, for the model and the oracle, and the point of the bands."""
    figure = _make_figure(6.0, 4.4)
    axis = figure.subplots()
    mode, by_key = results["text_mode"], {row["key"]: row for row in results["abstention"]}
    # the same order as in the other plots, for equal colours
    rows = [by_key[key] for key in ("image", f"image+{mode}", mode) if key in by_key]
    for colour, row in zip(COLOURS, rows, strict=False):
        curve, macro = row["curve"], row["macro"]
        axis.plot(curve["coverage"], curve["risk"], color=colour, linewidth=1.3, label=row["title"])
        axis.plot(curve["coverage"], curve["oracle"], color=colour, linewidth=0.8, linestyle=":")
        if "error" in macro:
            axis.scatter(macro["coverage"]["value"], macro["error"]["value"], color=colour, s=30, zorder=3)
    axis.set(xlabel="coverage: share of decisions kept", ylabel="risk: share of these that are wrong")
    axis.set(xlim=(0, 1.02), ylim=(0, None))
    axis.grid(alpha=0.2)
    axis.set_title("Risk by coverage; dotted: oracle, dot: outside the bands", fontsize=10)
    if rows:
        axis.legend(fontsize=8, frameon=False)
    return figure


def _draw_retrieval(results: Mapping[str, Any]) -> "Figure":
    """Draw the precision at each rank for both galleries, with and without `normal`."""
    figure = _make_figure(9.0, 6.6)
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for line, (gallery, title) in zip(axes, GALLERIES.items(), strict=True):
        for axis, block in zip(line, BLOCKS, strict=True):
            for row in results["retrieval"].get(gallery, {}).get(block, ()):
                style = {"random": ":", "TF-IDF": "--"}.get(row["title"].split(",")[0].split()[0], "-")
                axis.plot(
                    np.arange(1, len(row["curve"]) + 1),
                    row["curve"],
                    style,
                    label=row["title"],
                    linewidth=1.3,
                )
            axis.set_title(f"{title}, {block.replace('_', ' ')}", fontsize=9)
            axis.set_ylim(0, 1)
            axis.grid(alpha=0.2)
    for axis in axes[1]:
        axis.set_xlabel("cases returned", fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("precision", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _add_legend(figure: "Figure", titles: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour) for colour, _ in zip(COLOURS, titles, strict=False)]
    figure.legend(handles, titles, loc="outside upper center", ncols=3, fontsize=8, frameon=False)


def _shorten(name: str) -> str:
    return name if len(name) <= 34 else name[:32] + "…"
