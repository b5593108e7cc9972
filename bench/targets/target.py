"""One row of `cxr bench table`: the target, the measured value, and the verdict."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Bound = Literal["at most", "at least"]


@dataclass(frozen=True)
class TargetRow:
    """One row of the table.

    Attributes:
        name: The ratio.
        bound: Whether `limit` is an upper or a lower limit.
        limit: The limit in `unit`; None if the row has no target.
        value: The measured value, or the median of several runs; None if it was not measured.
        unit: "x" for a ratio.
        detail: Sentence about the measurement, or the reason for a missing one.
        conditions: Further conditions of the row, in words -> whether they were met.
        runs: The value of each of several runs.
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
        """Whether the target is met; None if it was not measured or has no target."""
        if self.value is None or self.limit is None:
            return None
        within = self.value <= self.limit if self.bound == "at most" else self.value >= self.limit
        return within and all(self.conditions.values())

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        if self.value is not None and self.limit is None:
            return "no target"
        return {True: "pass", False: "FAIL", None: "not measured"}[self.passed]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        value = None if self.value is None else round(self.value, 4)
        runs = [round(run, 4) for run in self.runs]
        return {**asdict(self), "value": value, "runs": runs, "passed": self.passed}


def merge_runs(runs: Sequence[Sequence[TargetRow]]) -> list[TargetRow]:
    """Merge the rows of several runs: the value is the median run, the others give the range.

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


Measurement = Callable[[], Iterable[TargetRow]]  # yields each row as soon as it is measured
