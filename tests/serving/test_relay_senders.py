"""Callers that send or read slowly, or not at all, and what they cannot do to others."""

import contextlib
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

grpc = pytest.importorskip("grpc")

from raw_http2 import PREFACE, make_call, make_frame, send_raw  # noqa: E402
from relay_thread import READY, SECONDS, wait  # noqa: E402

from contract.message_reader import MessageReader  # noqa: E402
from serving.relay import INFER, is_up  # noqa: E402

NO_WINDOW = b"\0\x04\0\0\0\0"  # SETTINGS_INITIAL_WINDOW_SIZE 0: the client reads no answer


@pytest.fixture
def silent():
    """A function that begins a call and never sends its message."""
    end = threading.Event()
    calls = []

    def begin(relay):
        def send():
            end.wait(SECONDS)
            return
            yield

        calls.append(relay.channel.stream_unary(INFER).future(send(), timeout=SECONDS))
        return calls[-1]

    yield begin
    for call in calls:
        call.cancel()
    end.set()


def test_calls_without_a_message_keep_nobody_from_being_answered(triton, make_relay, silent, monkeypatch):
    monkeypatch.setattr("serving.relay._MOST_READING", 3)
    relay = make_relay()
    calls = [silent(relay) for _ in range(3)]
    full = "Too many calls are sending"
    assert wait(
        lambda: relay.metrics.registry.get_sample_value("cxr_relay_open_calls", {"class": "infer"}) == 3
    )
    with pytest.raises(grpc.RpcError, match=full):
        relay.call(INFER, b"x")
    assert relay.metrics.registry.get_sample_value("cxr_relay_refused_total", {"reason": "queue_full"}) == 1
    assert is_up(relay.url)
    assert relay.call("/grpc.health.v1.Health/Check", b"") == b"answer to "
    calls[0].cancel()

    def is_answered():
        with contextlib.suppress(grpc.RpcError):
            return relay.call(READY, b"") == b"answer to "

    assert wait(is_answered)


def test_a_message_that_does_not_come_in_time_ends_its_call(triton, make_relay, silent, monkeypatch):
    monkeypatch.setattr("serving.relay.MessageReader", partial(MessageReader, seconds=0.2))
    relay = make_relay()
    assert silent(relay).exception().code() is grpc.StatusCode.CANCELLED
    assert relay.call(INFER, b"x") == b"answer to x"
    assert triton.seen == [b"x"]


def test_a_call_without_any_message_is_refused(triton, make_relay):
    relay = make_relay()
    with pytest.raises(grpc.RpcError) as caught:
        relay.channel.stream_unary(INFER)(iter([]), timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert triton.seen == []


def test_an_answer_counts_until_it_is_read(triton, make_relay):
    relay = make_relay(running=1, waiting=1)
    address = ("127.0.0.1", int(relay.url.rpartition(":")[2]))
    with socket.create_connection(address, timeout=SECONDS) as raw:
        raw.sendall(PREFACE + make_frame(4, 0, 0, NO_WINDOW))
        for stream in (1, 3):
            raw.sendall(make_call(stream, b"\0\0\0\0\1y", (b":path", INFER.encode())))
        assert wait(lambda: triton.ended == [b"y", b"y"])
        assert relay.turns.calls == 2
        with pytest.raises(grpc.RpcError, match="The queue is full: 2 inferences"):
            relay.call(INFER, b"x")
    assert wait(lambda: relay.turns.calls == 0 and relay.turns.held_bytes == 0)
    assert relay.call(INFER, b"x") == b"answer to x"


def test_a_header_whose_name_is_no_name_is_not_sent_on(triton, make_relay):
    relay = make_relay()
    path = b"/grpc.health.v1.Health/Check"
    send_raw(int(relay.url.rpartition(":")[2]), (b":path", path), (b"x!b\nfake line", b"1"))
    assert wait(lambda: triton.seen == [b""])
    assert not [name for name in triton.metadata if "fake" in name]


def test_a_full_queue_of_triton_counts_as_one(triton, make_relay):
    relay = make_relay()
    with pytest.raises(grpc.RpcError) as caught:
        relay.call(INFER, b"full")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "Exceeds maximum queue size"
    assert relay.metrics.registry.get_sample_value("cxr_relay_refused_total", {"reason": "queue_full"}) == 1


def test_one_connection_may_ask_more_than_it_can_send_at_once(triton, make_relay):
    """gRPC's client keeps back what exceeds the 256 calls of a connection; the relay refuses none of them."""
    relay = make_relay(waiting=600)
    payload, failed = b"x" * 100_000, Counter[str]()

    def ask(_: int) -> None:
        try:
            relay.call(INFER, payload)
        except grpc.RpcError as error:
            failed[f"{error.code().name}: {error.details()}"] += 1

    with ThreadPoolExecutor(320) as pool:
        list(pool.map(ask, range(6 * 320)))
    assert failed == {}
