"""Write the results of a run as JSON, Markdown and plots."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from bench.load.budget import Found
from bench.load.histogram import describe_unit
from bench.report.compare import SCHEMA, Ratio, compare_cases, compare_rows
from bench.report.machine import describe_command, describe_machine
from bench.report.measure import SERVED, Row
from bench.report.server import STEPS, list_split
from contract.files import write_file

JSON_FILE: Final = "bench.json"
MARKDOWN_FILE: Final = "bench.md"
_METHOD: Final = (
    "Closed loop: each sender sends its next request when it has its answer. Open loop: requests are sent when they "
    "are due, and latency counts from then. Rows were measured in turn. A row was warmed up until the median latency "
    "(closed loop: and the throughput) of three windows in a row agreed, largest to smallest, as in perf_analyzer. "
    "A figure differs when all repeats of one side lie above all of the other."
)


def make_report(
    rows: Sequence[Row],
    *,
    model: str,
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    budget: Found | None = None,
) -> dict[str, Any]:
    """Return all results as JSON-ready values.

    Args:
        rows: The measured rows.
        model: Name of the served model.
        data: Source and shapes of the inputs, without patient data.
        settings: Options of the run.
        budget: Result of the search for the highest rate.
    """
    row_values = [row.to_dict() for row in rows]
    return {
        "schema": SCHEMA,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": describe_command(),
        "model": model,
        "data": dict(data),
        "settings": dict(settings),
        "machine": describe_machine(),
        "histograms": describe_unit(),
        "rows": row_values,
        "ratios": [ratio.to_dict() for ratio in list_ratios(row_values)],
        "budget": None if budget is None else budget.to_dict(),
    }


def list_ratios(rows: Sequence[Mapping[str, Any]]) -> list[Ratio]:
    """Compare the served model with each baseline: one request at a time, and the highest cases per second."""
    served = [row for row in rows if row["target"] == SERVED and row["load"]["kind"] == "closed"]
    baselines = [row for row in rows if row["target"] != SERVED and row["requests"]]
    ratios = [
        ratio
        for served_row in served
        for other in baselines
        if served_row["load"]["concurrency"] == 1 and other["batch"] == served_row["batch"]
        for ratio in compare_rows(other, served_row, name=f"{served_row['name']} / {other['target']}")
    ]
    if not served:
        return ratios
    best = max(served, key=lambda row: float(row["cases_per_s"]))
    for target in dict.fromkeys(row["target"] for row in baselines):
        other = max((row for row in baselines if row["target"] == target), key=lambda row: row["cases_per_s"])
        ratios.append(compare_cases(other, best, name=f"most: {best['name']} / {other['name']}"))
    return ratios


def write_report(report: Mapping[str, Any], directory: Path) -> list[Path]:
    """Write bench.json, bench.md and the plots; return the files.

    Raises:
        ArtifactError: The directory cannot be written.
        ConfigError: matplotlib is missing.
    """
    from bench.report.plots import write_plots

    write_file(directory / JSON_FILE, json.dumps(report, indent=1) + "\n")
    plots = write_plots(report, directory)
    write_file(directory / MARKDOWN_FILE, format_markdown(report, plots))
    return [directory / JSON_FILE, directory / MARKDOWN_FILE, *plots]


def format_markdown(report: Mapping[str, Any], plots: Sequence[Path] = ()) -> str:
    """Return a report as a page."""
    lines = [f"# {report['model']}", "", f"`{report['command']}`", ""]
    lines += [*_format_machine(report), "", _METHOD, "", *_format_rows(report["rows"]), ""]
    warnings = [f"- {row['name']}: {text}" for row in report["rows"] for text in row["warnings"]]
    lines += [*warnings, ""] if warnings else []
    if report["ratios"]:
        lines += ["## Served beside the same work in this process", "", *format_ratios(report["ratios"]), ""]
    if report["budget"]:
        lines += ["## Budget", "", *_format_budget(report["budget"]), ""]
    lines += _format_server(report["rows"])
    for plot in plots:
        lines += [f"![{plot.stem.replace('_', ' ')}]({plot.name})", ""]
    return "\n".join(lines).rstrip() + "\n"


def format_ratios(ratios: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return ratios as the lines of a table."""
    lines = ["| | figure | A | B | B / A | differs | by chance |", "|---|---|---:|---:|---:|---|---:|"]
    lines += [
        f"| {x['row']} | {x['metric']} | {x['a']:.2f} ({x['spread_a'][0]:.2f} to {x['spread_a'][1]:.2f}) "
        f"| {x['b']:.2f} ({x['spread_b'][0]:.2f} to {x['spread_b'][1]:.2f}) | {x['ratio']:.3f} "
        f"| {'yes' if x['differs'] else 'no'} | {x['chance']:.1%} |"
        for x in ratios
    ]
    return lines


