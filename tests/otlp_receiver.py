"""A real OTLP receiver over gRPC, for tests of several folders."""

import threading
from concurrent import futures
from contextlib import contextmanager

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that arrive, each with the name of its service."""

    def __init__(self) -> None:
        self.spans: list = []
        self._arrived = threading.Condition()

    def Export(self, request, context):
        with self._arrived:
            for group in request.resource_spans:
                names = {entry.key: entry.value.string_value for entry in group.resource.attributes}
                self.spans += [
                    (names["service.name"], span) for scope in group.scope_spans for span in scope.spans
                ]
            self._arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, count: int, timeout_s: float = 30.0) -> list:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.spans) >= count, timeout_s), self.spans
            return list(self.spans)


@contextmanager
def receive_spans():
    """Yield a receiver and its address."""
    receiver = Receiver()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield receiver, f"http://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
