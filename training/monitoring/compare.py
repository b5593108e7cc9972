"""Compare a reference with what the model reads and answers now: one row for each value, with a verdict.

A row says "too few cases" if one of the two sides has fewer than `FEWEST` values. The p values of all other rows are
adjusted together by Benjamini and Hochberg. A row says "changed" if its adjusted p value is below `LEVEL`, otherwise
"no change seen". So, if nothing changed, at most one comparison in 20 has any row that says "changed". (The procedure
holds for rows that depend on each other positively: Y. Benjamini, D. Yekutieli, Annals of Statistics 29(4), 2001.)

A change is no verdict on accuracy: without labels, nothing here says whether the answers are right.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from scipy import stats

from contract.embedding import take_joint
from contract.labels import LABEL_KEYS
from training.monitoring.reference import Reference
from training.monitoring.results import Current
from training.monitoring.sample import CATEGORIES, Sample, choose_rows
from training.monitoring.statistics import (
    Values,
    compare_values,
    measure_mmd,
    measure_psi,
    measure_shift,
)

Kind = Literal["label", "input", "embedding"]
Verdict = Literal["no change seen", "changed", "too few cases"]
FEWEST: Final = 50
LEVEL: Final = 0.05
MOST_VECTORS: Final = 500  # embeddings of each side that are compared
RULE: Final = (
    f'"too few cases": fewer than {FEWEST} values on one side. "changed": the p value, adjusted for all rows by '
    f"Benjamini and Hochberg, is below {LEVEL:g}. Nothing here says whether answers are right: that needs labels."
)


@dataclass(frozen=True)
class Row:
    """The comparison of one value.

    Attributes:
        way: "study", "image" or "text".
        kind: "label" (its probability), "input" (a statistic of the input) or "embedding".
        name: Key of the label, name of the statistic, or "embedding".
        reference_cases: Number of values of the reference.
        cases: Number of values now.
        verdict: See the module docstring.
        reference_mean: Mean of the reference; None for categories and embeddings.
        mean: Mean now.
        shift: `mean` - `reference_mean`.
        shift_low: Lower end of its 95 % interval.
        shift_high: Upper end.
        psi: Population stability index; None for embeddings.
        psi_by_chance: Value that the PSI exceeds in one of 20 comparisons without a change.
        test: "KS", "chi2" or "MMD".
        statistic: Statistic of the test; the squared MMD.
        p: Its p value.
        p_adjusted: Its p value, adjusted for all rows.
    """

    way: str
    kind: Kind
    name: str
    reference_cases: int
    cases: int
    verdict: Verdict = "too few cases"
    reference_mean: float | None = None
    mean: float | None = None
    shift: float | None = None
    shift_low: float | None = None
    shift_high: float | None = None
    psi: float | None = None
    psi_by_chance: float | None = None
    test: str = ""
    statistic: float | None = None
    p: float | None = None
    p_adjusted: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def compare(reference: Reference, current: Current, *, seed: int = 0) -> tuple[Row, ...]:
    """Return the rows of every way that both sides have.

    Args:
        reference: The reference of the model.
        current: The answers of the same model now.
        seed: Seed of the intervals, permutations and samples.
    """
    rows = []
    for way, sample in current.ways.items():
        if way in reference.ways:
            rows += _compare_way(way, reference.ways[way], sample, reference.label_part, seed)
    return judge(rows)


def judge(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the rows with adjusted p values and verdicts. A row without a p value has too few cases."""
    tested = [row for row in rows if row.p is not None]
    if not tested:
        return tuple(rows)
    adjusted = iter(stats.false_discovery_control([row.p for row in tested], method="bh"))
    judged = []
    for row in rows:
        if row.p is None:
            judged.append(row)
            continue
        p = float(next(adjusted))
        judged.append(replace(row, p_adjusted=p, verdict="changed" if p < LEVEL else "no change seen"))
    return tuple(judged)


def _compare_way(way: str, reference: Sample, now: Sample, label_part: int, seed: int) -> list[Row]:
    rows = [
        compare_one(way, "label", key, reference.probabilities[:, k], now.probabilities[:, k], seed=seed)
        for k, key in enumerate(LABEL_KEYS)
    ]
    rows += [
        compare_one(way, "input", name, reference.inputs[name], values, seed=seed)
        for name, values in now.inputs.items()
        if name in reference.inputs
    ]
    if len(now.embeddings) and len(reference.embeddings):
        rows.append(_compare_embeddings(way, reference, now, label_part, seed))
    return rows


def compare_one(way: str, kind: Kind, name: str, reference: Values, now: Values, *, seed: int) -> Row:
    """Return the row of one value, without its verdict if it has enough cases.

    Args:
        way: "study", "image" or "text".
        kind: Kind of the value.
        name: Name of the value. `training.monitoring.sample.CATEGORIES` says whether its values are codes.
        reference: (n,) values of the reference.
        now: (m,) values now.
        seed: Seed of the interval.
    """
    row = Row(way, kind, name, len(reference), len(now))
    if min(len(reference), len(now)) < FEWEST:
        return row
    x, y = (np.asarray(values, np.float64) for values in (reference, now))
    categories = len(CATEGORIES.get(name, ())) if kind == "input" else 0
    psi, by_chance = measure_psi(x, y, categories=categories)
    test, statistic, p = compare_values(x, y, categories=categories)
    row = replace(row, psi=psi, psi_by_chance=by_chance, test=test, statistic=statistic, p=p)
    if categories:
        return row
    shift, low, high = measure_shift(x, y, seed=seed)
    row = replace(row, reference_mean=float(x.mean()), mean=float(y.mean()))
    return replace(row, shift=shift, shift_low=low, shift_high=high)


def _compare_embeddings(way: str, reference: Sample, now: Sample, label_part: int, seed: int) -> Row:
    """Compare the joint space alone. The label part repeats the probabilities, which have their own rows."""
    vectors = [
        take_joint(side.embeddings[choose_rows(len(side.embeddings), MOST_VECTORS, seed)], label_part)
        for side in (reference, now)
    ]
    row = Row(way, "embedding", "embedding", len(vectors[0]), len(vectors[1]))
    if min(map(len, vectors)) < FEWEST:
        return row
    statistic, p = measure_mmd(vectors[0], vectors[1], seed=seed)
    return replace(row, test="MMD", statistic=statistic, p=p)
