"""What the relay counts and measures, for Prometheus. All names begin with `cxr_relay_`.

Calls are counted by class, never by the name that a caller sends.
"""

import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from contract.metrics_page import SECONDS
from contract.telemetry import Observer

NAMESPACE: Final = "cxr_relay"
TRITON_PATH: Final = "/triton/metrics"
# gRPC status -> why a call was refused: by the relay, or by a queue of Triton.
REFUSALS: Final = {
    "RESOURCE_EXHAUSTED": "queue_full",
    "UNAUTHENTICATED": "access",
    "PERMISSION_DENIED": "access",
    "UNIMPLEMENTED": "unsupported",
}
_PASS_ON_S: Final = 1.5

Answer = Callable[[Any, Any], Any]


class Room(Protocol):
    """What the gauges show of the limits; `serving.turns.Turns` in the relay."""

    running: int
    held_bytes: int

    @property
    def waiting(self) -> int:
        """Number of calls that wait for a turn."""


class RelayMetrics:
    """The metrics of one relay."""

    def __init__(self, observer: Observer | None = None) -> None:
        """Make all metrics, at zero, in a registry of their own. `observer` writes lines and spans of calls."""
        self._observer = observer
        self.registry = registry = CollectorRegistry()
        self._calls = Counter(
            "calls", "Calls by class and status.", ["class", "status"], namespace=NAMESPACE, registry=registry
        )
        self._seconds = Histogram(
            "call_duration_seconds",
            "Time of a call, from its message to its answer, with the wait for a turn.",
            ["class"],
            namespace=NAMESPACE,
            registry=registry,
            buckets=SECONDS,
        )
        self._open = Gauge(
            "open_calls",
            "Calls that have begun and not ended.",
            ["class"],
            namespace=NAMESPACE,
            registry=registry,
        )
        self._refused = Counter(
            "refused",
            "Calls that were refused, by reason.",
            ["reason"],
            namespace=NAMESPACE,
            registry=registry,
        )
        for reason in REFUSALS.values():
            self._refused.labels(reason)
        ProcessCollector(NAMESPACE, registry=registry)

    def watch(self, room: Room) -> None:
        """Show how many inferences run and wait whenever the metrics are read."""
        self.registry.register(_Gauges(room))

    def observe(self, kind: str, answer: Answer, read: Answer | None = None) -> Answer:
        """Return the handler of a call with a clock around it.

        Args:
            kind: The class of the call.
            answer: The handler.
            read: Makes what `answer` takes of the stream of messages and the context. None: `answer` takes the stream.
        """

        def observed(request: Any, context: Any) -> Any:
            began, status = time.monotonic(), "OK"
            self._open.labels(kind).inc()
            seen = self._observer.begin(kind, context.invocation_metadata() or ()) if self._observer else None
            response = None
            try:
                if read is not None:
                    request = read(request, context)
                response = answer(request, context)
            except Exception:
                status = (context.code() or grpc.StatusCode.UNKNOWN).name
                raise
            finally:
                if not context.is_active():
                    status = "CANCELLED"
                self._open.labels(kind).dec()
                self._count(kind, status, time.monotonic() - began)
                if seen is not None:
                    seen.end(status, _measure(request), _measure(response))
            return response

        return observed

    def count_full_queue(self) -> None:
        """Count a call that Triton refused because its queue is full."""
        self._refused.labels("queue_full").inc()

    def _count(self, kind: str, status: str, seconds: float) -> None:
        self._calls.labels(kind, status).inc()
        self._seconds.labels(kind).observe(seconds)
        if reason := REFUSALS.get(status):
            self._refused.labels(reason).inc()


def _measure(message: Any) -> int:
    """Return the size of a message in bytes; 0 if there is none, or it was not read."""
    return len(message) if isinstance(message, bytes) else 0


class _Gauges(Collector):
    def __init__(self, room: Room) -> None:
        self._room = room

    def collect(self) -> Iterator[GaugeMetricFamily]:
        values = {
            "running_inferences": (self._room.running, "Inferences in Triton."),
            "pending_request_count": (self._room.waiting, "Inferences that wait in the relay."),
            "held_bytes": (self._room.held_bytes, "Messages of inferences that are not over."),
        }
        for name, (value, text) in values.items():
            yield GaugeMetricFamily(f"{NAMESPACE}_{name}", text, value=float(value))


def read_page(url: str) -> bytes | None:
    """Return Triton's page of metrics; None if it does not answer in time."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # Triton is on this machine
    try:
        with opener.open(url, timeout=_PASS_ON_S) as answer:
            return bytes(answer.read())
    except (OSError, ValueError):
        return None
