"""The relay in front of Triton, against a stand-in for Triton's gRPC service that notes what reaches it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

grpc = pytest.importorskip("grpc")

from relay_thread import READY, SECONDS, UNLIMITED, Running, Triton, start_triton, wait  # noqa: E402

from serving.ports import Ports  # noqa: E402
from serving.relay import INFER, STREAM, is_up  # noqa: E402

ROOT = Path(__file__).parents[2]


def test_bytes_metadata_and_errors_pass_as_they_are(triton, make_relay):
    relay = make_relay()
    blob = bytes(range(256)) * 100_000  # 25 MB, beyond gRPC's usual limit
    assert relay.call(INFER, blob) == b"answer to " + blob
    sent = {"tenant": "y", "traceparent": "z", "blob-bin": b"\0\xff"}
    assert relay.call(READY, b"", metadata=tuple(sent.items())) == b"answer to "
    assert triton.metadata.items() >= sent.items()
    with pytest.raises(grpc.RpcError) as caught:
        relay.call(INFER, b"bad file")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "preprocess_image: not an image"


@pytest.mark.parametrize("way", ["deadline", "cancellation", "lost connection"])
def test_triton_never_learns_that_a_client_gave_up(triton, make_relay, way):
    relay = make_relay()
    call = relay.start(b"slow one", timeout=0.3 if way == "deadline" else SECONDS)
    assert wait(lambda: triton.seen == [b"slow one"])
    if way == "cancellation":
        call.cancel()
    elif way == "lost connection":
        relay.channel.close()
        relay.channel = grpc.insecure_channel(relay.url, options=UNLIMITED)
    assert wait(call.done)
    time.sleep(0.3)
    assert triton.given_up == []
    assert triton.limits[0] is None or triton.limits[0] > 10**9  # no deadline
    assert relay.turns.calls == 1
    triton.go_on.set()
    assert wait(lambda: relay.turns.calls == 0 and relay.turns.held_bytes == 0)
    assert triton.ended == [b"slow one"]
    assert relay.call(INFER, b"next") == b"answer to next"
    assert triton.given_up == []


def test_what_waits_when_its_client_gives_up_never_reaches_triton(triton, make_relay):
    relay = make_relay(running=1)
    first = relay.start(b"slow first")
    assert wait(lambda: triton.seen == [b"slow first"])
    late = relay.start(b"late", timeout=0.3)
    assert wait(lambda: relay.turns.calls == 2)
    third = relay.start(b"third")
    assert late.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
    triton.go_on.set()
    assert (first.result(), third.result()) == (b"answer to slow first", b"answer to third")
    assert triton.seen == [b"slow first", b"third"]
    assert wait(lambda: relay.turns.calls == 0)


def test_turns_are_taken_in_order(triton, make_relay):
    relay = make_relay(running=1)
    calls = [relay.start(b"slow 0")]
    assert wait(lambda: triton.seen == [b"slow 0"])
    for number in range(1, 6):
        calls.append(relay.start(b"%d" % number))
        assert wait(lambda number=number: relay.turns.calls == number + 1)
    triton.go_on.set()
    for call in calls:
        call.result()
    assert triton.seen == [b"slow 0", b"1", b"2", b"3", b"4", b"5"]


def test_more_than_there_is_room_for_is_refused_at_once(triton, make_relay):
    relay = make_relay(running=1, waiting=1)
    held = [relay.start(b"slow 0"), relay.start(b"slow 1")]
    assert wait(lambda: relay.turns.calls == 2)
    with pytest.raises(grpc.RpcError) as caught:
        relay.call(INFER, b"one too many")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "The queue is full: 2 inferences" in caught.value.details()
    assert relay.call(READY, b"") == b"answer to "  # what is no inference needs no turn
    triton.go_on.set()
    assert all(call.result() for call in held)


def test_memory_is_bounded_and_one_large_file_is_not_refused(triton, make_relay):
    relay = make_relay(held_bytes=10_000_000)
    large = relay.start(b"slow" + bytes(12_000_000))
    assert wait(lambda: relay.turns.calls == 1)
    with pytest.raises(grpc.RpcError) as caught:
        relay.call(INFER, b"small")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    triton.go_on.set()
    assert len(large.result()) > 12_000_000
    assert wait(lambda: relay.turns.held_bytes == 0)
    assert relay.call(INFER, b"small") == b"answer to small"


def test_streams_are_refused_in_a_sentence(make_relay):
    relay = make_relay()
    with pytest.raises(grpc.RpcError) as caught:
        list(relay.channel.stream_stream(STREAM)(iter([b"x"]), timeout=SECONDS))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "Call ModelInfer" in caught.value.details()


def test_a_triton_that_is_away_is_said_and_found_again(tmp_path):
    address = f"unix:{tmp_path}/triton"
    relay = Running(address)
    try:
        with pytest.raises(grpc.RpcError) as caught:
            relay.call(INFER, b"x")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "Triton is not running. It is being started."
        assert str(tmp_path) not in caught.value.details()
        server = start_triton(Triton(), address)
        began = time.monotonic()
        while True:
            try:
                assert relay.call(INFER, b"x") == b"answer to x"
                break
            except grpc.RpcError:
                assert time.monotonic() - began < SECONDS
                time.sleep(0.05)
        server.stop(0).wait()
    finally:
        relay.close()


def test_calls_under_way_are_answered_at_the_end(triton, tmp_path):
    relay = Running(f"unix:{tmp_path}/triton")
    call = relay.start(b"slow one")
    assert wait(lambda: triton.seen == [b"slow one"])
    relay.end()
    assert wait(lambda: not is_up(relay.url))  # nobody new is let in
    assert not call.done()
    triton.go_on.set()
    assert call.result() == b"answer to slow one"
    relay.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_ends_in_order(number):
    url = f"127.0.0.1:{Ports.free().grpc}"
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.relay", "--listen", url, "--triton", "unix:/nowhere"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )
    assert wait(lambda: is_up(url))
    process.send_signal(number)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert said == b""


def test_a_port_that_is_taken_ends_the_process(tmp_path):
    held = start_triton(Triton(), url := f"127.0.0.1:{Ports.free().grpc}")
    done = subprocess.run(
        [sys.executable, "-m", "serving.relay", "--listen", url, "--triton", "unix:/nowhere"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=SECONDS,
    )
    held.stop(0).wait()
    assert done.returncode != 0
    assert url.encode() in done.stderr
