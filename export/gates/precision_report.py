"""The measures of the precision gate (`export.gates.precision`), and their comparison with a profile's limits."""

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
from export.gates.requests import Kind
from export.profiles import Limits

Pair = tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]  # expected and actual
REPORTS: Final = "precision"  # directory in a bundle
_AT_LEAST: Final = frozenset({"embedding_cosine", "neighbour_overlap"})  # the other limits are upper limits


class Answers(Protocol):
    """The expected and the actual answers to one kind of request."""

    def read(self, output: str) -> tuple[Any, Any]:
        """Return the expected and the actual array of an output, both (M, ...)."""


@dataclass(frozen=True)
class KindPrecision:
    """The measures of one kind of request in batches of one size. None: not measured.

    Attributes:
        kind: "study", "image" or "text".
        batch_size: Largest number of cases in a batch.
        cases: Number of cases.
        decisions: Number of cases times number of labels.
        flips: Number of decisions that changed from present to absent or back.
        probability_difference: Largest absolute difference of a probability.
        mean_difference: Mean absolute difference of a probability.
        embedding_cosine: Smallest cosine of a case's two embeddings in the joint space.
        mean_cosine: Mean cosine.
        scored_labels: Number of labels in the means of AUROC and AP: those with positive and negative cases.
        auroc_change: Absolute change of the macro AUROC.
        ap_change: Absolute change of the macro average precision.
        neighbour_overlap: Mean share of the ten nearest cases that both sides have in common.
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
        """Share of flipped decisions, 0 to 1."""
        return self.flips / max(self.decisions, 1)

    def list_failures(self, limits: Limits) -> list[str]:
        """Return one clause of a message for each measure that is beyond its limit."""
        failures = []
        for measure, allowed in asdict(limits).items():
            actual = getattr(self, measure)
            if actual is None or self._is_within(measure, actual, allowed):
                continue
            bound = "at least" if measure in _AT_LEAST else "at most"
            where = f"{self.kind}, {'alone' if self.batch_size == 1 else 'in batches'}"
            failures.append(f"{measure} of {where} is {actual:.6g}, but must be {bound} {allowed:g}")
        return failures

    def _is_within(self, measure: str, actual: float, allowed: float) -> bool:
        if measure == "flip_share" and allowed > 0 and self.flips <= 1:
            return True  # one flip is always allowed; see `export.gates.precision`
        return actual >= allowed if measure in _AT_LEAST else actual <= allowed  # False for NaN


@dataclass(frozen=True)
class GraphPrecision:
    """The relative difference of one output of one graph: RMS of the difference over RMS of the expected values.

    A fusion graph reads the tokens of the profile's own encoders, so its difference includes theirs.
    """

    graph: str
    output: str
    relative_difference: float


@dataclass(frozen=True)
class PrecisionReport:
    """All measures of one profile against float32.

    Attributes:
        profile: Name of the profile.
        limits: Limits of the profile.
        fingerprint: Fingerprint of the bundle.
        reference: Description of the float32 side.
        runtimes: Graph -> description of its runtime.
        cases: Number of cases.
        kinds: The measures of each kind of request.
        graphs: The relative differences of each graph's outputs.
        not_gated: Kind of request without limits -> the reason.
        kept: Products that stay in float32, as "graph/node (K x N)", in the order in which they were chosen.
        products: Number of all products, if the profile may leave some in float32.
        beyond_with_fewer: The first failure while fewer products were in float32; "" if there was none.
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
        """The measures with limits."""
        return tuple(row for row in self.kinds if row.kind not in self.not_gated)

    @property
    def failures(self) -> list[str]:
        """One clause for each measure that is beyond its limit; [] if the profile may be published."""
        return [failure for row in self.gated for failure in row.list_failures(self.limits)]

    @property
    def passed(self) -> bool:
        """Whether every measure is within its limit."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values, with None for values that are not finite."""
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
        """Return the report as Markdown tables."""
        runtimes = ", ".join(sorted(set(self.runtimes.values())))
        limits = self.limits
        lines = [
            f"Profile {self.profile} against {self.reference}: {self.cases} cases; {runtimes}",
            "",
            "| input | batch | cases | largest change of a probability | mean | flips | of | smallest cosine | mean "
            "| AUROC | AP | labels | common neighbours | |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
            *(_format_kind(row, self._judge(row)) for row in self.kinds),
            f"| limit | | | {limits.probability_difference:g} | | {limits.flip_share:.2%} | "
            f"| {limits.embedding_cosine:g} | | {limits.auroc_change:g} | {limits.ap_change:g} | "
            f"| {limits.neighbour_overlap:.0%} | |",
            "",
            "| graph | output | relative difference |",
            "|---|---|---|",
            *(f"| {x.graph} | {x.output} | {x.relative_difference:.1e} |" for x in self.graphs),
        ]
        lines += ["", f"The limits apply to: {', '.join(dict.fromkeys(row.kind for row in self.gated))}."]
        lines += [f"No limits for {kind}, because {reason}." for kind, reason in self.not_gated.items()]
        if self.kept:
            lines += [
                "",
                f"{len(self.kept)} of {self.products} products stay in float32: {', '.join(self.kept)}.",
            ]
        if self.beyond_with_fewer:
            lines += [
                "The last product of each encoder always stays in float32. With these products alone, "
                f"{self.beyond_with_fewer}."
            ]
        if any(row.neighbour_overlap is None and row.batch_size > 1 for row in self.gated):
            lines += ["", f"Common neighbours were not measured with fewer than {MIN_CASES} cases."]
        if all(row.auroc_change is None for row in self.gated):
            lines += [
                "",
                f"AUROC and AP were not measured, because they need {MIN_SCORED} cases with labels.",
            ]
        return "\n".join(lines) + "\n"

    def _judge(self, row: KindPrecision) -> str:
        if row.kind in self.not_gated:
            return "not gated"
        return "FAILED" if row.list_failures(self.limits) else "ok"


