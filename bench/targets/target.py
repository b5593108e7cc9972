"""One line of the table of `cxr bench table`: what was wanted, what was found, and the verdict."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Bound = Literal["at most", "at least"]


@dataclass(frozen=True)
class TargetRow:
    """One line of the table.

    Attributes:
        name: What is divided by what.
        bound: Whether `limit` must not be passed or must be reached.
        limit: In `unit`; None where the row has no target.
        value: What was measured, of several runs the median; None where it could not be.
        unit: "x" for a ratio.
        detail: What was measured, in a sentence; or why nothing was.
        conditions: Further demands that the row makes, in words -> whether they were met.
        runs: What each of several runs measured.
    """

    name: str
    bound: Bound
    limit: float | None
    value: float | None
    unit: str = "x"
    detail: str = ""
    conditions: dict[str, bool] = field(default_factory=dict)
    runs: tuple[float, ...] = ()

    @property
    def passed(self) -> bool | None:
        """Whether the row is met; None where it was not measured or has no target."""
        if self.value is None or self.limit is None:
            return None
        within = self.value <= self.limit if self.bound == "at most" else self.value >= self.limit
        return within and all(self.conditions.values())

    @property
    def verdict(self) -> str:
        """The same in words."""
        if self.value is not None and self.limit is None:
            return "no target"
        return {True: "pass", False: "FAIL", None: "not measured"}[self.passed]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        value = None if self.value is None else round(self.value, 4)
        runs = [round(run, 4) for run in self.runs]
        return {**asdict(self), "value": value, "runs": runs, "passed": self.passed}


def merge_runs(runs: Sequence[Sequence[TargetRow]]) -> list[TargetRow]:
    """Return the rows of several runs as one list: the run in the middle stands for all, the others are its range.

    Args:
        runs: The same rows in the same order, once for each run.
    """
    return [_merge_row(rows) for rows in zip(*runs, strict=True)]


def _merge_row(rows: Sequence[TargetRow]) -> TargetRow:
    measured = sorted((row for row in rows if row.value is not None), key=lambda row: row.value or 0.0)
    if not measured:
        return rows[0]
    conditions = {name: all(row.conditions[name] for row in rows) for name in rows[0].conditions}
    values = tuple(row.value for row in rows if row.value is not None)
    return replace(measured[len(measured) // 2], conditions=conditions, runs=values)


Measurement = Callable[[], Sequence[TargetRow]]
