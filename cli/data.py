"""Counts of a studies table and the checks of `cxr doctor`, for people and programs."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.cases import read_rows
from contract.labels import LABELS

if TYPE_CHECKING:
    from client.results import Health
    from serving.doctor import Check
    from training.cache import CacheSummary


def count_studies(table: Path) -> dict[str, Any]:
    """Count what a studies table holds: studies, patients, images, views, sections and labels."""
    rows = read_rows(table)
    labels = Counter(key for row in rows for key in row["labels"])
    return {
        "studies": len(rows),
        "patients": len({row["patient_id"] for row in rows}),
        "images": sum(len(row["image_paths"]) for row in rows),
        "without_image": sum(not row["image_paths"] for row in rows),
        "without_findings": sum(not row["findings"] for row in rows),
        "without_impression": sum(not row["impression"] for row in rows),
        "unlabelled": sum(not row["labelled"] for row in rows),
        "views": dict(Counter(view for row in rows for view in row["views"])),
        "labels": {label.key: labels[label.key] for label in LABELS},
    }


def print_counts(console: Console, counts: dict[str, Any]) -> None:
    """Print the counts, labels last."""
    for name, value in counts.items():
        if not isinstance(value, dict):
            console.print(f"{name.replace('_', ' '):<20} {value:>7,}", highlight=False)
    views = ", ".join(f"{view} {count:,}" for view, count in sorted(counts["views"].items()))
    console.print(f"{'views':<20} {views or '-'}", highlight=False)
    table = Table(header_style="bold")
    table.add_column("Category")
    table.add_column("Studies", justify="right")
    for label in LABELS:
        table.add_row(label.name, f"{counts['labels'][label.key]:,}")
    console.print(table)


def print_cache(console: Console, directory: Path, summary: "CacheSummary", seconds: float) -> None:
    """Print what filling a cache came to, and each refused file with the reason."""
    rate = f", {summary.decoded / seconds:,.0f} a second" if summary.decoded else ""
    counts = (
        f"{summary.images:,} images, {summary.decoded:,} decoded now{rate}, {len(summary.refused):,} refused"
    )
    console.print(f"{directory}: {counts}", highlight=False, soft_wrap=True)
    if summary.refused:
        table = Table("Refused image", "Reason", header_style="bold")
        for refusal in summary.refused:
            table.add_row(escape(refusal.image_id), escape(refusal.reason))
        console.print(table)


def print_checks(console: Console, checks: Sequence["Check"], health: "Health") -> None:
    """Print what the machine has and whether the servers answer."""
    for check in checks:
        mark = "[green]ok[/green]     " if check.ok else "[yellow]missing[/yellow]"
        console.print(
            f"{mark} {escape(check.name):<22} {escape(check.detail)}", highlight=False, soft_wrap=True
        )
    for name, trouble in (("triton server", health.triton), ("retrieval sidecar", health.retrieval)):
        mark = "[green]ok[/green]     " if trouble is None else "[yellow]down[/yellow]   "
        console.print(f"{mark} {name:<22} {escape(trouble or 'answers')}", highlight=False, soft_wrap=True)
    if health.fingerprint:
        served = f"model {health.fingerprint[:12]}, {health.cases or 0} cases indexed"
        console.print(f"        {'served':<22} {served}", highlight=False)
