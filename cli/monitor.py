"""`cxr monitor report`: sentences about the tables, and the rows in the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console

from cli.console import Table
from cli.show import KIND_TITLES, NOTICE

if TYPE_CHECKING:
    from training.monitoring.compare import Row
    from training.monitoring.reference import Reference
    from training.monitoring.results import Current, Results


def describe_tables(results: "Results", current: "Current", reference: "Reference") -> list[str]:
    """Return sentences about the rows of the tables, and about what could not be compared."""
    counts = ", ".join(f"{count} {status}" for status, count in results.statuses.items())
    notes = [f"Rows of the tables: {counts or 'none'}."]
    if lacking := [KIND_TITLES[way] for way in current.ways if way not in reference.ways]:
        notes.append(f"The reference has no cases of: {', '.join(lacking)}.")
    if current.unread:
        notes.append(
            f"{current.unread} files were not read again: they are gone, changed since, or unreadable."
        )
    return notes


def print_rows(console: Console, rows: "Sequence[Row]", notes: Sequence[str]) -> None:
    """Print a table for each way of reading, the rule of the verdicts, and the notes."""
    from training.monitoring.compare import RULE
    from training.monitoring.page import show

    for way in dict.fromkeys(row.way for row in rows):
        table = Table(
            title=KIND_TITLES[way].capitalize(),
            title_justify="left",
            header_style="bold",
            box=box.SIMPLE_HEAD,
        )
        for index, column in enumerate(("Value", "Cases", "Shift", "PSI", "Chance", "p", "Verdict")):
            table.add_column(column, justify="right" if 0 < index < 6 else "left")
        for row in (row for row in rows if row.way == way):
            shift = "" if row.shift is None else f"{row.shift:+.3f}"
            shown = (shift, show(row.psi), show(row.psi_by_chance), show(row.p_adjusted))
            table.add_row(row.name, str(row.cases), *shown, row.verdict)
        console.print(table)
    for line in (*notes, RULE, NOTICE):
        console.print(line, soft_wrap=True, markup=False)
