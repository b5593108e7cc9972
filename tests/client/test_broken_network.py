"""Many cases over a network that breaks again and again: what is repeated, what fails alone, and what is held."""

import socket
import threading
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from both_clients import CALLERS
from fake_server import TritonService, serve_triton
from fake_triton import FINGERPRINT, FakeTriton

from client import CaseInput
from client.prediction import Prediction
from contract.errors import ImageError, ServiceError
from retrieval.indexes import CaseIndexes
from retrieval.listener import SidecarServer
from retrieval.service import RetrievalService


class Network:
    """Forwards connections to a port, and breaks all of them on demand.

    Attributes:
        port: The port on which it listens.
        breaks: How often it broke.
    """

    def __init__(self, target: int) -> None:
        self._target, self.breaks = target, 0
        self._lock, self._open = threading.Lock(), set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection; new ones are accepted."""
        with self._lock:
            ends, self._open = self._open, set()
            self.breaks += 1
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                with self._lock:
                    self._open |= {near, far}
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    @staticmethod
    def _forward(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


@contextmanager
def break_after(port: int, service: TritonService, requests: int):
    """Yield a network to a Triton that breaks in the middle of each so many requests."""
    network, count, infer = Network(port), [0], service.fake.infer

    def infer_and_break(*arguments, **options):
        count[0] += 1
        if count[0] % requests == 0:
            network.cut()
        return infer(*arguments, **options)

    service.fake.infer = infer_and_break
    try:
        yield network
    finally:
        network.close()


def make_cases(count: int, taken: list[int] | None = None):
    for number in range(count):
        if taken is not None:
            taken.append(number)
        yield CaseInput(str(number), "s", f"image {number}".encode())


@pytest.fixture
def service():
    return TritonService(FakeTriton())


@pytest.mark.parametrize("name", CALLERS)
def test_with_retries_no_case_is_lost(name, service):
    with serve_triton(service) as port, break_after(port, service, 9) as network:
        caller = CALLERS[name](f"127.0.0.1:{network.port}", timeout_s=30, retries=9)
        outcomes = caller.call("predict_many", make_cases(40), in_flight=3)
        caller.close()
    assert network.breaks >= 4
    assert [case.id for case, _ in outcomes] == [str(number) for number in range(40)]
    assert all(isinstance(outcome, Prediction) for _, outcome in outcomes)


@pytest.mark.parametrize("name", CALLERS)
def test_a_failure_is_the_result_of_its_case_and_can_be_repeated(name, service):
    with serve_triton(service) as port, break_after(port, service, 9) as network:
        caller = CALLERS[name](f"127.0.0.1:{network.port}", timeout_s=30)
        caller.call("info")
        cases = list(make_cases(40))
        cases[5] = CaseInput("5", "s", "missing.png")
        outcomes = caller.call("predict_many", cases, in_flight=3, keep_going=True)
        failed = [case for case, outcome in outcomes if isinstance(outcome, ServiceError)]
        assert [case.id for case, _ in outcomes] == [str(number) for number in range(40)]
        assert isinstance(outcomes[5][1], ImageError)
        assert 1 <= len(failed) < 40
        for _ in range(20):
            outcomes = caller.call("predict_many", failed, in_flight=1, keep_going=True)
            failed = [case for case, outcome in outcomes if isinstance(outcome, ServiceError)]
            if not failed:
                break
        assert not failed
        caller.close()


@pytest.mark.parametrize("name", CALLERS)
def test_without_being_told_so_a_run_ends_with_the_error(name, service):
    with serve_triton(service) as port, break_after(port, service, 9) as network:
        caller = CALLERS[name](f"127.0.0.1:{network.port}", timeout_s=30)
        with pytest.raises(ServiceError):
            caller.call("predict_many", make_cases(40), in_flight=3)
        caller.close()


def test_only_a_few_cases_are_held_while_the_network_breaks(service):
    taken: list[int] = []
    with serve_triton(service) as port, break_after(port, service, 9) as network:
        caller = CALLERS["blocking"](f"127.0.0.1:{network.port}", timeout_s=30, retries=9)
        for done, _ in enumerate(caller.client.predict_many(make_cases(60, taken), in_flight=2), start=1):
            assert len(taken) <= done + 4
        caller.close()


class Forgetful(RetrievalService):
    """A sidecar whose network breaks after the first group of cases is stored, so that the answer is lost."""

    network = None

    def AddCases(self, request, context):
        answer = super().AddCases(request, context)
        if not self.network.breaks:
            self.network.cut()
        return answer


@pytest.mark.parametrize("name", CALLERS)
def test_an_index_holds_every_case_once(name, service, tmp_path):
    """Storing is repeated: a case that is stored twice is one case."""
    service.fake.outputs["embedding"] = [np.eye(16)[0]]
    with CaseIndexes(tmp_path, fingerprint=FINGERPRINT) as indexes, serve_triton(service) as port:
        sidecar = SidecarServer(service_of_cases := Forgetful(indexes), "127.0.0.1:0")
        indexes.start().result(10)
        sidecar.announce()
        network = Network(int(sidecar.address.rpartition(":")[2]))
        service_of_cases.network = network
        caller = CALLERS[name](f"127.0.0.1:{port}", f"127.0.0.1:{network.port}", timeout_s=30, retries=9)
        result = caller.call("index", make_cases(150))
        assert (result.added, result.replaced, result.failed) == (150 - 64, 64, ())
        assert caller.call("index_info").case_count == 150
        assert network.breaks == 1
        network.close()
        result = caller.call("index", make_cases(70), keep_going=True, timeout_s=2)
        assert (result.indexed, len(result.failed)) == (0, 70)
        assert "is `cxr serve` running there" in result.failed[0][1]
        caller.close()
        sidecar.stop(0.0)
