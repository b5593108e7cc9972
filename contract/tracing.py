"""Spans of calls, exported by OpenTelemetry over OTLP (gRPC). Needs the extra `tracing`."""

import re
import threading
from typing import Any, Final

from contract.errors import ConfigError
from contract.trace_context import TRACEPARENT, find_propagator

_ENDPOINT: Final = re.compile(r"https?://[^\s/]+:\d{1,5}")
_CLOSE_S: Final = 2.0
# Statuses that OpenTelemetry counts as failures of a server.
_FAILURES: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)


class Tracing:
    """Starts spans and exports them from a thread of its own. Spans are dropped if nobody takes them."""

    def __init__(self, service: str, endpoint: str) -> None:
        """Set up the export.

        Args:
            service: `service.name` of the spans.
            endpoint: http://HOST:PORT of an OTLP receiver over gRPC; https for TLS with the public authorities, or
                those that OTEL_EXPORTER_OTLP_CERTIFICATE names.

        Raises:
            ConfigError: The extra is not installed, or the endpoint is not such an address.
        """
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(
                "--otlp needs the extra 'tracing': pip install 'cxr-serving[tracing]'."
            ) from error
        if not _ENDPOINT.fullmatch(endpoint):
            raise ConfigError(f"--otlp {endpoint}: give http://HOST:PORT or https://HOST:PORT.")
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": service}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("cxr-serving")

    def start(self, rpc: str, sent: dict[str, Any]) -> "Span":
        """Start the span of a call, below the one that `traceparent` in `sent` names, if it names one."""
        from opentelemetry.trace import SpanKind

        carrier = {name: value for name, value in sent.items() if isinstance(value, str)}
        above = find_propagator().extract(carrier)
        names = {"rpc.system": "grpc", "rpc.method": rpc}
        return Span(self._tracer.start_span(rpc, above, SpanKind.SERVER, names))

    def close(self) -> None:
        """Send what is left, for at most two seconds, and stop. A receiver that is silent is left to its thread."""
        end = threading.Thread(target=self._provider.shutdown, daemon=True)
        end.start()
        end.join(_CLOSE_S)


class Span:
    """The span of one call."""

    def __init__(self, span: Any) -> None:
        """Take a started span of OpenTelemetry. `header` is the `traceparent` of calls that are part of this one."""
        from opentelemetry.trace import set_span_in_context

        self._span = span
        self.trace_id = f"{span.get_span_context().trace_id:032x}"
        headers: dict[str, str] = {}
        find_propagator().inject(headers, set_span_in_context(span))
        self.header = headers[TRACEPARENT]

    def end(self, status: str, request_bytes: int, answer_bytes: int) -> None:
        """End the span with the name of a gRPC status and sizes in bytes."""
        import grpc
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[status].value[0])
        self._span.set_attribute("rpc.request.size", request_bytes)
        self._span.set_attribute("rpc.response.size", answer_bytes)
        if status in _FAILURES:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()
