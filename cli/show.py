"""Results as tables for a person and as JSON for a program."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.console import Console

from cli.console import Table, escape
from contract import notes
from contract.errors import FingerprintError, ServiceError

if TYPE_CHECKING:
    from client.cases import IndexResult, SimilarCase
    from client.explanation import Explanation
    from client.health import Health
    from client.prediction import Finding, Prediction
    from contract.notes import ImageNotes, ReportNotes
    from serving.doctor import Check

NOTICE: Final = notes.NOTICE
KIND_TITLES: Final = {
    "study": "image and report",
    "image": "image alone",
    "text": "report alone",
    "study_views": "both views and report",
    "views": "both views",
}
_METRICS: Final = {"auroc": "AUROC", "ap": "AP", "f1": "F1"}
_SHOWN_WORDS: Final = 6
_SHOWN_WARNED: Final = 10


def print_json(value: Any) -> None:
    """Write one JSON document to standard output."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def print_prediction(
    console: Console, prediction: "Prediction", *, top: int = 6, title: str = "Findings"
) -> None:
    """Print the most likely findings, the labels that remain possible, how the inputs were read, and the warnings."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column, justify in (
        ("Finding", "left"),
        ("Probability", "right"),
        ("Threshold", "right"),
        ("", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    ranked = sorted(prediction.findings, key=lambda finding: (finding.held_out, -finding.probability))
    for finding in ranked[:top]:
        table.add_row(
            escape(finding.name),
            f"{finding.probability:.3f}",
            "-" if finding.threshold is None else f"{finding.threshold:.3f}",
            _mark_decision(finding),
        )
        if finding.remark:
            table.add_row(f"  [dim]{finding.remark}[/dim]")
    console.print(table)
    _print_set(console, prediction)
    for number, image in enumerate(prediction.images, start=1):
        title = f"Image {number}" if prediction.further_images else "Image"
        line = escape(describe_image(image.notes, image.lateral, title=title))
        console.print(f"[dim]{line}[/dim]", highlight=False, soft_wrap=True)
    if prediction.report_notes is not None:
        line = escape(describe_report(prediction.report_notes))
        console.print(f"[dim]{line}[/dim]", highlight=False, soft_wrap=True)
    print_warnings(console, prediction.warnings)


def _mark_decision(finding: "Finding") -> str:
    if finding.decision == "uncertain":
        band = f"{finding.uncertain_low:.3f} to {finding.uncertain_high:.3f}"
        return f"[bold yellow]uncertain[/bold yellow] [dim]({band})[/dim]"
    if finding.decision == "undecided":
        return "[dim]not decided[/dim]"
    return "[bold]present[/bold]" if finding.decision == "present" else "[dim]below[/dim]"


def _print_set(console: Console, prediction: "Prediction") -> None:
    """Print the labels that remain possible, if the model has a conformal set."""
    if prediction.conformal_set is not None:
        sentence = escape(prediction.conformal_set.to_sentence(prediction.kind))
        console.print(f"[dim]{sentence}[/dim]", highlight=False, soft_wrap=True)


def describe_image(notes: "ImageNotes", lateral: float | None = None, *, title: str = "Image") -> str:
    """Return one line: the view in the header, and the model's probability of a lateral view."""
    view = "unknown" if notes.view == "UNKNOWN" else notes.view
    known = {"view": view, "laterality": notes.laterality, "modality": notes.modality}
    seen = () if lateral is None else (f"lateral with probability {lateral:.2f} by the model",)
    return f"{title}: " + ", ".join((*(f"{name} {value}" for name, value in known.items() if value), *seen))


def describe_report(notes: "ReportNotes") -> str:
    """Return one line: how each part of a report was read."""
    return f"Report: read as {notes.describe_parts()}"


def print_warnings(console: Console, warnings: Sequence[str]) -> None:
    """Print warnings, one line each."""
    for sentence in warnings:
        console.print(
            f"[bold yellow]Warning:[/bold yellow] {escape(sentence)}", highlight=False, soft_wrap=True
        )


def print_cases(console: Console, cases: Sequence["SimilarCase"], *, title: str = "Similar cases") -> None:
    """Print cases in their order, with their labels (✓: the query has it too) and a part of their reports.

    The part is the sentence that fits the query's text best; without one, the start.
    """
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("Case")
    table.add_column("Similarity", justify="right", no_wrap=True)
    table.add_column("Labels")
    table.add_column("Report")
    for case in cases:
        report = " ".join((case.excerpt or case.report).split())
        excerpt = report if len(report) <= 110 else report[:107] + "..."
        labels = ", ".join(f"✓ {key}" if key in case.shared_labels else key for key in case.labels)
        table.add_row(escape(case.id), f"{case.score:.3f}", escape(labels or "-"), escape(excerpt))
    console.print(table)


def print_indexed(console: Console, result: "IndexResult") -> None:
    """Print the number of added and replaced cases, every refused case, and the first cases with a warning."""
    refused, warned = len(result.refused), len(result.warned)
    console.print(
        f"{result.indexed} cases indexed ({result.added} added, {result.replaced} replaced), "
        f"{warned} of them with a warning, {refused} refused",
        highlight=False,
    )
    print_warnings(console, result.warnings)
    for case_id, reason in result.refused:
        console.print(f"  {escape(case_id)}: {escape(reason)}", soft_wrap=True)
    for case_id, sentences in result.warned[:_SHOWN_WARNED]:
        console.print(f"  {escape(case_id)}: {escape(' '.join(sentences))}", soft_wrap=True)
    if warned > _SHOWN_WARNED:
        console.print(
            f"  {warned - _SHOWN_WARNED} more with a warning; --json lists all of them", highlight=False
        )


