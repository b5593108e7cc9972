"""What `export.gates.precision` measured, row by row, and whether it is within a profile's limits."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from contract.bundle import Bundle, amend_bundle, write_json
from contract.decisions import ServedLabel
from export.gates.measures import (
    MIN_CASES,
    MIN_SCORED,
    compute_cosines,
    count_flips,
    find_largest_difference,
    measure_overlap,
    score_labels,
)
from export.gates.parity import ParityCase
from export.gates.questions import Kind
from export.profiles import Limits

Pair = tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]  # what was expected, what was found
REPORTS: Final = "precision"  # directory in a bundle
_AT_LEAST: Final = frozenset({"embedding_cosine", "neighbour_overlap"})  # the other limits are upper ones


class Answers(Protocol):
    """The answers of both sides to one kind of question."""

    def read(self, output: str) -> tuple[Any, Any]:
        """Return the (M, ...) expected and found arrays of an output."""


@dataclass(frozen=True)
class KindPrecision:
    """One kind of question, asked in batches of one size; None was not measured.

    Attributes:
        kind: "study", "image" or "text".
        batch_size: Largest number of cases in a batch.
        cases: How many were asked.
        decisions: Cases times labels.
        flips: How many decisions turned from present to absent or back.
        probability_difference: Largest absolute difference of a probability.
        mean_difference: Mean absolute difference of a probability.
        embedding_cosine: Smallest cosine of a case's two embeddings.
        mean_cosine: Mean cosine.
        scored_labels: Labels that AUROC and AP are the mean of: some but not all cases have them.
        auroc_change: Absolute change of the macro AUROC.
        ap_change: Absolute change of the macro average precision.
        neighbour_overlap: Mean share of the ten nearest cases that stay.
    """

    kind: str
    batch_size: int
    cases: int
    decisions: int
    flips: int
    probability_difference: float
    mean_difference: float
    embedding_cosine: float
    mean_cosine: float
    scored_labels: int
    auroc_change: float | None
    ap_change: float | None
    neighbour_overlap: float | None

    @property
    def flip_share(self) -> float:
        """Share of the decisions that flipped, 0 to 1."""
        return self.flips / max(self.decisions, 1)

    def list_failures(self, limits: Limits) -> list[str]:
        """Return one clause for a person per measure that is beyond its limit."""
        failures = []
        for measure, allowed in asdict(limits).items():
            found = getattr(self, measure)
            if found is None or self._is_within(measure, found, allowed):
                continue
            bound = "at least" if measure in _AT_LEAST else "at most"
            where = f"{self.kind}, {'alone' if self.batch_size == 1 else 'in batches'}"
            failures.append(f"{measure} of {where} is {found:.6g}, allowed is {bound} {allowed:g}")
        return failures

    def _is_within(self, measure: str, found: float, allowed: float) -> bool:
        if measure == "flip_share" and allowed > 0 and self.flips <= 1:
            return True  # the smallest number of flips that so few decisions can show
        return found >= allowed if measure in _AT_LEAST else found <= allowed  # NaN is neither


@dataclass(frozen=True)
class GraphPrecision:
    """How far one output of one graph is off: root mean square of the difference over that of the expected.

    A fusion graph reads what the profile's own encoders wrote, so its rows hold their differences too.
    """

    graph: str
    output: str
    relative_difference: float


@dataclass(frozen=True)
class PrecisionReport:
    """All measures of one profile against float32.

    Attributes:
        profile: Its name.
        limits: What it is held to.
        fingerprint: Of the bundle.
        reference: What it was compared with.
        runtimes: Graph -> what ran it.
        cases: How many were asked.
        kinds: The measures.
        graphs: How far the outputs of each graph are off.
        not_gated: Kind -> why it is held to nothing.
        kept: Products that stay in float32, as "graph/node (K x N)", in the order in which they were chosen.
        products: How many products there are, where some may stay in float32.
        beyond_with_fewer: What was beyond its limit before those that cost the most were kept too; "" for nothing.
    """

    profile: str
    limits: Limits
    fingerprint: str
    reference: str
    runtimes: dict[str, str]
    cases: int
    kinds: tuple[KindPrecision, ...]
    graphs: tuple[GraphPrecision, ...]
    not_gated: dict[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    products: int = 0
    beyond_with_fewer: str = ""

    @property
    def gated(self) -> tuple[KindPrecision, ...]:
        """The measures that are held to the limits."""
        return tuple(row for row in self.kinds if row.kind not in self.not_gated)

    @property
    def failures(self) -> list[str]:
        """One clause for each measure that is beyond its limit; [] where the profile may be published."""
        return [failure for row in self.gated for failure in row.list_failures(self.limits)]

    @property
    def passed(self) -> bool:
        """Whether every measure is within its limit."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; what is not a finite number is None."""
        values = {**asdict(self), "passed": self.passed, "failures": self.failures}
        for row, kind in zip(values["kinds"], self.kinds, strict=True):
            row["flip_share"] = kind.flip_share
        return _drop_nan(values)

    def to_sentence(self) -> str:
        """Return the verdict in one line."""
        if not self.passed:
            return f"Profile {self.profile} is beyond its limits on {self.cases} cases: {self.failures[0]}"
        flips, decisions = (sum(getattr(row, name) for row in self.gated) for name in ("flips", "decisions"))
        return (
            f"Profile {self.profile} is within its limits on {self.cases} cases: probabilities differ by at most "
            f"{max(row.probability_difference for row in self.gated):.1e}, {flips} of {decisions} decisions flip, "
            f"embeddings keep a cosine of {min(row.embedding_cosine for row in self.gated):.5f}"
            + (f"; {len(self.kept)} of {self.products} products stay in float32" if self.kept else "")
        )

    def to_markdown(self) -> str:
        """Return the report as tables for people."""
        runtimes = ", ".join(sorted(set(self.runtimes.values())))
        limits = self.limits
        lines = [
            f"Profile {self.profile} against {self.reference}: {self.cases} cases; {runtimes}",
            "",
            "| asked | batch | cases | probability, largest | mean | flips | of | cosine, smallest | mean "
            "| AUROC | AP | labels | ten nearest | |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
            *(_format_kind(row, self._judge(row)) for row in self.kinds),
            f"| allowed | | | {limits.probability_difference:g} | | {limits.flip_share:.2%} | "
            f"| {limits.embedding_cosine:g} | | {limits.auroc_change:g} | {limits.ap_change:g} | "
            f"| {limits.neighbour_overlap:.0%} | |",
            "",
            "| graph | output | relative difference |",
            "|---|---|---|",
            *(f"| {x.graph} | {x.output} | {x.relative_difference:.1e} |" for x in self.graphs),
        ]
        lines += ["", f"Held to the limits: {', '.join(dict.fromkeys(row.kind for row in self.gated))}."]
        lines += [f"Not held to them: {kind}, because {reason}." for kind, reason in self.not_gated.items()]
        if self.kept:
            lines += [
                "",
                f"{len(self.kept)} of {self.products} products stay in float32: {', '.join(self.kept)}.",
            ]
        if self.beyond_with_fewer:
            lines += [
                f"The last product of each encoder always does. With no more than that, {self.beyond_with_fewer}."
            ]
        if any(row.neighbour_overlap is None and row.batch_size > 1 for row in self.gated):
            lines += ["", f"The ten nearest were not measured where fewer than {MIN_CASES} cases were asked."]
        if all(row.auroc_change is None for row in self.gated):
            lines += ["", f"AUROC and AP were not measured: that takes {MIN_SCORED} cases with labels."]
        return "\n".join(lines) + "\n"

    def _judge(self, row: KindPrecision) -> str:
        if row.kind in self.not_gated:
            return "not gated"
        return "FAILED" if row.list_failures(self.limits) else "ok"


