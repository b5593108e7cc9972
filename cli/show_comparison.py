"""What `cxr train compare` prints: two training runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Console

from cli.console import Table, escape
from cli.show import KIND_TITLES, format_interval

if TYPE_CHECKING:
    from training.compare import Comparison, Difference, TrainingRun

_MOST_EPOCHS: Final = 20  # validated epochs that a comparison prints; --json has all


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print two runs side by side: settings that differ, validation scores, test results, and notes."""
    a, b = comparison.a, comparison.b
    for letter, one in (("A", a), ("B", b)):
        console.print(f"{letter}  {_describe_run(one)}", highlight=False, soft_wrap=True)
    settings = _make_table("Settings that differ", "", "A", "B")
    for name, values in comparison.settings.items():
        settings.add_row(escape(name), *(escape("-" if value is None else str(value)) for value in values))
    scores = _make_table("Validation score", "", "A", "B")
    for epoch, *points in _thin(comparison):
        bests = (run.best is not None and run.best[0] == epoch for run in (a, b))
        scores.add_row(str(epoch), *(_mark(value, best) for value, best in zip(points, bests, strict=True)))
    console.print(settings if comparison.settings else "\nNo setting differs.")
    if comparison.scores:
        console.print(scores)
    if comparison.test:
        console.print(_tabulate_test(comparison.test))
        console.print(
            "[dim]Macro means with the 95 % interval of each run. The intervals do not show whether a difference is "
            "significant.[/dim]"
        )
    for note in comparison.notes:
        console.print(f"[bold yellow]Note:[/bold yellow] {escape(note)}", highlight=False, soft_wrap=True)


def _describe_run(run: TrainingRun) -> str:
    parts = [f"[bold]{escape(str(run.path))}[/bold]", f"{len(run.history)} epochs"]
    if run.best:
        parts.append(f"best {run.best[1]:.4f} in epoch {run.best[0]}")
    if run.seconds is not None:
        parts.append(f"{run.seconds:.0f} s{f' on {escape(run.device)}' if run.device else ''}")
    return ", ".join(parts)


def _thin(comparison: Comparison) -> list[tuple[int, float | None, float | None]]:
    """Return about `_MOST_EPOCHS` evenly spaced epochs, with the best epochs and the last one."""
    rows = comparison.scores
    step = -(-len(rows) // _MOST_EPOCHS) or 1
    best_epochs = {run.best[0] for run in (comparison.a, comparison.b) if run.best}
    return [row for index, row in enumerate(reversed(rows)) if index % step == 0 or row[0] in best_epochs][
        ::-1
    ]


def _mark(value: float | None, best: bool) -> str:
    if value is None:
        return "-"
    return f"[bold]{value:.4f}[/bold]" if best else f"{value:.4f}"


def _tabulate_test(test: Mapping[str, Mapping[str, Difference]]) -> Table:
    table = _make_table("Test split", "Read from", "", "A", "B", "B - A")
    for way, figures in test.items():
        for index, (name, figure) in enumerate(figures.items()):
            change = "-" if figure.change is None else f"{figure.change:+.3f}"
            title = KIND_TITLES.get(way, way) if index == 0 else ""
            values = (format_interval(value) for value in (figure.a, figure.b))
            table.add_row(title, "F1" if name == "f1" else name.upper(), *values, change)
    return table


def _make_table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        numeric = index > 0 and column != ""
        table.add_column(column, justify="right" if numeric else "left", no_wrap=numeric)
    return table
