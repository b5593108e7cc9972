"""One line of the table of `cxr bench table`: what was wanted, what was found, and the verdict."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Bound = Literal["at most", "at least"]


@dataclass(frozen=True)
class TargetRow:
    """One line of the table.

    Attributes:
        name: What is divided by what.
        bound: Whether `limit` must not be passed or must be reached.
        limit: In `unit`.
        value: What was measured; None where it could not be.
        unit: "x" for a ratio.
        detail: What was measured, in a sentence; or why nothing was.
        conditions: Further demands that the row makes, in words -> whether they were met.
    """

    name: str
    bound: Bound
    limit: float
    value: float | None
    unit: str = "x"
    detail: str = ""
    conditions: dict[str, bool] = field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        """Whether the row is met; None where it was not measured."""
        if self.value is None:
            return None
        within = self.value <= self.limit if self.bound == "at most" else self.value >= self.limit
        return within and all(self.conditions.values())

    @property
    def verdict(self) -> str:
        """The same as a word."""
        return {True: "pass", False: "FAIL", None: "not measured"}[self.passed]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        value = None if self.value is None else round(self.value, 4)
        return {**asdict(self), "value": value, "passed": self.passed}


Measurement = Callable[[], Sequence[TargetRow]]
