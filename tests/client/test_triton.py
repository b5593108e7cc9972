"""The transport over a stand-in for tritonclient's own client: answers, failures, settings, calls at once."""

import math
import threading
import time

import numpy as np
import pytest
from fake_inference import OUTPUTS, ask, make_pixels, make_text
from fake_triton import in_steps

from client.channel import Calls, ChannelSettings
from client.triton import TritonTransport
from contract.connection import is_local
from contract.errors import (
    BusyError,
    CancelledError,
    ConfigError,
    DeadlineError,
    TensorError,
    UnavailableError,
)


@pytest.mark.parametrize("carrier", ["grpc", "shared_memory", "auto"])
def test_answers_are_the_same_however_they_travel(connect, server, carrier):
    transport = connect(carrier=carrier)
    for batch in (1, 8, 32, 1):
        for value in (1, 3):
            answer = ask(transport, make_pixels(batch, value))
            assert answer["image_attention"].shape == (batch, 22, 49)
            assert answer.model_version == "7"
            assert answer["probabilities"].dtype == np.float32
    image = {"image_bytes": np.array([[b"\1" * 300_000]], np.object_)}
    for _ in range(4):
        answer = ask(transport, image, "predict_image", (*OUTPUTS, "image_notes"))
        assert answer["image_notes"].tolist() == [[b"{}"]]
    for count in (2, 4, 2):
        files = {"image_bytes": np.array([[b"\1" * 100_000] * count], np.object_)}
        answer = ask(transport, files, "predict_image", (*OUTPUTS, "image_notes", "lateral"))
        assert answer["image_attention"].shape == (1, 22, count * 49)
        assert answer["image_notes"].shape == answer["lateral"].shape == (1, count)
    for length in (32, 256, 64, 256):
        answer = ask(
            transport,
            {**make_pixels(8), **make_text(8, length)},
            "predict_study_tensors",
            ("text_attention",),
        )
        assert answer["text_attention"].shape == (8, 22, length)
    assert any(call["shared"] for call in server.sent) is (carrier != "grpc")
    assert any(call["shared_outputs"] for call in server.sent) is (carrier != "grpc")


def test_request_objects_are_reused_for_the_same_shapes(connect, server):
    transport = connect(carrier="grpc")
    for batch in (1, 1, 2, 1):
        ask(transport, make_pixels(batch))
    objects = [call["objects"] for call in server.sent]
    assert objects[0] == objects[1] == objects[3] != objects[2]
    assert len({id(call["client"]) for call in server.sent}) == 1


def test_a_file_is_not_kept_in_memory(connect, server):
    transport = connect(carrier="grpc")
    ask(transport, {"image_bytes": np.array([[b"\1" * 1000]], np.object_)}, "predict_image", OUTPUTS)
    [lane] = transport._lanes
    assert not lane._requests


def test_calls_at_once_share_no_connection_and_no_object(connect, server):
    transport = connect(carrier="shared_memory")
    errors = []

    def work(value: int) -> None:
        try:
            for _ in range(20):
                ask(transport, make_pixels(2, value))
        except Exception as error:  # shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(transport._lanes) <= 6
    assert len(server.regions) <= 6


@pytest.mark.parametrize(
    ("ready", "kind"),
    [
        (True, BusyError),
        (False, UnavailableError),
        ("UNAVAILABLE", UnavailableError),
        ("DEADLINE_EXCEEDED", UnavailableError),
    ],
)
def test_unavailable_is_busy_where_the_server_has_the_model(connect, server, ready, kind):
    """Triton says UNAVAILABLE for a full queue, gRPC for a connection that cannot be made."""
    server.failures, server.ready = ["UNAVAILABLE"], ready
    with pytest.raises(kind) as caught:
        ask(connect(), make_pixels())
    assert type(caught.value) is kind


