"""The hostile traffic finds a server's faults: a mixed-up answer, a lost call, a bad call that is answered."""

from collections import Counter

import numpy as np
import pytest

from bench.faults.hostile import Call, HostileTraffic, find_differences
from contract.errors import DeadlineError, InputError, ServerError, UnavailableError


def make_call(name: str, value: float) -> Call:
    inputs = {"pixels": np.full((1, 1, 4, 4), value, np.uint8)}
    expected = {
        "embedding": np.full((1, 8), value, np.float32),
        "image_notes": np.array([[name.encode()]], np.object_),
    }
    return Call(name, "predict_image_tensors", inputs, expected)


GOOD = [make_call("one", 1), make_call("two", 2)]
BAD = [Call("bad", "predict_image_tensors", {"pixels": np.zeros((1, 1, 4, 4), np.uint8)})]


class FakeServer:
    """Answers right, refuses zeros, and lets calls with a short deadline end; `fault` breaks one of these."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.closed = 0

    def infer(self, call, timeout_s, *, cancelled_after_s=None):
        if call.expected is None:
            if self.fault == "ends":
                raise UnavailableError("it ended")
            if self.fault == "answers bad calls":
                return {}
            if self.fault == "loses bad calls":
                raise DeadlineError("lost")
            raise InputError("refused")
        if self.fault == "ends":
            raise UnavailableError("it ended")
        if self.fault == "forgets":
            raise ServerError("lost")
        if cancelled_after_s is not None:
            raise DeadlineError("in time")
        other = GOOD[call.name == "one"] if self.fault == "mixes up" else call
        return dict(other.expected)

    def close(self):
        self.closed += 1


def run(fault: str = ""):
    server = FakeServer(fault)
    report = HostileTraffic({"grpc": lambda: server}, GOOD, BAD, clients=3).run(bad_calls=30, cut_calls=40)
    assert server.closed == 4  # three hostile clients and a good one
    return report


def test_a_good_server():
    report = run()
    assert report.wrong + report.unanswered + report.not_refused == []
    assert report.refused == 30
    assert report.good > 0
    assert report.cut == Counter(answered=report.cut["answered"], ended=report.cut["ended"])
    assert report.cut.total() == 40
    assert min(report.cut.values()) > 0
    assert "30 bad calls refused" in report.describe()


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("mixes up", "wrong", "over grpc: embedding"),
        ("forgets", "unanswered", "over grpc: lost"),
        ("answers bad calls", "not_refused", "bad over grpc: answered"),
        ("loses bad calls", "not_refused", "bad over grpc: lost"),
    ],
)
def test_a_faulty_server_is_found_out(fault, kind, words):
    assert any(words in sentence for sentence in getattr(run(fault), kind))


def test_a_server_that_ended_is_counted_apart():
    report = run("ends")
    assert report.wrong + report.unanswered + report.not_refused == []
    assert (report.good, report.refused, report.cut) == (0, 0, Counter(unavailable=40))
    assert report.unavailable > 70  # every bad and every short call, and those of the good client
    assert "without a server" in report.describe()


def test_an_answer_is_compared_to_its_last_byte():
    one, two = GOOD
    assert find_differences(one, dict(one.expected)) == []
    assert find_differences(one, dict(two.expected)) == ["embedding", "image_notes"]
    assert find_differences(one, {"embedding": one.expected["embedding"]}) == ["image_notes"]
    assert find_differences(one, {**one.expected, "embedding": np.full((1, 8), np.nan, np.float32)}) == [
        "embedding"
    ]
    assert find_differences(one, {**one.expected, "embedding": np.ones((2, 8), np.float32)}) == ["embedding"]
