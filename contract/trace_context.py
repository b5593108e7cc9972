"""The trace that a call belongs to, as W3C trace context, if the program uses OpenTelemetry.

A server that records spans continues the trace of its caller. Only `traceparent` and `tracestate` are sent, and no
baggage, which could hold anything.
"""

import re
from functools import lru_cache
from typing import Any, Final

TRACEPARENT: Final = "traceparent"
_FORM: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def make_trace_metadata() -> tuple[tuple[str, str], ...]:
    """Return the gRPC metadata that names the current span; empty without OpenTelemetry or without a span."""
    propagator = find_propagator()
    if propagator is None:
        return ()
    headers: dict[str, str] = {}
    propagator.inject(headers)
    return tuple(headers.items())


def read_trace_id(traceparent: object) -> str | None:
    """Return the trace id, 32 hexadecimal digits, in the value of the header; None for another value."""
    match = _FORM.fullmatch(traceparent) if isinstance(traceparent, str) else None
    return match[1] if match else None


@lru_cache(maxsize=1)
def find_propagator() -> Any:
    """Return OpenTelemetry's reader and writer of trace context; None if the package is not installed."""
    try:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        return None
    return TraceContextTextMapPropagator()
