"""Find the highest rate of an open loop with a latency within a budget."""

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from bench.load.sample import Sample
from contract.errors import ConfigError

_FORM: Final = re.compile(r"p(\d{1,2}(?:\.\d+)?)\s*[=<]\s*(\d+(?:\.\d+)?)\s*(us|ms|s)", re.IGNORECASE)
_UNITS: Final = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_TRIALS: Final = 40
_LEAST_RATE: Final = 0.05


@dataclass(frozen=True)
class Budget:
    """`percentile` % of the requests must be answered within `limit_ms`."""

    percentile: float
    limit_ms: float

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Parse a budget such as p99=50ms, p99.9=0.2s or p50=800us.

        Raises:
            ConfigError: The text has another form.
        """
        match = _FORM.fullmatch(text.strip())
        if match is None or not float(match[2]) or not float(match[1]):
            raise ConfigError(f"The budget {text!r} does not have the form p99=50ms (or us, s).")
        return cls(float(match[1]), float(match[2]) * _UNITS[match[3].lower()])

    @property
    def name(self) -> str:
        """The budget as an option value."""
        return f"p{self.percentile:g}={self.limit_ms:g}ms"

    @property
    def least_requests(self) -> int:
        """Number of requests in a trial for which at least one may exceed the limit."""
        return math.ceil(1 / (1 - self.percentile / 100))

    def is_met(self, sample: Sample) -> bool:
        """Whether a sample is within the budget. A lost request counts as infinitely slow."""
        return sample.get_percentile(self.percentile) <= self.limit_ms


@dataclass(frozen=True)
class Trial:
    """One tested rate. `percentile_ms` is None if too many requests were lost or none was answered."""

    rate: float
    percentile_ms: float | None
    requests: int
    lost: int
    late: float
    met: bool


@dataclass(frozen=True)
class Found:
    """The highest rate that met the budget twice; None if even the lowest rate did not."""

    budget: Budget
    rate: float | None
    resolution: float
    trials: tuple[Trial, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "budget": self.budget.name,
            "rate": self.rate,
            "resolution": self.resolution,
            "trials": [asdict(trial) for trial in self.trials],
        }


def find_rate(
    try_rate: Callable[[float], Sample],
    budget: Budget,
    *,
    start: float,
    resolution: float = 0.05,
) -> Found:
    """Search the highest rate that meets a budget.

    From `start` the rate is doubled or halved until there is a rate that meets the budget and one that does not. The
    interval is bisected (on a logarithmic scale) until the ratio of its ends is at most 1 + resolution. The resulting
    rate is tested again. Each time it fails, it is lowered by the resolution.

    Args:
        try_rate: Runs an open loop at a rate in requests per second.
        budget: The budget to meet.
        start: First rate to try.
        resolution: Precision; 0.05 means 5 %.

    Raises:
        ConfigError: `start` or `resolution` is not above 0.
    """
    if start <= 0 or resolution <= 0:
        raise ConfigError("A budget search needs a first rate and a resolution above 0.")
    trials: list[Trial] = []

    def meets(rate: float) -> bool:
        trials.append(_make_trial(rate, try_rate(rate), budget))
        return trials[-1].met

    low, high = _bracket(meets, start)
    while low is not None and high is not None and high > low * (1 + resolution):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if meets(middle) else (low, middle)
    while low is not None and not meets(low):
        low = low / (1 + resolution) if low > _LEAST_RATE and len(trials) < _TRIALS else None
    return Found(budget, low, resolution, tuple(trials))


def _bracket(meets: Callable[[float], bool], start: float) -> tuple[float | None, float | None]:
    """Return a rate that meets the budget and one that does not, with a factor of 2; None for a missing one."""
    rate = start
    if meets(rate):
        for _ in range(_TRIALS // 2):
            if not meets(2 * rate):
                return rate, 2 * rate
            rate *= 2
        return rate, None
    while rate > _LEAST_RATE:
        rate /= 2
        if meets(rate):
            return rate, 2 * rate
    return None, rate


def _make_trial(rate: float, sample: Sample, budget: Budget) -> Trial:
    value = sample.get_percentile(budget.percentile)
    finite = round(value, 3) if math.isfinite(value) else None
    return Trial(rate, finite, sample.requests, sample.lost, round(sample.late, 4), budget.is_met(sample))
