"""Calls that send nothing: they hold no thread of the sidecar for long, and others are answered meanwhile."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from retrieval.calls import MOST_READING

SEARCH = "/cxr.retrieval.v1.Retrieval/Search"


def open_silent(channel, path: str, count: int) -> tuple[list, threading.Event]:
    """Open calls that send no message until the event is set."""
    go = threading.Event()

    def wait():
        go.wait(60)
        yield from ()

    return [channel.stream_unary(path).future(wait(), timeout=60) for _ in range(count)], go


@pytest.mark.parametrize("path", [SEARCH, "/grpc.health.v1.Health/Check"])
def test_calls_that_send_nothing_block_nobody(sidecar, make, path):
    vectors = make.vectors(2)
    sidecar.client.add(vectors)
    with grpc.insecure_channel(sidecar.server.address) as channel:
        calls, go = open_silent(channel, path, 70)
        assert sidecar.client.health() == "SERVING"
        if path == SEARCH:
            deadline = time.monotonic() + 30
            while sum(call.done() for call in calls) < 70 - MOST_READING:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert {call.code().name for call in calls if call.done()} == {"RESOURCE_EXHAUSTED"}
        go.set()
        for call in calls:
            call.cancel()
    assert sidecar.client.find_ids(vectors[1], k=1) == ["1"]


def test_many_callers_at_once_are_answered(sidecar, make):
    vectors = make.vectors(8)
    sidecar.client.add(vectors)
    with ThreadPoolExecutor(48) as pool:
        answers = list(pool.map(lambda _: sidecar.client.info().case_count, range(300)))
    assert answers == [8] * 300