def write_report(bundle: Bundle, report: PrecisionReport) -> Path:
    """Add a report to the bundle as `precision/<profile>.json` and `.md`, in place of an earlier one of the profile.

    Returns:
        The Markdown file.

    Raises:
        ArtifactError: The disk refused the write; the bundle is as it was.
    """
    data, text = (f"{REPORTS}/{report.profile}.{ending}" for ending in ("json", "md"))
    with amend_bundle(bundle, changed=(data, text)) as scratch:
        (scratch / REPORTS).mkdir(exist_ok=True)
        write_json(scratch / data, report.to_dict())
        (scratch / text).write_text(report.to_markdown(), encoding="utf-8")
    return bundle.path / text


def measure_kind(
    labels: Sequence[ServedLabel],
    kind: Kind,
    batch_size: int,
    answers: Answers,
    cases: Sequence[ParityCase],
) -> KindPrecision:
    """Measure the answers to one kind of question.

    Args:
        labels: The K categories as the bundle decides them for this kind.
        kind: The kind.
        batch_size: Largest number of cases in a batch; of cases that were asked alone (1) only what each of them shows
            by itself is measured.
        answers: `probabilities` (M, K) and `embedding` (M, D) of both sides.
        cases: The M cases; of each what is known of its labels counts.
    """
    expected, found = answers.read("probabilities")
    embeddings = answers.read("embedding")
    cosines = compute_cosines(*embeddings)
    whole = batch_size > 1
    auroc, ap, scored = _measure_scores(cases, expected, found) if whole else (None, None, 0)
    return KindPrecision(
        kind=kind,
        batch_size=batch_size,
        cases=len(expected),
        decisions=expected.size,
        flips=count_flips(labels, expected, found),
        probability_difference=find_largest_difference(expected, found),
        mean_difference=float(np.abs(expected - found).mean()),
        embedding_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        scored_labels=scored,
        auroc_change=auroc,
        ap_change=ap,
        neighbour_overlap=measure_overlap(*embeddings) if whole else None,
    )


