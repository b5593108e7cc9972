"""`cxr predict --finding`: score findings in the user's own words."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from cli.console import Table, escape

if TYPE_CHECKING:
    from client import FindingScore

SCORE_NOTICE: Final = (
    "A score says how much closer the case is to sentences that state the finding than to sentences that deny it. "
    "It is a similarity, not a calibrated probability."
)


def read_findings(values: Sequence[str] | None) -> tuple[str, ...]:
    """Check the findings before any request is sent; see `contract.prompts.clean_findings`."""
    from contract.prompts import clean_findings

    return clean_findings(values) if values else ()


def describe_scores(scores: Sequence["FindingScore"]) -> dict[str, Any]:
    """Return the scores for --json; empty without scores."""
    if not scores:
        return {}
    return {"finding_scores": [score.to_dict() for score in scores], "finding_scores_notice": SCORE_NOTICE}


def print_scores(console: Console, scores: Sequence["FindingScore"]) -> None:
    """Print the scores in the order of the options; nothing without scores."""
    if not scores:
        return
    table = Table(title="Findings in your words", title_justify="left", header_style="bold")
    table.add_column("Finding")
    for column in ("Score", "Cosine to present", "Cosine to absent"):
        table.add_column(column, justify="right")
    for score in scores:
        values = (score.score, score.similarity_present, score.similarity_absent)
        table.add_row(escape(score.finding), *(f"{value:.3f}" for value in values))
    console.print(table)
    console.print(f"[dim]{SCORE_NOTICE}[/dim]", highlight=False, soft_wrap=True)
