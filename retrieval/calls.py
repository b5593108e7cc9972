"""Observes every call of the sidecar: how often, how long, and how it ended; a log line and a span if asked for."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        elif handler.unary_stream is not None and rpc != HEALTH:
            return grpc.unary_stream_rpc_method_handler(
                self._observe_stream(rpc, handler.unary_stream),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return handler

    def _observe(self, rpc: str, answer: _Answer) -> _Answer:
        def observe(request: Any, context: Any) -> Any:
            with self._watch(rpc, request, context) as sizes:
                response = answer(request, context)
                sizes.append(_measure(response))
            return response

        return observe

    def _observe_stream(self, rpc: str, answer: _Answer) -> _Answer:
        def observe(request: Any, context: Any) -> Iterator[Any]:
            with self._watch(rpc, request, context) as sizes:
                for response in answer(request, context):
                    sizes.append(_measure(response))
                    yield response

        return observe

    @contextmanager
    def _watch(self, rpc: str, request: Any, context: Any) -> Iterator[list[int]]:
        """Observe one call. The list that this yields takes the sizes of its answers."""
        began, sizes = time.monotonic(), list[int]()
        seen = self._observer.begin(rpc, context.invocation_metadata()) if self._observer else None
        status = grpc.StatusCode.UNKNOWN  # an exception that set none
        try:
            yield sizes
            status = grpc.StatusCode.OK
        except GeneratorExit:
            status = grpc.StatusCode.CANCELLED
            raise
        except BaseException:
            status = context.code() or status
            raise
        finally:
            self._metrics.count_call(rpc, status.name, time.monotonic() - began)
            if seen is not None:
                seen.end(status.name, _measure(request), sum(sizes))


def _measure(message: Any) -> int:
    """Return the size of a message in bytes; 0 if there is none, or it was not read."""
    return int(message.ByteSize()) if hasattr(message, "ByteSize") else 0
