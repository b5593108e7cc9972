"""Many cases: their order, the requests in flight, the cases in memory, and an early end."""

import threading
import time

import pytest

from client import CaseInput
from client.many import predict_in_order
from contract.errors import ConfigError, ServerError


def make_cases(count: int, taken: list[int] | None = None):
    for number in range(count):
        if taken is not None:
            taken.append(number)
        yield CaseInput(str(number), str(number))


@pytest.mark.parametrize("in_flight", [1, 3, 8, 100])
def test_order_is_kept_and_no_more_than_so_many_are_in_flight(in_flight):
    lock, now, most = threading.Lock(), [0], [0]

    def predict(case, _calls):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.001 * (int(case.id) % 4))
        with lock:
            now[0] -= 1
        return f"answer {case.id}"

    answers = list(predict_in_order(predict, make_cases(40), in_flight))
    assert [case.id for case, _ in answers] == [str(number) for number in range(40)]
    assert [answer for _, answer in answers] == [f"answer {number}" for number in range(40)]
    assert most[0] <= in_flight
    assert most[0] > 1 or in_flight == 1


def test_cases_are_read_as_they_are_needed():
    taken: list[int] = []
    answers = predict_in_order(lambda _case, _calls: None, make_cases(1000, taken), 4)
    for number, _ in enumerate(answers, start=1):
        assert len(taken) <= number + 8
    assert len(taken) == 1000


class Lane:
    """A connection whose call ends when it is closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


@pytest.mark.parametrize("how", ["close", "error"])
def test_an_early_end_cancels_what_is_in_flight(how):
    lanes = []

    def predict(case, calls):
        if case.id == "0":
            if how == "error":
                raise ServerError("it fails")
            return "first"
        lane = Lane()
        calls.add(lane)
        lanes.append(lane)
        assert lane.closed.wait(60)
        calls.remove(lane)
        raise ServerError("cancelled")

    answers = predict_in_order(predict, make_cases(100), 3)
    began = time.monotonic()
    if how == "error":
        with pytest.raises(ServerError, match="it fails"):
            next(answers)
    else:
        assert next(answers)[1] == "first"
        answers.close()
    assert time.monotonic() - began < 30  # they would wait for 60 s
    assert all(lane.closed.is_set() for lane in lanes)
    assert len(lanes) <= 6


@pytest.mark.parametrize("in_flight", [0, -1])
def test_none_in_flight_is_refused_at_once(in_flight):
    with pytest.raises(ConfigError, match="At least 1"):
        predict_in_order(lambda _case, _calls: None, [], in_flight)
