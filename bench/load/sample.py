"""The results of one load."""

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
    """Answered requests: `values` (n, 3) are the times, in seconds, when each was due, sent and answered."""

    values: NDArray[np.float64]
    begin: float
    end: float

    @property
    def measured(self) -> NDArray[np.float64]:
        """The requests that were due during the measurement."""
        due = self.values[:, 0]
        return self.values[(due >= self.begin) & (due < self.end)]

    def count_answers(self) -> float:
        """Return the number of requests answered during the measurement. A request across its ends counts by its share.

        Counting whole requests would have an error of up to the number of requests in flight.
        """
        sent, done = self.values[:, 1], self.values[:, 2]
        inside = np.minimum(done, self.end) - np.maximum(sent, self.begin)
        return float(np.sum(np.clip(inside, 0, None) / np.maximum(done - sent, 1e-9)))


@dataclass(frozen=True)
class Sample:
    """One load, measured once.

    Attributes:
        requests: Number of answered requests that were due during the measurement.
        failed: Number of failed requests, by the name of their error.
        unsent: Number of due requests that were never sent, because all senders of the open loop were waiting.
        late: Fraction of requests sent more than 1 ms (or 5 % of the median latency) after they were due.
        lag_p99_ms: 99th percentile of the delay of sending.
        throughput: Answers per second.
        duration_s: Duration of the measurement.
        warmup_s: Duration of the warm-up.
        steady: Whether the warm-up ended in a steady state.
        generator_cores: Processor cores that this process used: the generator and everything else in it.
        observed: Result of the observer.
        histogram: Latencies of the answered requests, from their due times.
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
        """Whether all requests were sent, and 99 % of them on time."""
        return self.unsent == 0 and self.late <= _LATE_ALLOWED

    def get_percentile(self, percentile: float) -> float:
        """Return a percentile in ms of all requests, with lost ones as infinite; NaN without requests."""
        total = self.requests + self.lost
        if not total:
            return float("nan")
        rank = percentile / 100 * total  # in the sorted latencies, with lost requests last
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
    """Compute the results of a load from the times of its requests."""
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