def measure_distances(limits: Limits, probabilities: Pair, embeddings: Pair) -> NDArray[np.float64]:
    """Return for each of M cases how much of a profile's limits its answers use up; above 1 is beyond them.

    Small independent differences add up in it: it is the cosine distance over the allowed one or, where that is more,
    the square of the largest difference of a probability over that of the allowed one.

    Args:
        limits: The profile's.
        probabilities: Expected and found (M, K).
        embeddings: Expected and found (M, D).
    """
    tiny = float(np.finfo(np.float64).tiny)
    distances = (1 - compute_cosines(*embeddings)) / max(1 - limits.embedding_cosine, tiny)
    differences = np.abs(probabilities[0].astype(np.float64) - probabilities[1]).max(axis=1)
    squares = (differences / max(limits.probability_difference, tiny)) ** 2
    return np.nan_to_num(np.maximum(distances, squares), nan=np.inf, posinf=np.inf)


def _measure_scores(
    cases: Sequence[ParityCase], expected: Any, found: Any
) -> tuple[float | None, float | None, int]:
    """Return the absolute changes of AUROC and AP over the cases with labels, and the number of labels scored."""
    labelled = {row: case.labels for row, case in enumerate(cases) if case.labels is not None}
    if len(labelled) < MIN_SCORED:
        return None, None, 0
    rows = list(labelled)
    targets = np.stack(list(labelled.values())).astype(bool)
    stated = [cases[row].known for row in rows]
    known = np.stack([np.ones(targets.shape[1], bool) if known is None else known for known in stated])
    before, after = (score_labels(targets, answers[rows], known) for answers in (expected, found))
    if not before[2]:
        return None, None, 0
    return abs(after[0] - before[0]), abs(after[1] - before[1]), before[2]


def _format_kind(row: KindPrecision, verdict: str) -> str:
    auroc, ap = ("-" if value is None else f"{value:.1e}" for value in (row.auroc_change, row.ap_change))
    overlap = "-" if row.neighbour_overlap is None else f"{row.neighbour_overlap:.1%}"
    return (
        f"| {row.kind} | {row.batch_size} | {row.cases} | {row.probability_difference:.1e} "
        f"| {row.mean_difference:.1e} | {row.flips} | {row.decisions} | {row.embedding_cosine:.6f} "
        f"| {row.mean_cosine:.6f} | {auroc} | {ap} | {row.scored_labels or '-'} | {overlap} "
        f"| {verdict} |"
    )


def _drop_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_drop_nan(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
