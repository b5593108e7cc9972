"""Time calls on a GPU. Each call is synchronised, so a figure is the time that a request would wait."""

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

_WARM_UPS: Final = 3
_FEWEST: Final = 5
_MOST: Final = 2000


def time_calls(call: Callable[[], Any], seconds: float, wait: Callable[[], None]) -> dict[str, float]:
    """Return the median and the 99th percentile of a call, in milliseconds, and the number of calls.

    Args:
        call: The function to time.
        seconds: Duration, after a few warm-up calls.
        wait: Returns when the device has finished.
    """
    for _ in range(_WARM_UPS):
        call()
    wait()
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while len(durations) < _FEWEST or (time.perf_counter() < end and len(durations) < _MOST):
        start = time.perf_counter()
        call()
        wait()
        durations.append(1e3 * (time.perf_counter() - start))
    durations.sort()
    p99 = durations[min(len(durations) - 1, int(0.99 * len(durations)))]
    return {
        "p50_ms": round(statistics.median(durations), 4),
        "p99_ms": round(p99, 4),
        "calls": len(durations),
    }


def add_rate(figures: dict[str, float], batch: int) -> dict[str, float]:
    """Return figures with the throughput in cases per second."""
    return {**figures, "batch": batch, "cases_per_s": round(1e3 * batch / figures["p50_ms"], 1)}


def round_figures(value: float) -> float:
    """Return a value with four significant digits, so that the figures of a slow device are not rounded to 0."""
    return float(f"{value:.4g}")
