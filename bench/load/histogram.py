"""Latencies as HDR histograms, with a constant relative error at every percentile. Histograms can be added.

Gil Tene, HdrHistogram, http://hdrhistogram.org: the width of the buckets grows with the value, so each value keeps a
fixed number of significant figures.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from contract.errors import ArtifactError, ConfigError

try:
    from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]
except ImportError as missing:
    raise ConfigError(
        "The load generator needs the 'bench' extra: pip install 'cxr-serving[bench]'."
    ) from missing

FIGURES: Final = 3
_LONGEST_US: Final = 3_600_000_000  # an hour
_PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True)
class Latency:
    """Percentiles, extremes and mean in milliseconds; NaN if nothing was measured."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    min_ms: float
    max_ms: float
    mean_ms: float

    def to_dict(self) -> dict[str, float]:
        """Return the values by name, rounded to a microsecond."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


class Histogram:
    """Latencies of up to an hour, to three significant figures or a microsecond."""

    def __init__(self, seconds: Iterable[float] = ()) -> None:
        """Add latencies in seconds."""
        self._counts = HdrHistogram(1, _LONGEST_US, FIGURES)
        for value in seconds:
            self._counts.record_value(min(max(1, round(1e6 * value)), _LONGEST_US))

    def __len__(self) -> int:
        return int(self._counts.get_total_count())

    def add(self, other: "Histogram") -> None:
        """Add all latencies of another histogram."""
        if len(other):
            self._counts.add(other._counts)

    def get_percentile(self, percentile: float) -> float:
        """Return the latency in ms that `percentile` % (0 to 100) of the requests do not exceed; NaN if empty."""
        if not len(self):
            return math.nan
        return float(self._counts.get_value_at_percentile(percentile)) / 1e3

    def summarise(self) -> Latency:
        """Return the usual figures."""
        if not len(self):
            return Latency(*[math.nan] * 7)
        values = self._counts.get_percentile_to_value_dict(list(_PERCENTILES))
        ends = (self._counts.get_min_value(), self._counts.get_max_value(), self._counts.get_mean_value())
        return Latency(*(float(value) / 1e3 for value in (*(values[x] for x in _PERCENTILES), *ends)))

    def list_percentiles(self) -> list[tuple[float, float]]:
        """Return (fraction of the requests, latency in ms), with finer steps towards 1, for a plot."""
        count, points = len(self), []
        for tenth in itertools.count():  # ten steps per nine
            if 10 ** (tenth / 10) > count * (1 + 1e-9):
                break
            fraction = 1 - 10 ** (-tenth / 10)
            points.append((fraction, self.get_percentile(100 * fraction)))
        return points

    def encode(self) -> str:
        """Return the counts as text: HdrHistogram's V2 format, compressed, in base 64."""
        return str(self._counts.encode().decode("ascii"))

    @classmethod
    def decode(cls, text: str) -> "Histogram":
        """Parse the result of `encode`.

        Raises:
            ArtifactError: The text is not an encoded histogram.
        """
        histogram = cls()
        try:
            histogram._counts = HdrHistogram.decode(text)
        except Exception as error:  # the library's decoder raises many error types
            raise ArtifactError("A latency histogram cannot be read.") from error
        return histogram


def describe_unit() -> dict[str, Any]:
    """Return the unit and the encoding of the histograms."""
    return {"unit": "microseconds", "significant_figures": FIGURES, "encoding": "HdrHistogram V2, base 64"}
