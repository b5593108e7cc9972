"""What the sidecar counts and measures, for Prometheus. All names begin with `cxr_retrieval_`.

Units are seconds and bytes. No label holds what a caller sends: a call of another name counts as "other".
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from contract.metrics_page import SECONDS

NAMESPACE: Final = "cxr_retrieval"
OTHER: Final = "other"
# gRPC status -> why the sidecar refused a call that another time or another caller may make.
REFUSALS: Final = {
    "RESOURCE_EXHAUSTED": "queue_full",
    "DEADLINE_EXCEEDED": "deadline",
    "UNAUTHENTICATED": "access",
    "PERMISSION_DENIED": "access",
}
_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LONG_SECONDS: Final = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600)


class Measured(Protocol):
    """What the gauges show of one model; `retrieval.backend.ModelBackend` in the sidecar."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model; "" before the first case."""

    def measure(self) -> Any:
        """Return a `retrieval.backend.ModelFacts`."""


class Source(Protocol):
    """Where the gauges come from; `retrieval.backend.CaseBackend` in the sidecar."""

    @property
    def ready(self) -> bool:
        """Whether every index is built."""

    def all(self) -> Iterable[Measured]:
        """Return the cases of each model."""


class SidecarMetrics:
    """The metrics of one sidecar. Thread-safe."""

    def __init__(self) -> None:
        """Make all metrics, at zero, in a registry of their own."""
        self.registry = CollectorRegistry()
        self.request = self._time("request_duration_seconds", "Time of a call, from start to answer.", "rpc")
        self.queue = self._time("queue_duration_seconds", "Time that a search waited for its turn.")
        self.search = self._time(
            "search_duration_seconds", "Time of one search of the index, for all its queries."
        )
        self.write = self._time(
            "write_duration_seconds", "Time to store or delete cases on the disk.", "operation"
        )
        self.sync = self._time(
            "fsync_duration_seconds", "Time of one fsync, which serves all writes that wait."
        )
        self.batch = self._count_sizes("batch_size_queries", "Queries in one search of the index.", _BATCHES)
        self.build = self._count_sizes(
            "build_duration_seconds", "Time to build an index from the store.", _LONG_SECONDS
        )
        self._requests = Counter(
            "requests",
            "Calls by name and status.",
            ["rpc", "status"],
            namespace=NAMESPACE,
            registry=self.registry,
        )
        self._refused = Counter(
            "refused",
            "Calls that were refused, by reason.",
            ["reason"],
            namespace=NAMESPACE,
            registry=self.registry,
        )
        for reason in REFUSALS.values():
            self._refused.labels(reason)
        ProcessCollector(NAMESPACE, registry=self.registry)

    def expect(self, rpcs: Iterable[str]) -> None:
        """Show the failures of calls at zero, so that Prometheus sees the first one as an increase."""
        for rpc in rpcs:
            self._requests.labels(rpc, "INTERNAL")

    def count_call(self, rpc: str, status: str, seconds: float) -> None:
        """Count a call that ended.

        Args:
            rpc: A name of this service, or `OTHER`.
            status: Name of its gRPC status.
            seconds: How long it took.
        """
        self._requests.labels(rpc, status).inc()
        self.request.labels(rpc).observe(seconds)
        if reason := REFUSALS.get(status):
            self._refused.labels(reason).inc()

    @contextmanager
    def time_write(self, operation: str) -> Iterator[None]:
        """Measure a change of the store: "upsert" or "delete". One that fails counts too."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.write.labels(operation).observe(time.monotonic() - began)

    def watch(self, source: Source) -> None:
        """Show the state of the indexes whenever the metrics are read."""
        self.registry.register(_Gauges(source))

    def _time(self, name: str, text: str, *labels: str) -> Histogram:
        return self._count_sizes(name, text, SECONDS, *labels)

    def _count_sizes(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(
            name, text, labels, namespace=NAMESPACE, registry=self.registry, buckets=tuple(buckets)
        )


class _Gauges(Collector):
    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterator[GaugeMetricFamily]:
        entries = list(self._source.all())
        measured = [entry.measure() for entry in entries]
        facts = [each.index for each in measured]
        values = {
            "ready": (self._source.ready, "1 if every index is built and answers."),
            "models": (sum(bool(entry.fingerprint) for entry in entries), "Models that have cases."),
            "cases": (sum(each.rows for each in facts), "Cases that a search may return, of all models."),
            "damaged_cases": (
                sum(each.damaged for each in measured),
                "Stored cases that differ from what was written and are left out.",
            ),
            "pending_request_count": (
                sum(each.waiting for each in measured),
                "Searches and changes that wait for their turn.",
            ),
            "vector_bytes": (sum(each.vector_bytes for each in facts), "Memory of the embeddings."),
            "code_bytes": (sum(each.code_bytes for each in facts), "Memory of the codes of 8 bits."),
            "store_bytes": (
                sum(each.store_bytes for each in measured),
                "Size of the stores on the disk, with their WAL.",
            ),
        }
        for name, (value, text) in values.items():
            yield GaugeMetricFamily(f"{NAMESPACE}_{name}", text, value=float(value))
