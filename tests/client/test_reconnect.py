"""Real gRPC servers on loopback stop and start again. Every client reconnects within two seconds."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from client import CxrClient
from client.channel import ChannelSettings
from client.retrieval import RetrievalTransport
from client.triton import TritonTransport
from contract.address import CHANNEL_OPTIONS
from contract.errors import UnavailableError
from contract.proto import retrieval_pb2, retrieval_pb2_grpc

pytestmark = pytest.mark.alone
AGAIN_S = 2.0


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    def ServerReady(self, _request, _context):
        return service_pb2.ServerReadyResponse(ready=True)


class Sidecar(retrieval_pb2_grpc.RetrievalServicer):
    def GetInfo(self, _request, _context):
        return retrieval_pb2.GetInfoResponse(case_count=7, index_kind="flat")


@contextmanager
def serve(port: int = 0):
    """Answer as Triton and as the sidecar; yield the port."""
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Triton(), server)
    retrieval_pb2_grpc.add_RetrievalServicer_to_server(Sidecar(), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


def ask_until(ask, answered: threading.Event, times: list[float]) -> None:
    """Ask ten times a second, as a queue of work does; note when an answer came."""
    while not answered.is_set():
        try:
            if ask():
                times.append(time.monotonic())
                return
        except UnavailableError:
            pass
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        time.sleep(0.1)


def measure_return(away_s: float) -> dict[str, float]:
    """Return for each client how many seconds after the server's return it was answered."""
    with serve() as port:
        address = f"127.0.0.1:{port}"
        retrieval, triton = RetrievalTransport(address), TritonTransport(address, ChannelSettings("grpc"))
        whole = CxrClient(address, address)
        channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)  # never made anew
        plain = retrieval_pb2_grpc.RetrievalStub(channel)
        asks = {
            "retrieval": lambda: retrieval.read_info(1).case_count == 7,
            "triton": lambda: triton.check_ready(1) is None,
            "health": lambda: whole.health(timeout_s=1).cases == 7,
            "plain": lambda: plain.GetInfo(retrieval_pb2.GetInfoRequest(), timeout=1).case_count == 7,
        }
        assert all(ask() for ask in asks.values())
    answered, times = threading.Event(), {name: [] for name in asks}
    threads = [
        threading.Thread(target=ask_until, args=(asks[name], answered, times[name]), daemon=True)
        for name in asks
    ]
    for thread in threads:
        thread.start()
    try:
        time.sleep(away_s)
        assert not any(times.values())
        with serve(port):
            returned = time.monotonic()
            with CxrClient(address, address) as fresh:  # at once, whatever the others wait for
                assert fresh.index_info(timeout_s=AGAIN_S).case_count == 7
            for thread in threads:
                thread.join(AGAIN_S)
    finally:
        answered.set()
        for thread in threads:
            thread.join(10)
        for client in (retrieval, triton, whole, channel):
            client.close()
    return {name: at[0] - returned if at else float("inf") for name, at in times.items()}


def test_a_server_that_was_away_for_ten_seconds_is_found_at_once():
    waited = measure_return(10)
    assert max(waited.values()) < AGAIN_S, waited


@pytest.mark.slow
def test_a_server_that_was_away_for_75_seconds_is_found_at_once():
    waited = measure_return(75)
    assert max(waited.values()) < AGAIN_S, waited


def test_every_channel_waits_as_briefly():
    options = dict(ChannelSettings().make_channel_arguments())
    assert dict(CHANNEL_OPTIONS).items() <= options.items()
    assert options["grpc.max_reconnect_backoff_ms"] == 1000
    assert options["grpc.use_local_subchannel_pool"] == 1


def test_a_sidecar_that_was_not_there_is_looked_up_anew():
    with serve() as port, closing(RetrievalTransport(f"127.0.0.1:{port}")) as retrieval:
        retrieval.read_info(5)
        used = retrieval._open_stub()
        retrieval.read_info(5)
        assert retrieval._open_stub() is used
    with closing(RetrievalTransport(f"127.0.0.1:{port}")) as retrieval:
        used = retrieval._open_stub()
        for _ in range(2):
            with pytest.raises(UnavailableError):
                retrieval.read_info(5)
            assert retrieval._open_stub() is not used
            used = retrieval._open_stub()
        with serve(port):
            assert retrieval.read_info(5).case_count == 7
