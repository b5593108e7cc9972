"""Measure several loads in turn in one process, so that their ratios are fair."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from bench.load.clock import Clock
from bench.load.generator import ClosedLoop, Load, Observer, OpenLoop, Phases, Request, run_load
from bench.load.histogram import Histogram
from bench.load.sample import Sample
from bench.report.server import merge_models

SERVED: Final = "served"
_FEW: Final = 100
_KEPT_UP: Final = 0.8
Progress = Callable[[int, int, str], None]  # number measured, total, name of the next


@dataclass(frozen=True)
class Subject:
    """A load of requests with `batch` cases each, sent to `target` ("served", "in-process", ...)."""

    target: str
    request: Request = field(repr=False)
    load: Load
    batch: int = 1
    observer: Observer | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Name of the row, the same for the same load in every report."""
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        if isinstance(self.load, ClosedLoop):
            return f"{self.target}, concurrency {self.load.workers}{batch}"
        return f"{self.target}, {self.load.arrivals} {self.load.rate:g}/s{batch}"

    def describe_load(self) -> dict[str, Any]:
        """Return the load as JSON-ready values."""
        if isinstance(self.load, ClosedLoop):
            return {"kind": "closed", "concurrency": self.load.workers}
        load = self.load
        return {"kind": "open", "rate": load.rate, "arrivals": load.arrivals, "in_flight": load.in_flight}


@dataclass
class Row:
    """A subject and its samples, one for each repeat."""

    subject: Subject
    samples: list[Sample] = field(default_factory=list)

    @property
    def histogram(self) -> Histogram:
        """All latencies of all repeats."""
        merged = Histogram()
        for sample in self.samples:
            merged.add(sample.histogram)
        return merged

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values: the repeats, all requests together, and the histogram of all."""
        histogram = self.histogram
        failed: Counter[str] = Counter()
        for sample in self.samples:
            failed.update(sample.failed)
        throughput = statistics.fmean(sample.throughput for sample in self.samples)
        return {
            "name": self.subject.name,
            "target": self.subject.target,
            "load": self.subject.describe_load(),
            "batch": self.subject.batch,
            "requests": sum(sample.requests for sample in self.samples),
            "failed": dict(failed),
            "unsent": sum(sample.unsent for sample in self.samples),
            "throughput": round(throughput, 3),
            "cases_per_s": round(throughput * self.subject.batch, 3),
            **({} if not len(histogram) else histogram.summarise().to_dict()),
            "warnings": list_warnings(self),
            "server": merge_observed([sample.observed for sample in self.samples]),
            "repeats": [sample.to_dict() for sample in self.samples],
            "histogram": histogram.encode(),
        }


def measure(
    subjects: Sequence[Subject],
    phases: Phases,
    *,
    repeats: int,
    clock: Clock | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Measure all subjects `repeats` times, in turn, every other time in reverse order.

    Args:
        subjects: At least one subject.
        phases: `duration_s` and `count` are divided among the repeats. Each subject is warmed up fully only once.
        repeats: Number of samples of each row. Their differences show the noise.
        clock: See `run_load`.
        progress: Called before each sample and at the end.
    """
    each = replace(
        phases,
        duration_s=phases.duration_s / repeats,
        count=None if phases.count is None else max(1, -(-phases.count // repeats)),
    )
    rows = [Row(subject) for subject in subjects]
    done, total = 0, repeats * len(rows)
    for repeat in range(repeats):
        for row in rows if repeat % 2 == 0 else reversed(rows):
            if progress:
                progress(done, total, row.subject.name)
            subject, phases_now = row.subject, each if repeat == 0 else each.shorten()
            sample = run_load(
                subject.request, subject.load, phases_now, clock=clock, observer=subject.observer
            )
            row.samples.append(sample)
            done += 1
    if progress:
        progress(done, total, "")
    return rows


def list_warnings(row: Row) -> list[str]:
    """Return sentences about reasons why the figures of a row may mislead."""
    samples, warnings = row.samples, []
    sent = sum(sample.requests + sum(sample.failed.values()) for sample in samples)
    if failed := sum(sum(sample.failed.values()) for sample in samples):
        warnings.append(f"{failed} of {sent} requests failed. Their times are not in the percentiles.")
    if unsent := sum(sample.unsent for sample in samples):
        limit = row.subject.load.senders
        warnings.append(
            f"{unsent} requests were due but never sent, because {limit} were waiting for their answers. The rate is "
            "too high for the server, and the percentiles are lower bounds."
        )
    elif late := [sample.late for sample in samples if not sample.kept_schedule]:
        warnings.append(
            f"Up to {max(late):.1%} of the requests were sent late, because this machine did not keep the schedule. "
            "Latencies are measured from the due time, so they include the delay."
        )
    requests = sum(sample.requests for sample in samples)
    if requests < _FEW:
        warnings.append(f"Only {requests} requests were measured, so the slowest 1 % is one request.")
    if isinstance(row.subject.load, OpenLoop) and (answered := _compare_rates(samples)) < _KEPT_UP:
        warnings.append(
            f"The server answered {answered:.0%} of the requests that were due. The queue grew, so a longer "
            "measurement would show higher latencies."
        )
    if not samples[0].steady:
        warnings.append("The server was not in a steady state when the measurement started.")
    return warnings


def _compare_rates(samples: Sequence[Sample]) -> float:
    """Return answers (and failures) during the measurement / requests due in it."""
    due = sum(sample.requests + sample.lost for sample in samples)
    answers = sum(sample.throughput * sample.duration_s + sum(sample.failed.values()) for sample in samples)
    return answers / max(due, 1)


def merge_observed(observed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the observations of the server over all samples: requests of models summed, the rest averaged."""
    observations = [sample for sample in observed if sample]
    if not observations:
        return {}
    merged = _average(observations)
    if any("models" in sample for sample in observations):
        merged["models"] = merge_models([sample.get("models", {}) for sample in observations])
    return merged


def _average(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the averages of numbers, at every level, and the last of all other values."""
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(name for value in values for name in value):
        numbers = [value[name] for value in values if name in value]
        if all(isinstance(value, dict) for value in numbers):
            merged[name] = _average(numbers)
        elif all(isinstance(value, int | float) for value in numbers):
            merged[name] = round(statistics.fmean(numbers), 4)
        else:
            merged[name] = numbers[-1]
    return merged