def print_metrics(console: Console, metrics: Mapping[str, Any]) -> None:
    """Print a model's results on its test split, for each way of reading a study."""
    rows = {KIND_TITLES[kind]: result for kind, result in metrics["test"].items()}
    _print_results(console, rows)


def print_control(console: Console, metrics: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    """Print the model's results from reports beside those of the control on the same test studies."""
    rows = {"this model": metrics["test"]["text"], "TF-IDF control": control}
    _print_results(console, rows)


def _print_results(console: Console, rows: Mapping[str, Mapping[str, Any]]) -> None:
    table = Table(title="Test split", title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("Read from", no_wrap=True)
    for name in _METRICS.values():
        table.add_column(name, justify="right", no_wrap=True)
    for title, result in rows.items():
        table.add_row(title, *(format_interval(result["macro"].get(name)) for name in _METRICS))
    console.print(table)
    console.print(f"[dim]{_describe_results(rows)}[/dim]", highlight=False, soft_wrap=True)


def _describe_results(rows: Mapping[str, Mapping[str, Any]]) -> str:
    studies = max(result["studies"] for result in rows.values())
    categories = max(len(result["averaged"]) for result in rows.values())
    return (
        f"{studies} test studies; means over the {categories} categories with enough of them, with 95 % intervals "
        "(patients resampled). Chance is an AUROC of 0.5."
    )


def format_interval(interval: Mapping[str, float] | None) -> str:
    """Write a figure with its 95 % interval."""
    if interval is None:
        return "-"
    return f"{interval['value']:.3f} ({interval['low']:.2f}-{interval['high']:.2f})"


def print_explanation(console: Console, explanation: "Explanation", overlay: str | None) -> None:
    """Print the explained finding, the words for and against it, and the path of the overlay."""
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in explanation.shares.items())
    console.print(
        f"[bold]Why {escape(explanation.name)}[/bold]: probability {explanation.probability:.3f}, "
        f"{explanation.verdict}; share of the attribution: {shares}",
        highlight=False,
    )
    for title, words in _rank_words(explanation).items():
        if words:
            console.print(f"  words {title}: {escape(', '.join(words))}", highlight=False)
    console.print(
        f"  Integrated Gradients against {explanation.baseline}: logit {explanation.baseline_logit:+.2f} -> "
        f"{explanation.logit:+.2f}, {explanation.relative_delta:.1%} of the difference unexplained after "
        f"{explanation.steps} steps",
        highlight=False,
    )
    if len(explanation.baselines) > 1:
        for one in explanation.baselines:
            console.print(
                f"    {one.key}: logit {one.logit:+.2f}, {one.convergence_delta:.3g} logits unexplained after "
                f"{one.steps} steps",
                highlight=False,
            )
    for found in explanation.maps:
        console.print(f"  map: {found.title} ({found.seconds:.2f} s)", highlight=False)
    for remark in explanation.remarks:
        console.print(f"  {escape(remark)}", highlight=False, soft_wrap=True)
    print_warnings(console, explanation.warnings)
    if overlay:
        console.print(f"  overlay: {escape(overlay)}", highlight=False, soft_wrap=True)


def _rank_words(explanation: "Explanation") -> dict[str, list[str]]:
    """Return the strongest words for and against, each with its attribution in logits."""
    ranked = sorted(explanation.words, key=lambda word: -abs(word.attribution))[: 2 * _SHOWN_WORDS]
    signed = [(word, f"{word.text} {word.attribution:+.2f}") for word in ranked]
    return {
        "for": [text for word, text in signed if word.attribution > 0][:_SHOWN_WORDS],
        "against": [text for word, text in signed if word.attribution < 0][:_SHOWN_WORDS],
    }


def find_exit_code(health: "Health") -> int:
    """Return the exit code of `cxr doctor`. A server that does not answer has priority over a wrong index."""
    if health.triton is not None or (health.retrieval is not None and health.cases is None):
        return ServiceError.exit_code
    return FingerprintError.exit_code if health.retrieval is not None else 0


def print_checks(console: Console, checks: Sequence["Check"], health: "Health | None") -> None:
    """Print the checks of the machine and, if they were contacted, the state and model of the servers."""
    from contract.training_data import UNKNOWN, describe_training

    for check in checks:
        mark = "[green]ok[/green]     " if check.ok else "[yellow]missing[/yellow]"
        console.print(
            f"{mark} {escape(check.name):<22} {escape(check.detail)}", highlight=False, soft_wrap=True
        )
    if health is None:
        return
    for name, trouble in (("triton server", health.triton), ("retrieval sidecar", health.retrieval)):
        mark = "[green]ok[/green]     " if trouble is None else "[yellow]down[/yellow]   "
        console.print(f"{mark} {name:<22} {escape(trouble or 'answers')}", highlight=False, soft_wrap=True)
    if health.fingerprint:
        trained = describe_training(health.trained_on or UNKNOWN)
        count = "unknown how many" if health.cases is None else health.cases  # the sidecar does not answer
        served = f"model {health.fingerprint[:12]}, {trained}, {count} cases indexed"
        console.print(f"        {'served':<22} {escape(served)}", highlight=False, soft_wrap=True)
        if health.index:
            console.print(f"        {'index':<22} {escape(health.index)}", highlight=False, soft_wrap=True)
        print_warnings(console, health.warnings)
