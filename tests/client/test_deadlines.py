"""Deadlines and cancellations that must reach what a client waits for: a lock, a probe, a pause, another caller."""

import asyncio
import socket
import threading
import time
from contextlib import contextmanager

import grpc
import pytest
from both_clients import CALLERS
from fake_server import TritonService, serve_triton
from fake_triton import FakeTriton

from client import AsyncCxrClient, CaseInput, CxrClient
from client.channel import Calls
from client.lock import AsyncLock
from client.retrieval import RetrievalTransport
from contract.errors import (
    BusyError,
    CancelledError,
    ConfigError,
    DeadlineError,
    ServiceError,
    UnavailableError,
)

NOBODY = "127.0.0.1:9"


class SlowFacts(TritonService):
    """Tells about its models after `released` only, and answers predictions after `delay_s`."""

    def __init__(self) -> None:
        super().__init__(FakeTriton())
        self.asked, self.released = threading.Event(), threading.Event()
        self.delay_s = 0.0

    def ModelConfig(self, request, context):
        self.asked.set()
        self.released.wait(10)
        return super().ModelConfig(request, context)

    def ModelInfer(self, request, context):
        time.sleep(self.delay_s)
        return super().ModelInfer(request, context)


@pytest.fixture
def slow():
    service = SlowFacts()
    with serve_triton(service) as port:
        service.address = f"127.0.0.1:{port}"
        yield service
        service.released.set()


def test_a_caller_that_waits_for_another_one_keeps_its_deadline(slow):
    with CxrClient(slow.address, NOBODY) as client:
        first = threading.Thread(target=lambda: client.predict(report="Clear.", timeout_s=9))
        first.start()
        assert slow.asked.wait(9)
        began = time.monotonic()
        with pytest.raises(DeadlineError):
            client.predict(report="Clear.", timeout_s=0.2)
        assert time.monotonic() - began < 2
        slow.released.set()
        first.join(9)
        client.predict(report="Clear.", timeout_s=9)


def test_a_task_that_waits_for_another_one_keeps_its_deadline_and_its_cancellation(slow):
    async def scenario() -> None:
        async with AsyncCxrClient(slow.address, NOBODY) as client:
            first = asyncio.create_task(client.predict(report="Clear.", timeout_s=9))
            assert await asyncio.to_thread(slow.asked.wait, 9)
            began = time.monotonic()
            with pytest.raises(DeadlineError):
                await client.predict(report="Clear.", timeout_s=0.2)
            second = asyncio.create_task(client.predict(report="Clear.", timeout_s=9))
            await asyncio.sleep(0.1)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            assert time.monotonic() - began < 2
            slow.released.set()
            await first
            await client.predict(report="Clear.", timeout_s=9)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_a_task_that_is_cancelled_as_it_gets_the_lock_leaves_it_free():
    async def scenario() -> None:
        for turns in range(6):  # the cancellation comes before, with and after the lock
            lock = AsyncLock()
            assert await lock.acquire(1)
            waiter = asyncio.create_task(lock.acquire(5))
            await asyncio.sleep(0.01)
            lock.release()
            for _ in range(turns):
                await asyncio.sleep(0)
            if waiter.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await waiter
            else:
                lock.release()
            assert await lock.acquire(1), turns

    asyncio.run(scenario())


