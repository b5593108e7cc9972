"""Compare two reports, or two rows of one: ratios, and whether they exceed the noise.

Each row was measured several times, in turn with the others. A figure differs if all repeats of one side are above all
repeats of the other. If both sides were equal, that would happen by chance with the probability 2 n! m! / (n + m)! (the
extreme case of the rank test of Mann and Whitney, 1947): 0.8 % with five repeats each, 10 % with three. The report
states this probability. It does not include noise that lasts longer than a run.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from contract.errors import ArtifactError, ConfigError

METRICS: Final = ("p50_ms", "p90_ms", "p99_ms", "throughput")
SCHEMA: Final = 1


@dataclass(frozen=True)
class Ratio:
    """One figure of one row in two reports.

    Attributes:
        row: Name of the row.
        metric: Name of the figure.
        a: Median of the repeats of the first report.
        b: Median of the repeats of the second.
        ratio: b / a.
        spread_a: Smallest and largest repeat of the first.
        spread_b: Smallest and largest repeat of the second.
        differs: Whether all repeats of one are above all repeats of the other.
        chance: Probability of that if both are equal.
    """

    row: str
    metric: str
    a: float
    b: float
    ratio: float
    spread_a: tuple[float, float]
    spread_b: tuple[float, float]
    differs: bool
    chance: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def read_report(path: Path) -> dict[str, Any]:
    """Read a report of `cxr bench run`: its JSON file or the directory that holds it.

    Raises:
        ConfigError: The file does not exist.
        ArtifactError: The file is not such a report.
    """
    file = path / "bench.json" if path.is_dir() else path
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"The report {file} does not exist.") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be read: {type(error).__name__}.") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA or "rows" not in report:
        raise ArtifactError(f"{file} is not a report of this version's `cxr bench run`.")
    return report


def compare_reports(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Ratio]:
    """Compare the rows with the same names.

    Raises:
        ConfigError: The reports have no row in common.
    """
    rows = {row["name"]: row for row in second["rows"]}
    ratios = [
        ratio
        for row in first["rows"]
        if row["name"] in rows
        for ratio in compare_rows(row, rows[row["name"]])
    ]
    if not ratios:
        names = [", ".join(row["name"] for row in report["rows"]) for report in (first, second)]
        raise ConfigError(f"The reports have no row in common: {names[0]} in one, {names[1]} in the other.")
    return ratios


def compare_rows(a: Mapping[str, Any], b: Mapping[str, Any], *, name: str | None = None) -> list[Ratio]:
    """Compare each figure of two rows, without figures that a repeat lacks."""
    ratios = []
    for metric in METRICS:
        sides = [[repeat.get(metric) for repeat in row["repeats"]] for row in (a, b)]
        if all(sides) and all(value for side in sides for value in side):
            ratios.append(_compare(name or a["name"], metric, *sides))
    return ratios


def compare_cases(a: Mapping[str, Any], b: Mapping[str, Any], *, name: str) -> Ratio:
    """Compare the cases per second of two rows, which may differ in batch size."""
    sides = [[repeat["throughput"] * row["batch"] for repeat in row["repeats"]] for row in (a, b)]
    return _compare(name, "cases_per_s", *sides)


def list_mismatches(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return sentences about the differences between two reports other than the code."""
    kinds = {
        "model": [report.get("model") for report in (first, second)],
        "processor": [report.get("machine", {}).get("cpu") for report in (first, second)],
        "cores": [report.get("machine", {}).get("cores") for report in (first, second)],
        "input source": [report.get("data", {}).get("source") for report in (first, second)],
        "input shapes": [report.get("data", {}).get("shapes") for report in (first, second)],
    }
    return [f"Another {name}: {a} and {b}." for name, (a, b) in kinds.items() if a != b]


def _compare(row: str, metric: str, a: Sequence[float], b: Sequence[float]) -> Ratio:
    middle_a, middle_b = float(statistics.median(a)), float(statistics.median(b))
    differs = max(a) < min(b) or max(b) < min(a)
    chance = min(1.0, 2 / math.comb(len(a) + len(b), len(a)))
    spreads = ((min(a), max(a)), (min(b), max(b)))
    return Ratio(
        row,
        metric,
        middle_a,
        middle_b,
        round(middle_b / middle_a, 4) if middle_a else math.nan,
        *spreads,
        differs,
        chance,
    )
