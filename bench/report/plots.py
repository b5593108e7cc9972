"""Plots of a report, as PNG files."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.load.histogram import Histogram
from bench.report.server import STEPS, list_split
from contract.errors import ConfigError
from contract.files import write_file

_SIZE: Final = (8.0, 4.5)  # inches
_DPI: Final = 120
_TICKS: Final = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)


def write_plots(report: Mapping[str, Any], directory: Path) -> list[Path]:
    """Write the plots that the report has figures for.

    Returns:
        Files: latency against throughput, percentiles, the server's split.

    Raises:
        ConfigError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("Plots need the 'bench' extra: pip install 'cxr-serving[bench]'.") from error
    files = []
    for name, draw in _PLOTS.items():
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        if draw(axes, report["rows"]):
            picture = io.BytesIO()
            figure.savefig(picture, format="png", dpi=_DPI)
            write_file(directory / f"{name}.png", picture.getvalue())
            files.append(directory / f"{name}.png")
    return files


def draw_sweep(axes: Any, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Draw latency over cases per second for each target's closed loops; return whether there is a sweep."""
    targets: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["load"]["kind"] == "closed" and "p50_ms" in row:
            targets.setdefault(row["target"], []).append(row)
    for target, rows_of_target in targets.items():
        rows_of_target.sort(key=lambda row: (row["load"]["concurrency"], row["batch"]))
        speeds = [row["cases_per_s"] for row in rows_of_target]
        for metric, style in (("p50_ms", "o-"), ("p99_ms", "s:")):
            axes.plot(speeds, [row[metric] for row in rows_of_target], style, label=f"{target} {metric[:3]}")
        for row in rows_of_target:
            text = f"{row['load']['concurrency']}x{row['batch']}"
            axes.annotate(
                text, (row["cases_per_s"], row["p50_ms"]), textcoords="offset points", xytext=(4, 4)
            )
    axes.set(xlabel="cases per second", ylabel="latency in ms", title="Concurrency x batch", yscale="log")
    axes.grid(visible=True, alpha=0.3)
    if targets:
        axes.legend(fontsize=8)
    return any(len(rows_of_target) > 1 for rows_of_target in targets.values())


def draw_percentiles(axes: Any, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Draw latency over the fraction of requests, with equal width for each nine."""
    highest = 1.0
    for row in rows:
        points = Histogram.decode(row["histogram"]).list_percentiles()
        if points:
            nines = [1 / (1 - fraction) for fraction, _ in points]
            highest = max(highest, *nines)
            axes.plot(nines, [value for _, value in points], drawstyle="steps-post", label=row["name"])
    ticks = [tick for tick in _TICKS if 1 / (1 - tick) <= 1.01 * highest]
    axes.set_xscale("log")
    axes.set_xticks([1 / (1 - tick) for tick in ticks], [f"{100 * tick:g} %" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="requests answered", ylabel="latency in ms", title="Percentiles")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    if highest > 1:
        axes.legend(fontsize=8)
    return highest > 1


def draw_split(axes: Any, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Draw a stacked bar for each model of each load: queue, input, infer, output."""
    bars = [
        (f"{row['name']}\n{name}", split)
        for row in rows
        for name, split in list_split(row["server"].get("models", {}))
    ][:24]
    starts = [0.0] * len(bars)
    names = [name for name, _ in bars]
    positions = range(len(bars))
    for index, step in enumerate(STEPS):
        widths = [split[index] for _, split in bars]
        axes.barh(positions, widths, left=starts, label=step)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.set_yticks(positions, names, fontsize=6)
    axes.invert_yaxis()
    axes.set(xlabel="mean ms of a request", title="Where the time goes in the server")
    if bars:
        axes.legend(fontsize=8)
    return bool(bars)


_PLOTS: Final = {
    "latency_and_throughput": draw_sweep,
    "percentiles": draw_percentiles,
    "server_split": draw_split,
}