def test_a_connection_whose_server_was_not_there_is_given_up(connect, server):
    """A new connection resolves the host name again, because a restarted container has another address."""
    transport = connect()
    ask(transport, make_pixels())
    server.failures, server.ready = ["UNAVAILABLE"], "UNAVAILABLE"
    with pytest.raises(UnavailableError):
        ask(transport, make_pixels())
    server.failures = ["UNAVAILABLE"]
    with pytest.raises(UnavailableError):
        ask(transport, make_pixels())
    ask(transport, make_pixels())
    first, lost, again, last = [call["client"] for call in server.sent]
    assert first is lost
    assert len({id(first), id(again), id(last)}) == 3
    assert first.closed.is_set()
    assert again.closed.is_set()
    server.failures, server.ready = ["UNAVAILABLE"], True
    with pytest.raises(BusyError):
        ask(transport, make_pixels())
    ask(transport, make_pixels())
    assert server.sent[-1]["client"] is last  # a server that is busy is there
    assert len(transport._lanes) == 1


def test_a_queue_that_gives_up_at_the_deadline_is_a_deadline(connect, server, monkeypatch):
    transport = connect()
    server.failures = ["UNAVAILABLE"]
    monkeypatch.setattr(transport, "_serves", in_steps(lambda *_: time.sleep(0.1) or True))
    with pytest.raises(DeadlineError):
        transport.infer("predict_image_tensors", make_pixels(), OUTPUTS, 0.05)


def test_calls_are_cancelled_together(connect, server):
    transport, calls, outcomes = connect(carrier="shared_memory"), Calls(), []
    server.block = True

    def work() -> None:
        try:
            ask(transport, make_pixels(8), calls=calls)
        except CancelledError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert server.entered.wait(60)
    calls.cancel()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == 3  # those under way, and those that had not begun
    server.block = False
    ask(transport, make_pixels(8))
    with pytest.raises(CancelledError):
        ask(transport, make_pixels(8), calls=calls)
    assert all(not lane.closed for lane in transport._lanes)


def test_bad_tensors_are_refused_before_anything_is_sent(connect, server):
    transport = connect()
    with pytest.raises(TensorError, match="UINT8"):
        transport.infer("predict_image_tensors", {"pixels": np.zeros((1, 1, 8, 8), np.float32)}, OUTPUTS, 1)
    assert not server.sent


def test_compression_and_keepalive_reach_the_channel(connect, server):
    transport = connect(compression="gzip", keepalive_s=60)
    ask(transport, make_pixels())
    [call] = server.sent
    assert call["compression"] == "gzip"
    arguments = dict(call["client"].channel_args)
    assert arguments["grpc.keepalive_time_ms"] == 60_000
    assert arguments["grpc.enable_http_proxy"] == 0
    ask(connect(), make_pixels())
    assert server.sent[-1]["compression"] is None
    assert "grpc.keepalive_time_ms" not in dict(server.sent[-1]["client"].channel_args)


@pytest.mark.parametrize(
    "settings",
    [
        {"carrier": "pigeon"},
        {"compression": "zip"},
        {"keepalive_s": 5},
        {"keepalive_s": math.nan},
        {"carrier": None},
    ],
)
def test_settings_that_do_not_exist_are_refused(settings):
    with pytest.raises(ConfigError):
        ChannelSettings(**settings)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("127.0.0.1:8001", True),
        ("127.1.2.3:1", True),
        ("localhost:8001", True),
        ("[::1]:8001", True),
        ("unix:/run/triton.sock", True),
        ("192.168.0.7:8001", False),
        ("localhost.example.org:8001", False),
        ("triton", False),
    ],
)
def test_local_addresses(url, local):
    assert is_local(url) is local


def test_closing_leaves_no_connection_open(server):
    transport = TritonTransport("127.0.0.1:8001", ChannelSettings(carrier="shared_memory"))
    ask(transport, make_pixels(8))
    transport.close()
    transport.close()
    assert all(client.closed.is_set() for client in server.clients)
    assert not server.regions
