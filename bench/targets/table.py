"""`cxr bench table`: measure the latency targets of this project in one run, with a verdict for each row.

Every figure is a ratio of two measurements that were made in turn on the same machine at the same time.
`bench/targets/rows.py` defines the measurements; `make bench` makes their models.
"""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench.targets.target import TargetRow, merge_runs
from contract.errors import ConfigError
from contract.files import write_file

JSON_FILE: Final = "table.json"
MARKDOWN_FILE: Final = "table.md"


def measure_table(
    console: Console, root: Path, out: Path, *, seconds: float, runs: int = 1, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure all rows and write them after each run of a part, so that an interrupt loses little.

    Args:
        console: Console for the progress.
        root: Directory of `make bench`: studies.parquet, tiny/ and published/ with bundle and repositories.
        out: Directory for table.json and table.md.
        seconds: Seconds to measure each load.
        runs: How often each part is measured, each time with new servers.
        only: Names of parts; empty for all.

    Raises:
        ConfigError: A file in `root` is missing, or a part is unknown.
        ServiceError: A server failed.
    """
    from bench.report.machine import describe_command, describe_machine
    from bench.targets.rows import list_parts

    parts = list_parts(root, seconds)
    if unknown := sorted(set(only) - set(parts)):
        raise ConfigError(f"There is no part {unknown[0]}. Choose from {', '.join(parts)}.")
    report: dict[str, Any] = {
        "command": describe_command(),
        "machine": describe_machine(),
        "seconds": seconds,
        "runs": runs,
        "rows": [],
    }
    for name, part in parts.items():
        if only and name not in only:
            continue
        before, measured = list(report["rows"]), []
        for run in range(runs):
            title = f"{name}, run {run + 1} of {runs}"
            measured.append(show_rows(console, title, part()))
            report["rows"] = before + [row.to_dict() for row in merge_runs(measured)]
            write_table(report, out)
    return report


def show_rows(console: Console, title: str, rows: Iterable[TargetRow]) -> list[TargetRow]:
    """Print each row as soon as it is measured, with its seconds. Return all of them."""
    shown = []
    console.print(f"Measuring: {title}", highlight=False, markup=False)
    with console.status(f"Measuring: {title}"):
        started = time.perf_counter()
        for row in rows:
            seconds = time.perf_counter() - started
            line = f"  {row.name}: {_show_value(row)} ({row.verdict}, {seconds:.0f} s)"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
            shown.append(row)
            started = time.perf_counter()
    return shown


def write_table(report: dict[str, Any], out: Path) -> None:
    """Write table.json and table.md. Raise ArtifactError if the disk refuses the write."""
    write_file(out / JSON_FILE, json.dumps(report, indent=1) + "\n")
    write_file(out / MARKDOWN_FILE, to_markdown(report))


def to_markdown(report: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    machine = report["machine"]
    description = ", ".join(
        f"{key} {value}" for key, value in machine.items() if isinstance(value, str | int)
    )
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    lines = [
        f"`{report['command']}`, {report['seconds']:g} s a load, median of {report['runs']} runs; {description}",
        *([f"Versions: {versions}."] if versions else []),
        *(f"Vectors, {text}." for text in report.get("vectors", {}).values()),
        "",
        "| | wanted | found | | |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(cells)} |" for cells in list_cells(report)]
    return "\n".join(lines) + "\n"


def list_cells(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of each row: name, limit, value, verdict and detail."""
    rows = [
        TargetRow(**{key: value for key, value in entry.items() if key != "passed"})
        for entry in report["rows"]
    ]
    return [(row.name, _show_limit(row), _show_value(row), row.verdict, _show_detail(row)) for row in rows]


def _show_limit(row: TargetRow) -> str:
    return "-" if row.limit is None else f"{row.bound} {row.limit:g}{_show_unit(row)}"


def _show_value(row: TargetRow) -> str:
    if row.value is None:
        return "-"
    between = f" ({min(row.runs):.4g} to {max(row.runs):.4g})" if len(row.runs) > 1 else ""
    return f"{row.value:.4g}{_show_unit(row)}{between}"


def _show_unit(row: TargetRow) -> str:
    return row.unit if row.unit == "x" else f" {row.unit}"


def _show_detail(row: TargetRow) -> str:
    unmet = [name for name, met in row.conditions.items() if not met]
    parts = [row.detail] if row.detail else []
    return "; ".join(parts + [f"not met: {name}" for name in unmet])
