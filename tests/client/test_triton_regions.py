"""Shared memory of the transport: when it is used, and what happens when a region is lost or refused."""

import numpy as np
import pytest
from fake_inference import SHM, SIZES, ask, make_pixels

from client.channel import ChannelSettings
from client.triton import TritonTransport
from contract.errors import (
    CancelledError,
    DeadlineError,
    InputError,
    ServerError,
)


def test_auto_shares_large_calls_from_the_third_on(connect, server):
    transport = connect()
    for _ in range(5):
        ask(transport, make_pixels(1), outputs=("probabilities",))  # 50 KB
    assert not any(call["shared"] for call in server.sent)
    server.sent.clear()
    for _ in range(4):
        ask(transport, make_pixels(2))  # 100 KB
    assert [bool(call["shared"]) for call in server.sent] == [False, False, True, True]
    assert server.registered == 1


@pytest.mark.parametrize("url", ["10.0.0.5:8001", "triton:8001", "[2001:db8::1]:8001"])
def test_auto_never_shares_with_another_host(connect, server, url):
    transport = connect(url)
    for _ in range(5):
        ask(transport, make_pixels(32))
    assert not server.registered


def test_a_text_length_that_is_not_known_before_comes_back_by_grpc(connect, server):
    transport = connect(carrier="shared_memory")
    report = {"report": np.array([[b"Normal."]], np.object_)}
    for _ in range(2):
        ask(transport, report, "predict_text", ("probabilities", "text_attention"))
    assert server.sent[-1]["shared_outputs"] == ["probabilities"]


def test_a_server_that_refuses_regions_is_called_over_grpc(connect, server):
    server.refuses_regions = True
    transport = connect(carrier="shared_memory")
    for _ in range(3):
        ask(transport, make_pixels(8))
    assert [call["shared"] for call in server.sent] == [[], [], []]


def test_a_restarted_server_is_answered_without_an_error(connect, server):
    transport = connect(carrier="shared_memory")
    ask(transport, make_pixels(8))
    server.regions.clear()
    ask(transport, make_pixels(8, 2))
    assert [bool(call["shared"]) for call in server.sent] == [True, True, False]
    ask(transport, make_pixels(8, 3))
    assert server.sent[-1]["shared"]
    assert server.registered == 2


def test_outputs_that_grew_are_fetched_again(connect, server, monkeypatch):
    transport = connect(carrier="shared_memory")
    for _ in range(3):
        ask(transport, make_pixels(8))
    assert server.sent[-1]["shared_outputs"]
    monkeypatch.setitem(SIZES, "N", 196)
    for value in (1, 2, 3):
        assert ask(transport, make_pixels(8, value))["image_attention"].shape == (8, 22, 196)
    assert server.sent[-1]["shared_outputs"]


@pytest.mark.parametrize("code", ["INTERNAL", "NOT_FOUND"])
def test_a_failure_that_is_not_of_the_region_is_raised(connect, server, code):
    transport = connect(carrier="shared_memory")
    server.failures = [code, code]
    with pytest.raises(ServerError, match="it says"):
        ask(transport, make_pixels(8))
    server.failures = []
    ask(transport, make_pixels(8))


def test_what_failed_at_the_server_is_not_run_a_second_time(connect, server):
    transport = connect(carrier="shared_memory")
    for _ in range(3):
        ask(transport, make_pixels(8))
    assert server.sent[-1]["shared_outputs"]
    sent = len(server.sent)
    server.failures = ["INTERNAL"]
    with pytest.raises(ServerError, match="it says"):
        ask(transport, make_pixels(8))
    assert len(server.sent) == sent + 1
    assert server.config_calls == 1  # its outputs fit: so it was not the region
    ask(transport, make_pixels(8))
    assert server.sent[-1]["shared"]


@pytest.mark.parametrize(
    ("code", "reused"), [("INVALID_ARGUMENT", True), ("DEADLINE_EXCEEDED", False), ("CANCELLED", False)]
)
def test_a_region_is_used_again_only_after_an_answer(connect, server, code, reused):
    transport = connect(carrier="shared_memory")
    ask(transport, make_pixels(8))
    [before] = server.regions
    server.failures = [code]
    with pytest.raises((InputError, DeadlineError, CancelledError)):
        ask(transport, make_pixels(8))
    ask(transport, make_pixels(8))
    assert (list(server.regions) == [before]) is reused


def test_a_transport_that_nobody_closed_leaves_no_region(server):
    transport = TritonTransport("127.0.0.1:8001", ChannelSettings(carrier="shared_memory"))
    ask(transport, make_pixels(8))
    [name] = server.regions
    del transport
    assert not server.regions
    assert not (SHM / name).exists()
