"""Reads the message of every call of the sidecar, and observes the call: how often, how long, how it ended.

A message is read and parsed in the thread of its call. So a message that nobody can parse is a refused call like any
other, and one that takes long to parse holds up no other call.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from contract.access import HEALTH_CALLS
from contract.errors import InputError
from contract.message_reader import MessageReader
from contract.telemetry import HEALTH, Observer
from retrieval.metrics import OTHER, SidecarMetrics

MOST_READING: Final = 32  # calls whose message has not come yet

_Answer = Callable[[Any, Any], Any]


@dataclass
class _Sizes:
    """Bytes of the message of a call and of its answers."""

    asked: int = 0
    answered: int = 0


class CallInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """Reads messages and measures calls. It stands before all other interceptors, so that it sees what they refuse."""

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
        self._reader = MessageReader(MOST_READING)
        metrics.expect(names.values())

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the handler of a call with a clock around it. None: there is no such call."""
        method: str = handler_call_details.method
        rpc = HEALTH if method.startswith(HEALTH_CALLS) else self._names.get(method, OTHER)
        handler = continuation(handler_call_details)
        if handler is None:
            self._metrics.count_call(rpc, grpc.StatusCode.UNIMPLEMENTED.name, 0.0)
        elif handler.unary_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                self._observe(rpc, handler.unary_unary, self._make_read(handler)),
                response_serializer=handler.response_serializer,
            )
        elif handler.unary_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                self._observe_stream(rpc, handler.unary_stream, self._make_read(handler)),
                response_serializer=handler.response_serializer,
            )
        elif handler.stream_unary is not None:  # an answer that reads no message
            return grpc.stream_unary_rpc_method_handler(
                self._observe(rpc, handler.stream_unary, _leave_unread),
                response_serializer=handler.response_serializer,
            )
        else:  # a refusal that reads no message
            return grpc.stream_stream_rpc_method_handler(
                self._observe(rpc, handler.stream_stream, _leave_unread)
            )
        return handler

    def _make_read(self, handler: Any) -> Callable[[Any, Any, _Sizes], Any]:
        """Return a function that reads and parses the message of a call of this handler."""

        def read(messages: Iterator[bytes], context: Any, sizes: _Sizes) -> Any:
            data = self._reader.read(messages, context)
            sizes.asked = len(data)
            if handler.request_deserializer is None:
                return data
            try:
                return handler.request_deserializer(data)
            except (DecodeError, InputError) as error:
                text = str(error) if isinstance(error, InputError) else "The message belongs to another call."
                return context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)

        return read

    def _observe(self, rpc: str, answer: _Answer, read: Callable[[Any, Any, _Sizes], Any]) -> _Answer:
        def observe(messages: Any, context: Any) -> Any:
            with self._watch(rpc, context) as sizes:
                response = answer(read(messages, context, sizes), context)
                sizes.answered = _measure(response)
            return response

        return observe

    def _observe_stream(self, rpc: str, answer: _Answer, read: Callable[[Any, Any, _Sizes], Any]) -> _Answer:
        def observe(messages: Any, context: Any) -> Iterator[Any]:
            with self._watch(rpc, context) as sizes:
                for response in answer(read(messages, context, sizes), context):
                    sizes.answered += _measure(response)
                    yield response

        return observe

    @contextmanager
    def _watch(self, rpc: str, context: Any) -> Iterator[_Sizes]:
        """Observe one call. The call fills in the sizes."""
        began, sizes = time.monotonic(), _Sizes()
        seen = self._observer.begin(rpc, context.invocation_metadata()) if self._observer else None
        status = grpc.StatusCode.UNKNOWN  # an exception that set none
        try:
            yield sizes
            status = grpc.StatusCode.OK
        except GeneratorExit:
            status = grpc.StatusCode.CANCELLED
            raise
        except grpc.RpcError:  # the call ended before its message came
            status = context.code() or grpc.StatusCode.CANCELLED
            raise
        except BaseException:
            status = context.code() or status
            raise
        finally:
            self._metrics.count_call(rpc, status.name, time.monotonic() - began)
            if seen is not None:
                seen.end(status.name, sizes.asked, sizes.answered)


def _leave_unread(messages: Any, _context: Any, _sizes: _Sizes) -> Any:
    return messages


def _measure(message: Any) -> int:
    """Return the size of an answer in bytes; 0 if there is none."""
    return int(message.ByteSize()) if hasattr(message, "ByteSize") else 0
