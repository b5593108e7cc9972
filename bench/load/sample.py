"""What one load showed."""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.load.histogram import Histogram, Latency

_LATE_S: Final = 1e-3
_LATE_OF_MEDIAN: Final = 0.05
_LATE_ALLOWED: Final = 0.01


@dataclass(frozen=True)
class Times:
    """Answered requests: `values` (n, 3) seconds at which each was due, sent and answered; the measured time."""

    values: NDArray[np.float64]
    begin: float
    end: float

    @property
    def measured(self) -> NDArray[np.float64]:
        """The requests that were due in the measured time."""
        due = self.values[:, 0]
        return self.values[(due >= self.begin) & (due < self.end)]

    def count_answers(self) -> float:
        """Return how many requests were answered in the measured time; one across an end counts by its part.

        Counting whole requests would be wrong by up to the number in flight, which come in batches.
        """
        sent, done = self.values[:, 1], self.values[:, 2]
        inside = np.minimum(done, self.end) - np.maximum(sent, self.begin)
        return float(np.sum(np.clip(inside, 0, None) / np.maximum(done - sent, 1e-9)))


@dataclass(frozen=True)
class Sample:
    """One load, measured once.

    Attributes:
        requests: How many were due in the measured time and answered.
        failed: How many failed, by the name of their error.
        unsent: How many were due and never sent, because all senders of the open loop waited for answers.
        late: Fraction sent more than 1 ms (or 5 % of the median latency) after they were due.
        lag_p99_ms: 99th percentile of how late requests were sent.
        throughput: Answers per second.
        duration_s: The measured time.
        warmup_s: Time before it.
        steady: Whether the warm-up ended because answers came steadily.
        generator_cores: Processor cores that this process took meanwhile: the generator, and what runs beside it.
        observed: What an observer saw of the server.
        histogram: Latencies of the answered requests, from the moment they were due.
    """

    requests: int
    failed: dict[str, int]
    unsent: int
    late: float
    lag_p99_ms: float
    throughput: float
    duration_s: float
    warmup_s: float
    steady: bool
    generator_cores: float
    observed: dict[str, Any] = field(repr=False)
    histogram: Histogram = field(repr=False)

    @property
    def latency(self) -> Latency:
        """Percentiles of the latency."""
        return self.histogram.summarise()

    @property
    def lost(self) -> int:
        """Requests without an answer: failed, or never sent."""
        return sum(self.failed.values()) + self.unsent

    @property
    def kept_schedule(self) -> bool:
        """Whether all requests were sent, and 99 % of them when they were due."""
        return self.unsent == 0 and self.late <= _LATE_ALLOWED

    def get_percentile(self, percentile: float) -> float:
        """Return a percentile in ms of all requests, a lost one taking for ever; infinite, or NaN without any."""
        total = self.requests + self.lost
        if not total:
            return float("nan")
        rank = percentile / 100 * total  # of the sorted latencies, the lost ones last
        if rank > self.requests:
            return float("inf")
        return self.histogram.get_percentile(100 * rank / self.requests)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, without the histogram."""
        return {
            "requests": self.requests,
            "failed": self.failed,
            "unsent": self.unsent,
            "late": round(self.late, 4),
            "lag_p99_ms": round(self.lag_p99_ms, 3),
            "throughput": round(self.throughput, 3),
            "duration_s": round(self.duration_s, 3),
            "warmup_s": round(self.warmup_s, 3),
            "steady": self.steady,
            "generator_cores": round(self.generator_cores, 3),
            **{name: None if np.isnan(value) else value for name, value in self.latency.to_dict().items()},
            "server": self.observed,
        }


def make_sample(
    times: Times,
    *,
    failed: dict[str, int],
    unsent: int,
    steady: bool,
    warmup_s: float,
    generator_cores: float,
    observed: dict[str, Any],
) -> Sample:
    """Return the figures of a load from the times of its requests."""
    measured = times.measured
    latencies = measured[:, 2] - measured[:, 0]
    lags = measured[:, 1] - measured[:, 0]
    limit = max(_LATE_S, _LATE_OF_MEDIAN * float(np.median(latencies))) if len(measured) else _LATE_S
    duration_s = times.end - times.begin
    return Sample(
        requests=len(measured),
        failed=failed,
        unsent=unsent,
        late=float(np.mean(lags > limit)) if len(measured) else 0.0,
        lag_p99_ms=1e3 * float(np.percentile(lags, 99)) if len(measured) else 0.0,
        throughput=times.count_answers() / max(duration_s, 1e-9),
        duration_s=duration_s,
        warmup_s=warmup_s,
        steady=steady,
        generator_cores=generator_cores,
        observed=observed,
        histogram=Histogram(latencies.tolist()),
    )