@contextmanager
def drop_then_hang():
    """Yield the address of a server that drops the first connection, and says nothing on the others."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if not kept:
                time.sleep(0.2)
                connection.close()
            kept.append(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(9)
    for connection in kept:
        connection.close()


@pytest.mark.parametrize("method", ["info", "index_info"])
@pytest.mark.parametrize("name", CALLERS)
def test_looking_for_the_cause_ends_with_the_time_of_the_call(name, method):
    with drop_then_hang() as address:
        caller = CALLERS[name](address, address, timeout_s=0.5)
        began = time.monotonic()
        with pytest.raises(ServiceError):
            caller.call(method)
        assert time.monotonic() - began < 1.0
        caller.close()


def test_health_has_one_deadline_for_each_server(slow):
    slow.released.set()
    with CxrClient(slow.address, NOBODY) as client:
        assert client.health(timeout_s=9).triton is None
        slow.delay_s = 0.35  # three predictions
        began = time.monotonic()
        assert "did not answer within" in client.health(timeout_s=0.5).triton
        assert time.monotonic() - began < 1.0


def test_an_early_end_reaches_the_pauses_and_the_first_question(slow):
    """Nothing listens at one address, and at the other one nobody tells about the model."""
    cases = [CaseInput(str(number), "s", report="Clear.") for number in range(20)]
    for address in (NOBODY, slow.address):
        with CxrClient(address, NOBODY, timeout_s=9, retries=100) as client:
            began = time.monotonic()
            outcomes = client.predict_many(stop_after(cases, 4))
            with pytest.raises(KeyboardInterrupt):
                next(outcomes)
            assert time.monotonic() - began < 4
    assert slow.asked.is_set()


def stop_after(cases, count):
    yield from cases[:count]
    time.sleep(0.5)
    raise KeyboardInterrupt


def test_a_cancelled_group_sends_nothing_more(slow):
    with CxrClient(slow.address, NOBODY) as client:
        calls = Calls()
        calls.cancel()
        with pytest.raises(CancelledError):
            client._tritons[0].read_model(5, calls=calls)
    assert not slow.asked.is_set()


def test_a_full_queue_costs_no_connection():
    service = TritonService(FakeTriton())

    async def scenario(address: str) -> None:
        async with AsyncCxrClient(address, NOBODY, timeout_s=9) as client:
            for _ in range(5):
                await client.predict(report="Clear.")
                service.refusals = [grpc.StatusCode.UNAVAILABLE]
                with pytest.raises(BusyError):
                    await client.predict(report="Clear.")

    with serve_triton(service) as port:
        asyncio.run(scenario(f"127.0.0.1:{port}"))
    assert len(service.peers) == 1


def test_closing_ends_requests_on_connections_that_were_given_up():
    service = TritonService(FakeTriton())

    async def scenario(address: str) -> None:
        client = AsyncCxrClient(address, NOBODY, timeout_s=15)
        await client.predict(report="Clear.")
        service.blocks = True
        running = asyncio.create_task(client.predict(report="Clear."))
        assert await asyncio.to_thread(service.entered.wait, 9)
        service.refusals, service.ready = [grpc.StatusCode.UNAVAILABLE], False
        with pytest.raises(UnavailableError):
            await client.predict(report="Clear.")
        began = time.monotonic()
        await client.close()
        with pytest.raises(CancelledError):
            await running
        assert time.monotonic() - began < 5
        assert await asyncio.to_thread(service.ended.wait, 5)

    with serve_triton(service) as port:
        asyncio.run(scenario(f"127.0.0.1:{port}"))


def test_closing_a_sidecar_closes_the_connections_that_were_given_up():
    transport = RetrievalTransport(NOBODY)
    used = transport._open_stub()
    with pytest.raises(UnavailableError):
        transport.read_info(5)
    assert transport._open_stub() is not used
    transport.close()
    with pytest.raises(ValueError, match="closed"):
        used.channel.unary_unary("/any")(b"")


@pytest.mark.parametrize("name", CALLERS)
def test_a_closed_client_says_so(name):
    caller = CALLERS[name](NOBODY, NOBODY)
    caller.call("health")
    caller.client.close() if name == "blocking" else caller.loop.run_until_complete(caller.client.close())
    case = CaseInput("1", "s", report="Clear.")
    for method, arguments, options in (
        ("info", (), {}),
        ("index_info", (), {}),
        ("predict", (None, "Clear."), {}),
        ("delete", (["1"],), {}),
        ("predict_many", ([case],), {"keep_going": True}),
    ):
        with pytest.raises(CancelledError, match="client is closed"):
            caller.call(method, *arguments, **options)
    assert "client is closed" in caller.call("health").triton
    caller.close()


def test_many_cases_end_when_the_client_is_closed_under_way():
    with serve_triton(TritonService(FakeTriton())) as port:
        client = CxrClient(f"127.0.0.1:{port}", NOBODY, timeout_s=9)
        cases = (CaseInput(str(number), "s", report="Clear.") for number in range(200))
        outcomes = client.predict_many(cases, keep_going=True)
        next(outcomes)
        client.close()
        with pytest.raises(CancelledError):
            list(outcomes)


def test_a_cancelled_task_is_cancelled_although_the_client_closes():
    pytest.importorskip("asyncio.taskgroups")  # Python 3.11 tells who cancelled a task
    service = TritonService(FakeTriton())

    async def scenario(address: str) -> None:
        client = AsyncCxrClient(address, NOBODY, timeout_s=15)
        await client.predict(report="Clear.")
        service.blocks = True
        task = asyncio.create_task(client.predict(report="Clear."))
        assert await asyncio.to_thread(service.entered.wait, 9)
        task.cancel()
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    with serve_triton(service) as port:
        asyncio.run(scenario(f"127.0.0.1:{port}"))


def test_a_second_event_loop_is_named():
    with serve_triton(TritonService(FakeTriton())) as port:
        client = AsyncCxrClient(f"127.0.0.1:{port}", NOBODY, timeout_s=5)
        asyncio.run(client.predict(report="Clear."))
        with pytest.raises(ConfigError, match="event loop of its first call"):
            asyncio.run(client.predict(report="Clear."))