def write_report(bundle: Bundle, report: PrecisionReport) -> Path:
    """Write a report into the bundle as `precision/<profile>.json` and `.md`. It replaces the profile's earlier report.

    Returns:
        The path of the Markdown file.

    Raises:
        ArtifactError: The disk refused the write. The bundle is unchanged.
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
    label_part: int,
) -> KindPrecision:
    """Measure the answers to one kind of request.

    Args:
        labels: The K categories with the thresholds of the bundle for this kind.
        kind: The kind.
        batch_size: Largest number of cases in a batch. With 1 only the measures of single cases are computed, not
            AUROC, AP and common neighbours.
        answers: `probabilities` (M, K) and `embedding` (M, D) of both sides.
        cases: The M cases. Their known labels are used for AUROC and AP.
        label_part: Length of the label part of the embeddings.
    """
    expected, actual = answers.read("probabilities")
    embeddings = answers.read("embedding")
    cosines = compute_cosines(*embeddings, label_part)
    whole = batch_size > 1
    auroc, ap, scored = _measure_scores(cases, expected, actual) if whole else (None, None, 0)
    return KindPrecision(
        kind=kind,
        batch_size=batch_size,
        cases=len(expected),
        decisions=expected.size,
        flips=count_flips(labels, expected, actual),
        probability_difference=find_largest_difference(expected, actual),
        mean_difference=float(np.abs(expected - actual).mean()),
        embedding_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        scored_labels=scored,
        auroc_change=auroc,
        ap_change=ap,
        neighbour_overlap=measure_overlap(*embeddings) if whole else None,
    )


def measure_distances(
    limits: Limits, probabilities: Pair, embeddings: Pair, label_part: int
) -> NDArray[np.float64]:
    """Return the difference of each case (M,) as a multiple of a profile's limits; above 1 is beyond the limits.

    It is the larger of two ratios: the cosine distance over the largest allowed one, and the square of the largest
    change of a probability over the square of the largest allowed one. Both ratios are quadratic in a small error, so
    the values of independent errors add up.

    Args:
        limits: Limits of the profile.
        probabilities: Expected and actual (M, K).
        embeddings: Expected and actual (M, D).
        label_part: Length of the label part of the embeddings.
    """
    tiny = float(np.finfo(np.float64).tiny)
    distances = (1 - compute_cosines(*embeddings, label_part)) / max(1 - limits.embedding_cosine, tiny)
    differences = np.abs(probabilities[0].astype(np.float64) - probabilities[1]).max(axis=1)
    squares = (differences / max(limits.probability_difference, tiny)) ** 2
    return np.nan_to_num(np.maximum(distances, squares), nan=np.inf, posinf=np.inf)


def _measure_scores(
    cases: Sequence[ParityCase], expected: Any, actual: Any
) -> tuple[float | None, float | None, int]:
    """Return the absolute changes of AUROC and AP over the cases with labels, and the number of scored labels."""
    labelled = {row: case.labels for row, case in enumerate(cases) if case.labels is not None}
    if len(labelled) < MIN_SCORED:
        return None, None, 0
    rows = list(labelled)
    targets = np.stack(list(labelled.values())).astype(bool)
    stated = [cases[row].known for row in rows]
    known = np.stack([np.ones(targets.shape[1], bool) if known is None else known for known in stated])
    before, after = (score_labels(targets, answers[rows], known) for answers in (expected, actual))
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
