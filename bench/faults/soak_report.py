"""The results of a soak run: one row for each event, rows for overload, the sums, and what a run fails for."""

import json
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.faults.faults import BAD
from bench.targets.table import list_cells
from contract.errors import ConfigError, ServerError

COLUMNS: Final = (
    "event",
    "verdict",
    "times",
    "Triton started again",
    "good answers again, median",
    "longest",
    "lost in flight",
    "failed later",
    "writes lost",
    "errors that clients saw",
)


@dataclass
class Event:
    """One kind of event: its number, the times until all clients had good answers again, and what clients saw.

    Attributes:
        name: Its name.
        recoveries_s: Seconds from the start of each event.
        errors: Errors by type.
        unrecovered: Events after which clients had no good answers in time.
        restarts: Events after which Triton was a new process.
        in_flight: Requests sent before the event that ended with an error.
        later: Requests sent after its start that ended with an error.
        wrong: Wrong answers.
        untyped: Errors of no type of this project, by type.
        writes: Acknowledged writes.
        lost_writes: Sentences about cases that are not stored as acknowledged.
        troubles: Sentences about what else went wrong.
    """

    name: str
    recoveries_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    unrecovered: int = 0
    restarts: int = 0
    in_flight: int = 0
    later: int = 0
    wrong: int = 0
    untyped: Counter[str] = field(default_factory=Counter)
    writes: int = 0
    lost_writes: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def list_failures(self) -> list[str]:
        """Return what the event failed for, in words; empty if it passed."""
        ended_by_clients = self.restarts if self.name == BAD else 0
        return [
            *(["not recovered"] if self.unrecovered else []),
            *([f"{self.wrong} wrong answers"] if self.wrong else []),
            *([f"errors of no type of this project: {dict(self.untyped)}"] if self.untyped else []),
            *([f"writes lost: {self.lost_writes[0]}"] if self.lost_writes else []),
            *([f"bad clients ended Triton {ended_by_clients} times"] if ended_by_clients else []),
            *self.troubles,
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the values for the table."""
        times = self.recoveries_s
        return {
            "event": self.name,
            "passed": not self.list_failures(),
            "failures": self.list_failures(),
            "times": len(times) + self.unrecovered,
            "recovery_median_s": round(statistics.median(times), 2) if times else None,
            "recovery_max_s": round(max(times), 2) if times else None,
            "unrecovered": self.unrecovered,
            "restarts": self.restarts,
            "in_flight": self.in_flight,
            "later": self.later,
            "writes": self.writes,
            "lost_writes": len(self.lost_writes),
            "errors": dict(self.errors),
        }


def write_report(report: dict[str, Any], out: Path, output: str) -> None:
    """Write soak.json, soak.md and the output of `cxr serve`.

    Raises:
        ConfigError: The directory cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "soak.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (out / "soak.md").write_text(format_markdown(report), encoding="utf-8")
        (out / "serve.txt").write_text(output, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}.") from error


def format_markdown(report: dict[str, Any]) -> str:
    """Return the tables and the sums below them."""
    lines = [*_format_table(COLUMNS, format_rows(report)), ""]
    if report["overload"]:
        cells = list_cells({"rows": report["overload"]})
        lines += [*_format_table(("overload", "wanted", "found", "verdict", "note"), cells), ""]
    return "\n".join([*lines, *format_sums(report), ""])


def format_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of each event, and of each one that was not possible."""
    skipped = [
        (name, f"skipped: {reason}", *["-"] * (len(COLUMNS) - 2))
        for name, reason in report["skipped"].items()
    ]
    return [*map(_format_row, report["events"]), *skipped]


def format_sums(report: dict[str, Any]) -> list[str]:
    """Return the lines below the table."""
    leftovers, bad = report["leftovers"], report["bad_clients"]
    return [
        f"{report['minutes']:g} minutes, {report['good_answers']} good answers, {report['wrong_answers']} wrong, "
        f"{sum(report['untyped_errors'].values())} errors of no type of this project; {report['writes']} "
        "acknowledged writes.",
        f"Among bad clients: {bad['good']} good answers, {bad['refused']} bad calls refused, "
        f"{sum(bad['cut'].values())} calls ended by their client; {len(bad['wrong'])} wrong, "
        f"{len(bad['unanswered'])} unanswered, {len(bad['not_refused'])} not refused, "
        f"{bad['unavailable']} met no server.",
        f"Left over: {leftovers['processes']} processes, {leftovers['shared_memory_bytes']} bytes of shared memory, "
        f"{leftovers['regions']} regions, {leftovers['damaged_files']} damaged files of the store; exit code "
        f"{leftovers['exit_code']}.",
    ]


def require_clean(report: dict[str, Any]) -> None:
    """Raise ServerError with what the run failed for, if anything."""
    if failures := list(_list_failures(report)):
        raise ServerError(f"The soak failed: {'; '.join(failures)}.")


def _list_failures(report: dict[str, Any]) -> Iterator[str]:
    for event in report["events"]:
        yield from (f"{event['event']}: {failure}" for failure in event["failures"])
    if report["wrong_answers"]:
        yield f"{report['wrong_answers']} wrong answers"
    if report["untyped_errors"]:
        yield f"errors of no type of this project: {report['untyped_errors']}"
    for kind in ("wrong", "unanswered", "not_refused"):
        if sentences := report["bad_clients"][kind]:
            yield f"bad clients: {kind.replace('_', ' ')}: {len(sentences)}, first {sentences[0]}"
    yield from (f"overload: {row['name']}" for row in report["overload"] if row["passed"] is False)
    yield from (f"{name}: {count}" for name, count in report["leftovers"].items() if count)


def _format_row(event: dict[str, Any]) -> tuple[str, ...]:
    errors = ", ".join(f"{kind} {count}" for kind, count in sorted(event["errors"].items())) or "none"
    seconds = [
        "-" if event[x] is None else f"{event[x]:.1f} s" for x in ("recovery_median_s", "recovery_max_s")
    ]
    return (
        event["event"],
        "pass" if event["passed"] else "FAIL",
        str(event["times"]),
        str(event["restarts"]),
        *seconds,
        str(event["in_flight"]),
        str(event["later"]),
        f"{event['lost_writes']} of {event['writes']}",
        errors,
    )


def _format_table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [
        f"| {' | '.join(titles)} |",
        "|" + "---|" * len(titles),
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]
