"""Decide when a server has reached a steady state."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WINDOWS: Final = 3


@dataclass(frozen=True)
class Window:
    """A time window of a load: the median latency in seconds (NaN without requests) and answers per second."""

    median_s: float
    throughput: float


def is_steady(windows: Sequence[Window], tolerance: float, *, throughput: bool = True) -> bool:
    """Whether the last three windows agree: largest <= (1 + tolerance) x smallest.

    The rule of perf_analyzer (its option --stability-percentage: "the ratio of max / min from the recent 3
    measurements", in latency and in answers per second), here on the median latency, which one stall
    does not change.

    Args:
        windows: The windows in their order.
        tolerance: 0.1 allows 10 %.
        throughput: Whether answers per second must agree too. With random arrivals they differ by chance.
    """
    last = windows[-WINDOWS:]
    if len(last) < WINDOWS:
        return False
    kinds = [[window.median_s for window in last]]
    kinds += [[window.throughput for window in last]] if throughput else []
    return all(_agree(values, tolerance) for values in kinds)


def _agree(values: Sequence[float], tolerance: float) -> bool:
    return not any(map(math.isnan, values)) and max(values) <= (1 + tolerance) * min(values)
