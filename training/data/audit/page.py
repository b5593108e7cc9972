"""Write a data audit as one self-contained HTML page: figures, tables and plots."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Final

from contract.files import write_file
from training.data.audit.plots import draw_counts, draw_prevalence, draw_together

Audit = Mapping[str, Any]

HEADER_NOTES: Final = {
    "photometric": "MONOCHROME1 stores air white.",
    "window": "Whether the file states the grey values to show.",
    "view": "UNKNOWN: the file does not state it.",
}


def write_page(audit: Audit, path: Path) -> None:
    """Write the page.

    Raises:
        ConfigError: The path is a directory.
        ArtifactError: The file cannot be written.
    """
    write_file(path, make_page(audit))


def make_page(audit: Audit) -> str:
    """Return the page for a result of `training.data.audit.figures.audit_table`."""
    template = Template((files("training.data.audit") / "page.html").read_text(encoding="utf-8"))
    sections = [
        _show_overview(audit),
        _show_split(audit) if audit["parts"] else "",
        _show_labels(audit),
        _section(
            "Labels that occur together",
            _TOGETHER,
            _image(draw_together(audit), "Labels that occur together"),
        ),
        _section("Per study", "", _image(draw_counts(audit), "Labels, images and words per study")),
        _show_headings(audit["headings"]),
        _show_headers(audit),
        _show_reports(audit),
        _show_duplicates(audit),
    ]
    return template.substitute(table=escape(audit["table"]), sections="\n".join(filter(None, sections)))


_TOGETHER: Final = (
    "A number counts the studies that have both labels; the colour is its share of the studies that have the label "
    "of the row, whose count follows the name."
)


def _show_overview(audit: Audit) -> str:
    facts = {
        "studies": audit["studies"],
        "patients": audit["patients"],
        "images": audit["images"],
        "studies without image": audit["images_per_study"].get("0", 0),
        "labelled studies": audit["labelled"],
        "nearly equal reports": audit["duplicates"]["near"]["studies"],
    }
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{count:,}</dd></div>" for name, count in facts.items())
    return f'<section><dl class="facts">{cells}</dl></section>'


def _show_labels(audit: Audit) -> str:
    text = "The share of each label among the studies whose label is known"
    text += "; dots show it in the parts of the split." if audit["parts"] else "."
    missing = [label["name"] for label in audit["labels"].values() if label["known"] and not label["studies"]]
    unknown = [label["name"] for label in audit["labels"].values() if not label["known"]]
    warning = f'<p class="warn">No study has: {escape(", ".join(missing))}.</p>' if missing else ""
    if unknown and audit["labelled"]:
        warning += f'<p class="quiet">Unknown for every study: {escape(", ".join(unknown))}.</p>'
    return _section("Labels", text, warning + _image(draw_prevalence(audit), "Share of each label"))


def _show_split(audit: Audit) -> str:
    parts = audit["parts"]
    rows = [
        [
            part,
            f"{figures['studies']:,}",
            f"{100 * figures['studies'] / max(sum(parts['studies'].values()), 1):.1f} %",
            f"{figures['labelled']:,}",
            f"{figures['images']:,}",
            f"{figures['labels_per_study']:.2f}",
            f"{100 * figures['labels']['normal']['share']:.1f} %",
            ", ".join(figures["missing_labels"]) or "-",
        ]
        for part, figures in parts["described"].items()
    ]
    head = ["part", "studies", "share", "labelled", "images", "labels per study", "normal", "labels it lacks"]
    divided = parts["divided"]
    kind = "warn" if any(divided.values()) else "quiet"
    words = (
        f"On more than one side: {divided['patients']:,} patients, {divided['equal_reports']:,} groups of equal and "
        f"{divided['near_reports']:,} of nearly equal reports. Not mentioned: {parts['not_mentioned']:,} studies."
    )
    return _section(
        f"Split: {audit['split']}",
        "",
        _table(head, rows, numbers=range(1, 7)) + f'<p class="{kind}">{words}</p>',
    )


def _show_headings(headings: Mapping[str, Any]) -> str:
    text = (
        f"Different MeSH headings: {headings['distinct']:,}. Studies without any: {headings['without_heading']:,}. "
        f"Studies without a heading that gives a label, so unlabelled: {headings['without_label']:,}."
    )
    rows = [[entry["heading"], f"{entry['studies']:,}", entry["reason"]] for entry in headings["unmapped"]]
    return _section(
        "Headings without a label",
        text,
        _table(["heading", "studies", "why it gives no label"], rows, numbers=[1]) if rows else "",
    )


def _show_headers(audit: Audit) -> str:
    if not audit["images"]:
        return _section("Image headers", "The table names no image.", "")
    tables = "".join(
        f"<div><h3>{escape(title)}</h3>{_bars(counts)}"
        + (f'<p class="quiet">{escape(HEADER_NOTES[title])}</p>' if title in HEADER_NOTES else "")
        + "</div>"
        for title, counts in audit["headers"].items()
    )
    return _section(
        "Image headers",
        "Values in the headers of the files; - if a file does not state one.",
        f'<div class="columns">{tables}</div>',
    )


def _show_reports(audit: Audit) -> str:
    sections, quantiles = audit["sections"], audit["words"]["quantiles"]
    studies = audit["studies"]
    rows = [
        [
            name,
            f"{count:,}",
            f"{100 * count / studies:.1f} %",
            f"{sections['marked'][name]:,}",
            f"{100 * sections['marked'][name] / studies:.1f} %",
        ]
        for name, count in sections["missing"].items()
    ]
    text = (
        f"Studies with neither findings nor impression: {sections['without_findings_and_impression']:,}. Studies "
        f"with XXXX, which replaces de-identified words: {sections['marked_studies']:,} "
        f"({100 * sections['marked_studies'] / studies:.1f} %); it is {100 * sections['marked_words_share']:.1f} % of "
        "all words. "
    )
    if quantiles:
        listed = ", ".join(f"{name} {count:,}" for name, count in quantiles.items())
        text += f"Words of findings and impression: {listed}."
    head = ["section", "missing", "share", "with XXXX", "share"]
    return _section("Reports", text, _table(head, rows, numbers=range(1, 5)))


def _show_duplicates(audit: Audit) -> str:
    duplicates = audit["duplicates"]
    counts = [
        [title, f"{one['groups']:,}", f"{one['studies']:,}", f"{one['largest']:,}"]
        for title, one in (("equal", duplicates["equal"]), ("nearly equal", duplicates["near"]))
    ]
    examples = [
        [f"{group['studies']:,}", ", ".join(group["study_ids"]) + (", ..." if group["studies"] > 5 else "")]
        for group in duplicates["near"]["examples"]
    ]
    text = (
        "Findings and impression, without case, punctuation and XXXX. Nearly equal: the Jaccard similarity of their "
        f"runs of three words is {duplicates['similarity']} or more, directly or through others; equal ones count too."
    )
    body = _table(["reports", "groups", "studies in them", "largest group"], counts, numbers=range(1, 4))
    if examples:
        body += "<h3>Largest groups</h3>" + _table(["studies", "the first of them"], examples, numbers=[0])
    return _section("Equal and nearly equal reports", text, body)


def _section(title: str, text: str, body: str) -> str:
    """Return a section. `body` is HTML; the other arguments are plain text."""
    paragraph = f"<p>{escape(text)}</p>" if text else ""
    return f"<section><h2>{escape(title)}</h2>{paragraph}{body}</section>"


def _image(address: str, description: str) -> str:
    text = escape(description)
    image = f'<img src="{escape(address)}" alt="{text}">'
    return f'<div class="wide" tabindex="0" role="region" aria-label="{text}">{image}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int]) -> str:
    right = set(numbers)
    kinds = [' class="number"' if index in right else "" for index in range(len(head))]
    titles = "".join(f"<th{kind}>{escape(title)}</th>" for kind, title in zip(kinds, head, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _bars(counts: Mapping[str, int]) -> str:
    total = max(sum(counts.values()), 1)
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{count:,}</td>'
        f'<td class="bar"><span style="width:{100 * count / total:.1f}%"></span></td></tr>'
        for name, count in counts.items()
    )
    return f"<table><tbody>{rows}</tbody></table>"
