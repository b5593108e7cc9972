"""Three times the load of a server: the rows, on a server that answers one request at a time and refuses the rest."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tritonclient.grpc import service_pb2

from bench.faults import overload
from bench.targets.target import TargetRow

WORK_S = 0.02
QUEUE = 40  # more than the clients that measure the capacity


class OneAtATime(grpc.GenericRpcHandler):
    """Answers ModelMetadata and ModelInfer. It refuses what finds a full queue with `status`."""

    def __init__(self, status: grpc.StatusCode) -> None:
        self._status, self._turn, self._room = status, threading.Lock(), threading.Semaphore(QUEUE)

    def service(self, details):
        handler = self._infer if details.method.endswith("ModelInfer") else self._describe
        return grpc.unary_unary_rpc_method_handler(handler)

    def _describe(self, request, context):
        answer = service_pb2.ModelMetadataResponse(name="predict_image")
        answer.inputs.add(name="image_bytes", datatype="BYTES", shape=[-1, 1])
        return answer.SerializeToString()

    def _infer(self, request, context):
        if not self._room.acquire(blocking=False):
            context.abort(self._status, "full")
        try:
            with self._turn:
                time.sleep(WORK_S)
        finally:
            self._room.release()
        return service_pb2.ModelInferResponse().SerializeToString()


@pytest.fixture
def measure(monkeypatch):
    """A function: status of a refusal -> the rows, measured in a second."""
    for name, seconds in {"_CAPACITY_S": 0.5, "_OVERLOAD_S": 1.0, "_WARM_UP_S": 1.0}.items():
        monkeypatch.setattr(overload, name, seconds)
    monkeypatch.setattr(overload, "_IN_FLIGHT", 100)

    def run(status: grpc.StatusCode) -> list[TargetRow]:
        server = grpc.server(ThreadPoolExecutor(120), handlers=[OneAtATime(status)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            return overload.measure_overload(f"127.0.0.1:{port}")
        finally:
            server.stop(0).wait()

    return run


def test_each_row_is_measured(measure):
    goodput, refusal, recovery = measure(grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert 0.5 < goodput.value < 1.5
    assert all(goodput.conditions.values())
    assert "BusyError" in goodput.detail
    assert 0 < refusal.value < 1000 * WORK_S * QUEUE  # it did not wait in the queue
    assert recovery.value <= 2 * WORK_S * QUEUE
    assert (goodput.limit, refusal.limit, recovery.limit) == (0.9, 50.0, 5.0)


def test_another_error_than_a_refusal_fails_the_row(measure):
    goodput, refusal, _ = measure(grpc.StatusCode.INTERNAL)
    assert goodput.passed is False
    assert "ServerError" in goodput.detail
    assert refusal.value is None
    assert refusal.detail == "no request was refused"
