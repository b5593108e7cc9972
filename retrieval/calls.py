"""Observes every call of the sidecar: how often, how long, and how it ended; a log line and a span if asked for."""

import time
from collections.abc import Callable
from typing import Any

import grpc

from contract.access import HEALTH_CALLS
from contract.telemetry import HEALTH, Observer
from retrieval.metrics import OTHER, SidecarMetrics

_Answer = Callable[[Any, Any], Any]


class CallInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """Measures calls. It stands before all other interceptors, so that it sees what they refuse."""

    def __init__(
        self, names: dict[str, str], metrics: SidecarMetrics, observer: Observer | None = None
    ) -> None:
        """Take the known calls and where they are counted.

        Args:
            names: Path of each call -> its name in the metrics.
            metrics: Counts the calls.
            observer: Writes lines and spans; None: there are none.
        """
        self._names, self._metrics, self._observer = names, metrics, observer
        metrics.expect(names.values())

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the handler of a call with a clock around it. A stream of health states is not measured."""
        method: str = handler_call_details.method
        rpc = HEALTH if method.startswith(HEALTH_CALLS) else self._names.get(method, OTHER)
        handler = continuation(handler_call_details)
        if handler is None:
            self._metrics.count_call(rpc, grpc.StatusCode.UNIMPLEMENTED.name, 0.0)
        elif handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._observe(rpc, handler.unary_unary),
                handler.request_deserializer,
                handler.response_serializer,
            )
        elif handler.stream_stream is not None:  # a refusal that reads no message
            return grpc.stream_stream_rpc_method_handler(self._observe(rpc, handler.stream_stream))
        return handler

    def _observe(self, rpc: str, answer: _Answer) -> _Answer:
        def observe(request: Any, context: Any) -> Any:
            began = time.monotonic()
            seen = self._observer.begin(rpc, context.invocation_metadata()) if self._observer else None
            response = None
            status = grpc.StatusCode.UNKNOWN  # an exception that set none
            try:
                response = answer(request, context)
                status = grpc.StatusCode.OK
            except BaseException:
                status = context.code() or status
                raise
            else:
                return response
            finally:
                self._metrics.count_call(rpc, status.name, time.monotonic() - began)
                if seen is not None:
                    seen.end(status.name, _measure(request), _measure(response))

        return observe


def _measure(message: Any) -> int:
    """Return the size of a message in bytes; 0 if there is none, or it was not read."""
    return int(message.ByteSize()) if hasattr(message, "ByteSize") else 0
