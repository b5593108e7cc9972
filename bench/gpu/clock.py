"""How long a call takes on a GPU: each call is waited for, so that a figure is what a request would wait."""

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

_WARM_UPS: Final = 3
_FEWEST: Final = 5
_MOST: Final = 2000


def time_calls(call: Callable[[], Any], seconds: float, wait: Callable[[], None]) -> dict[str, float]:
    """Return the median and the 99th percentile of a call, in milliseconds, and how often it was made.

    Args:
        call: What is timed.
        seconds: How long, after a few calls to warm up.
        wait: Returns when the device has finished.
    """
    for _ in range(_WARM_UPS):
        call()
    wait()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < _FEWEST or (time.perf_counter() < end and len(taken) < _MOST):
        start = time.perf_counter()
        call()
        wait()
        taken.append(1e3 * (time.perf_counter() - start))
    taken.sort()
    p99 = taken[min(len(taken) - 1, int(0.99 * len(taken)))]
    return {"p50_ms": round(statistics.median(taken), 4), "p99_ms": round(p99, 4), "calls": len(taken)}


def add_rate(figures: dict[str, float], batch: int) -> dict[str, float]:
    """Return figures with the throughput in cases a second."""
    return {**figures, "batch": batch, "cases_per_s": round(1e3 * batch / figures["p50_ms"], 1)}


def round_figures(value: float) -> float:
    """Return a value with its first four digits, so that what a slow device reaches is not rounded to 0."""
    return float(f"{value:.4g}")
