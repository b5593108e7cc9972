"""Print the tables of the `cxr bench` commands."""

from collections.abc import Sequence
from typing import Any, Final

from rich import box
from rich.console import Console

from bench.faults.soak_report import COLUMNS, format_rows, format_sums
from bench.profile import ModelProfile
from bench.targets.table import list_cells
from cli.console import Table, escape

_RATIOS: Final = ("p50_ms", "cases_per_s")  # the written files hold the other ratios too
_LEAST_SHARE: Final = 0.01  # share of a graph's time; smaller kinds are summed into one row


def print_bench(console: Console, report: dict[str, Any]) -> None:
    """Print the rows, the ratios and the budget."""
    columns = ("cases/s", "p50 ms", "p90", "p99", "p99.9", "failed")
    table = _make_table(f"{report['model']}: {report['data']['source']}", "Load", columns)
    for row in report["rows"]:
        times = [row.get(name) for name in ("p50_ms", "p90_ms", "p99_ms", "p999_ms")]
        cells = ["-" if value is None else f"{value:.2f}" for value in times]
        failed = sum(row["failed"].values()) + row["unsent"]
        table.add_row(escape(row["name"]), f"{row['cases_per_s']:.2f}", *cells, str(failed))
    console.print(table)
    for row in report["rows"]:
        for text in row["warnings"]:
            line = f"[yellow]{escape(row['name'])}: {escape(text)}[/yellow]"
            console.print(line, highlight=False, soft_wrap=True)
    if report["ratios"]:
        ratios = [ratio for ratio in report["ratios"] if ratio["metric"] in _RATIOS]
        print_ratios(console, ratios, "Served (B) / baseline (A)")
    if report["budget"]:
        rate = report["budget"]["rate"]
        verdict = "no rate is within it" if rate is None else f"met up to {rate:.2f} requests/s"
        console.print(f"Budget {report['budget']['budget']}: {verdict}.", highlight=False)


def print_ratios(console: Console, ratios: Sequence[dict[str, Any]], title: str) -> None:
    """Print ratios. A ratio that exceeds the noise of the repeats is bold."""
    table = _make_table(title, "Row", ("figure", "A", "B", "B / A", "differs"))
    for ratio in ratios:
        mark = "[bold]{}[/bold]" if ratio["differs"] else "{}"
        values = (f"{ratio['a']:.2f}", f"{ratio['b']:.2f}", mark.format(f"{ratio['ratio']:.3f}"))
        differs = f"yes (chance {ratio['chance']:.1%})" if ratio["differs"] else "no"
        table.add_row(escape(ratio["row"]), escape(ratio["metric"]), *values, differs)
    console.print(table)


def _make_table(title: str, first: str, others: Sequence[str]) -> Table:
    table = Table(title=escape(title), title_justify="left", header_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def print_profile(console: Console, profile: ModelProfile) -> None:
    """Print milliseconds and shares of each graph and kind of operation."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name, justify in (("graph", "left"), ("operation", "left"), ("ms", "right"), ("share", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for graph in profile.graphs:
        table.add_row(escape(graph.graph), escape(graph.runtime), f"{graph.total:.2f}", "")
        large = {kind: ms for kind, ms in graph.operations.items() if ms >= _LEAST_SHARE * graph.total}
        rest = graph.total - sum(large.values())
        for kind, ms in [*large.items(), ("all others", rest)]:
            table.add_row("", escape(kind), f"{ms:.2f}", f"{ms / graph.total:.0%}")
    console.print(table)
    console.print(
        f"{escape(profile.model)}: {profile.whole_ms:.1f} ms wall-clock time, median of {profile.runs} runs."
    )


def print_table(console: Console, report: dict[str, Any]) -> None:
    """Print the targets beside the measured values."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("", "target", "measured", "", ""):
        table.add_column(name, overflow="fold")
    for cells in list_cells(report):
        table.add_row(*map(escape, cells))
    console.print(table)


def print_soak(console: Console, report: dict[str, Any]) -> None:
    """Print the events with their durations and errors, the rows of overload, and the sums."""
    table = Table(box=box.SIMPLE_HEAD)
    for title in COLUMNS:
        table.add_column(title)
    for cells in format_rows(report):
        table.add_row(*map(escape, cells))
    console.print(table)
    if report["overload"]:
        print_table(console, {"rows": report["overload"]})
    for line in format_sums(report):
        console.print(line)


def print_tuned(console: Console, report: dict[str, Any]) -> None:
    """Print the measured kinds of index and the recommended one."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("kind", overflow="fold")
    for name in ("recall", "p50\np99", "build", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report["kinds"]:
        table.add_row(
            escape(row["kind"]),
            f"{row['recall']:.3f}\n{row['recall_filtered']:.3f}",
            f"{row['p50_ms']:.2f}\n{row['p99_ms']:.2f}",
            f"{row['build_s']:.1f}",
            f"{row['memory_bytes'] / 1e6:.1f}\n{row['memory_share']:.0%}",
        )
    console.print(table)
    console.print(
        f"{report['cases']:,} embeddings of {report['dimension']} values. Recall@10 without and with filters, "
        "milliseconds of one search, seconds of training and adding, memory and its share of the embeddings."
    )
    console.print(f"Recommended: --index {escape(report['recommended'])}", soft_wrap=True)
    console.print(f"Rule: {escape(report['rule'])}.")
