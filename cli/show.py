"""Results as tables for a person and as JSON for a program."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from client.results import Prediction, SimilarCase

NOTICE = "Research and teaching only: never a diagnosis."


def print_json(value: Any) -> None:
    """Write one JSON document to standard output."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def print_prediction(console: Console, prediction: "Prediction", *, top: int = 6, title: str = "Findings") -> None:
    """Print the most likely findings with their thresholds."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column, justify in (("Finding", "left"), ("Probability", "right"), ("Threshold", "right"), ("", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    ranked = sorted(prediction.findings, key=lambda finding: -finding.probability)
    for finding in ranked[:top]:
        mark = "[bold]present[/bold]" if finding.present else "[dim]below[/dim]"
        table.add_row(finding.name, f"{finding.probability:.3f}", f"{finding.threshold:.3f}", mark)
    console.print(table)


def print_cases(console: Console, cases: Sequence["SimilarCase"], *, title: str = "Similar cases") -> None:
    """Print cases, best first, with their labels and the start of their reports."""
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("Case", no_wrap=True)
    table.add_column("Similarity", justify="right")
    table.add_column("Labels")
    table.add_column("Report", ratio=1)
    for case in cases:
        report = " ".join(case.report.split())
        excerpt = report if len(report) <= 110 else report[:107] + "..."
        table.add_row(escape(case.id), f"{case.score:.3f}", ", ".join(case.labels) or "-", escape(excerpt))
    console.print(table)
