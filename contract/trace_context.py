"""The trace that a call belongs to, as W3C trace context, if the program uses OpenTelemetry.

A server that records spans continues the trace of its caller. Only `traceparent` and `tracestate` are sent, and no
baggage, which could hold anything.
"""

from functools import lru_cache
from typing import Any


def make_trace_metadata() -> tuple[tuple[str, str], ...]:
    """Return the gRPC metadata that names the current span; empty without OpenTelemetry or without a span."""
    propagator = find_propagator()
    if propagator is None:
        return ()
    headers: dict[str, str] = {}
    propagator.inject(headers)
    return tuple(headers.items())


@lru_cache(maxsize=1)
def find_propagator() -> Any:
    """Return OpenTelemetry's reader and writer of trace context; None if the package is not installed."""
    try:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        return None
    return TraceContextTextMapPropagator()
