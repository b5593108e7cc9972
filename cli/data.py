"""Print the results of the `cxr data` commands."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cli.console import Table, escape
from contract.labels import LABEL_NAMES

if TYPE_CHECKING:
    import pyarrow as pa

    from training.data.cache import CacheSummary
    from training.data.openi import ImageCount
    from training.evaluation.order_views import Ordered

Audit = Mapping[str, Any]


def print_audit(console: Console, audit: Audit) -> None:
    """Print the result of `training.data.audit.figures.audit_table`. The HTML page shows more."""
    for name in ("studies", "patients", "images", "labelled"):
        console.print(f"{name:<26} {audit[name]:>7,}", highlight=False)
    console.print(_list_labels(audit))
    if audit["parts"]:
        _print_parts(console, audit["parts"])
    _print_headings(console, audit["headings"])
    console.print(_list_sections(audit))
    if audit["images"]:
        console.print(_list_headers(audit["headers"]))
    for title, kind in (("equal", "equal"), ("nearly equal", "near")):
        groups = audit["duplicates"][kind]
        console.print(
            f"{title} reports: {groups['groups']:,} groups of {groups['studies']:,} studies, the largest of "
            f"{groups['largest']:,}",
            highlight=False,
        )


def _list_labels(audit: Audit) -> Table:
    parts = audit["parts"]["described"] if audit["parts"] else {}
    table = Table("Category", header_style="bold")
    for title in ("Studies", "Known", "Share", *parts):
        table.add_column(title, justify="right")
    for key, label in audit["labels"].items():
        shares = [
            _show_share(counts) for counts in (label, *(part["labels"][key] for part in parts.values()))
        ]
        table.add_row(label["name"], f"{label['studies']:,}", f"{label['known']:,}", *shares)
    return table


def _show_share(counts: Mapping[str, Any]) -> str:
    return f"{100 * counts['share']:.1f} %" if counts["known"] else "unknown"


def _print_parts(console: Console, parts: Mapping[str, Any]) -> None:
    for part, figures in parts["described"].items():
        lacking = ", ".join(figures["missing_labels"]) or "none"
        console.print(
            f"{part:<11} {figures['studies']:>6,} studies, {figures['labels_per_study']:.2f} labels each; labels it "
            f"lacks: {lacking}",
            highlight=False,
        )
    divided = parts["divided"]
    console.print(
        f"on more than one side: {divided['patients']:,} patients, {divided['equal_reports']:,} groups of equal and "
        f"{divided['near_reports']:,} of nearly equal reports; not mentioned: {parts['not_mentioned']:,} studies",
        style="yellow" if any(divided.values()) else None,
        highlight=False,
    )


def _print_headings(console: Console, headings: Mapping[str, Any]) -> None:
    if headings["unmapped"]:
        table = Table("Heading without a label", header_style="bold")
        table.add_column("Studies", justify="right")
        table.add_column("Why")
        for entry in headings["unmapped"]:
            table.add_row(escape(entry["heading"]), f"{entry['studies']:,}", escape(entry["reason"]))
        console.print(table)
    console.print(f"studies without any label  {headings['without_label']:>7,}", highlight=False)


def _list_sections(audit: Audit) -> Table:
    sections = audit["sections"]
    table = Table("Section", header_style="bold")
    for title in ("Missing", "With XXXX"):
        table.add_column(title, justify="right")
    for name, count in sections["missing"].items():
        table.add_row(name, f"{count:,}", f"{sections['marked'][name]:,}")
    table.add_row("findings and impression", f"{sections['without_findings_and_impression']:,}", "")
    table.add_row("the whole report", "", f"{sections['marked_studies']:,}")
    return table


def _list_headers(headers: Mapping[str, Mapping[str, int]]) -> Table:
    table = Table("Header", "Images", header_style="bold")
    for title, counts in headers.items():
        table.add_row(title, escape(", ".join(f"{name}: {count:,}" for name, count in counts.items())))
    return table


def print_cache(console: Console, directory: Path, summary: "CacheSummary", seconds: float) -> None:
    """Print the counts of a filled cache, and each refused file with the reason."""
    rate = f", {summary.decoded / seconds:,.0f} a second" if summary.decoded else ""
    counts = (
        f"{summary.images:,} images, {summary.decoded:,} decoded now{rate}, {len(summary.refused):,} refused"
    )
    console.print(f"{escape(directory)}: {counts}", soft_wrap=True)
    if summary.refused:
        table = Table("Refused image", "Reason", header_style="bold")
        for refusal in summary.refused:
            table.add_row(escape(refusal.image_id), escape(refusal.reason))
        console.print(table)


def describe_table(table: "pa.Table") -> dict[str, Any]:
    """Return the JSON description of a new table."""
    unknown = set(LABEL_NAMES).intersection(*(keys or () for keys in _list_unknown(table)))
    return {
        "studies": table.num_rows,
        "patients": len(table["patient_id"].unique()),
        "labelled": sum(table["labelled"].to_pylist()),
        "boxes": sum(map(len, table["boxes"].to_pylist())),
        "split": Counter(part for part in table["split"].to_pylist() if part),
        "never_stated": [key for key in LABEL_NAMES if key in unknown],
    }


def _list_unknown(table: "pa.Table") -> list[list[str]]:
    """Return the unstated labels of each labelled study. Without labelled studies, return all labels once."""
    pairs = zip(table["labelled"].to_pylist(), table["unknown_labels"].to_pylist(), strict=True)
    return [unknown for labelled, unknown in pairs if labelled] or [list(LABEL_NAMES)]


def print_table(console: Console, table: "pa.Table") -> None:
    """Print the patients, labels, boxes and split of a new table."""
    summary = describe_table(table)
    counts = f"{summary['patients']:,} patients, {summary['labelled']:,} studies labelled, {summary['boxes']:,} boxes"
    parts = ", ".join(f"{count:,} {part}" for part, count in summary["split"].items())
    console.print(counts + (f"; the collection's split: {parts}" if parts else ""), highlight=False)
    if summary["never_stated"] and summary["labelled"]:
        console.print(
            f"labels that no study states (unknown): {', '.join(summary['never_stated'])}", highlight=False
        )


def describe_images(counts: Sequence["ImageCount"]) -> dict[str, Any]:
    """Return the JSON description of a new table's images; empty if the table has none."""
    if not counts:
        return {}
    [count] = counts
    listed = {} if count.listed is None else {"listed": count.listed}
    return {
        "images": {
            "named": count.named,
            "found": count.found,
            "missing": count.named - count.found,
            **listed,
        }
    }


def print_images(console: Console, counts: Sequence["ImageCount"]) -> None:
    """Print how many of the images named in the reports were found."""
    for count in counts:
        missing = count.named - count.found
        console.print(
            f"{count.found:,} of {count.named:,} images found, {missing:,} missing",
            style="yellow" if missing else None,
        )
        if count.listed is not None:
            console.print(f"{count.listed:,} of {count.found:,} images are in the list of projections")


def print_order(console: Console, out: Path, ordered: "Ordered") -> None:
    """Print how many images the model read, and how many studies changed their first image."""
    unread = f", {ordered.unreadable:,} of them unreadable" if ordered.unreadable else ""
    console.print(
        f"{ordered.asked:,} of {ordered.images:,} images had no reliable view in their header, so the "
        f"model read them{unread}. It decided the view of {ordered.decided:,}. {ordered.moved:,} of "
        f"{ordered.studies:,} studies now begin with another image. Table: {escape(out)}",
        highlight=False,
        soft_wrap=True,
    )