def _format_machine(report: Mapping[str, Any]) -> list[str]:
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    flags = " ".join(machine["flags"]) or "none of interest"
    data = report["data"]
    shapes = "; ".join(
        f"{name} " + ", ".join(f"{shape} ({count})" for shape, count in found.items())
        for name, found in data.get("shapes", {}).items()
    )
    return [
        f"{report['made']}, {machine['cpu']}, {machine['cores']} cores ({flags}), {machine['system']}, "
        f"Python {machine['python']}, {versions}, commit {machine['commit'] or 'unknown'}.",
        "",
        f"Inputs: {data['source']}; {data['requests']} different requests; shapes: {shapes}.",
    ]


def _format_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| load | requests | failed | cases/s | p50 ms | p90 | p99 | p99.9 | max | repeats' p50 | server cores | MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    for row in rows:
        process = row["server"].get("process", {})
        spread = [repeat["p50_ms"] for repeat in row["repeats"] if repeat["p50_ms"] is not None]
        times = [row.get(name) for name in ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")]
        cells = [
            row["name"],
            str(row["requests"]),
            str(sum(row["failed"].values()) + row["unsent"]),
            f"{row['cases_per_s']:.2f}",
            *("-" if value is None else f"{value:.2f}" for value in times),
            f"{min(spread):.2f} to {max(spread):.2f}" if spread else "-",
            f"{process['cpu_cores']:.2f}" if process else "-",
            f"{process['rss_mib']:.0f}" if process else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _format_budget(budget: Mapping[str, Any]) -> list[str]:
    rate = budget["rate"]
    verdict = "No rate met it." if rate is None else f"Highest rate that met it: **{rate:.2f} requests/s**"
    lines = [
        f"{budget['budget']}: {verdict} (to {budget['resolution']:.0%}).",
        "",
        "| requests/s | latency ms | requests | lost | sent late | |",
        "|---:|---:|---:|---:|---:|---|",
    ]
    for x in budget["trials"]:
        value = "lost" if x["percentile_ms"] is None else f"{x['percentile_ms']:.2f}"
        met = "met" if x["met"] else "not met"
        lines.append(
            f"| {x['rate']:.2f} | {value} | {x['requests']} | {x['lost']} | {x['late']:.1%} | {met} |"
        )
    return lines


def _format_server(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["| load | model | executions | cases each | " + " | ".join(f"{step} ms" for step in STEPS) + " |"]
    head += ["|---|---|---:|---:|" + "---:|" * len(STEPS)]
    lines = []
    for row in rows:
        models = row["server"].get("models", {})
        for name, split in list_split(models):
            times = " | ".join(f"{value:.3f}" for value in split)
            figures = models[name]
            lines.append(
                f"| {row['name']} | {name} | {figures['executions']:.0f} | {figures['mean_batch']:.2f} | {times} |"
            )
    if not lines:
        return []
    title = ["## Where the time goes in the server", "", "Mean of a request, by Triton's statistics.", ""]
    return [*title, *head, *lines, ""]
