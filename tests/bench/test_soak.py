"""`cxr bench soak`: what its report calls a failure, its tables, its clients. Its events: tests/e2e/test_soak.py."""

import contextlib
import copy
import threading
import time
from collections import Counter
from functools import partial

import pytest

from bench.faults.faults import BAD
from bench.faults.ledger import Ledger
from bench.faults.records import Clients
from bench.faults.served_process import wait_for
from bench.faults.soak_report import Event, format_markdown, require_clean
from bench.targets.target import TargetRow
from contract.errors import InputError, ServerError, UnavailableError

GOODPUT = TargetRow("answers at 3 times the capacity", "at least", 0.9, 0.95)
CLEAN = {
    "minutes": 60,
    "events": [
        Event(BAD, [0.0, 10.3], Counter(UnavailableError=273), in_flight=3, later=270, writes=50).to_dict(),
        Event("kill Triton", [9.0], restarts=26).to_dict(),
    ],
    "skipped": {"fill the disk for 4 s": "this user may not mount a file system"},
    "overload": [GOODPUT.to_dict()],
    "good_answers": 9,
    "wrong_answers": 0,
    "untyped_errors": {},
    "writes": 50,
    "bad_clients": {
        "good": 5,
        "refused": 6,
        "unavailable": 7,
        "cut": {"ended": 9000, "answered": 1000},
        "wrong": [],
        "unanswered": [],
        "not_refused": [],
    },
    "leftovers": {
        "processes": 0,
        "shared_memory_bytes": 0,
        "regions": 0,
        "damaged_files": 0,
        "exit_code": 0,
    },
}


def test_a_clean_run():
    require_clean(CLEAN)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("wrong_answers",), 2, "2 wrong answers"),
        (("untyped_errors",), {"KeyError": 1}, "KeyError"),
        (("bad_clients", "unanswered"), ["one over grpc: late"], "unanswered: 1, first one over grpc: late"),
        (("bad_clients", "not_refused"), ["bad over grpc: answered"], "not refused: 1"),
        (("events", 1, "failures"), ["not recovered"], "kill Triton: not recovered"),
        (("overload", 0, "passed"), False, "overload: answers at 3 times the capacity"),
        (("leftovers", "regions"), 3, "regions: 3"),
        (("leftovers", "damaged_files"), 1, "damaged_files: 1"),
    ],
)
def test_what_a_run_fails_for(path, value, words):
    report = copy.deepcopy(CLEAN)
    place = report
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ServerError, match=words):
        require_clean(report)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (Event("kill Triton", unrecovered=1), "not recovered"),
        (Event("kill Triton", wrong=2), "2 wrong answers"),
        (
            Event("kill Triton", untyped=Counter(KeyError=1)),
            "errors of no type of this project: {'KeyError': 1}",
        ),
        (
            Event("kill the sidecar", lost_writes=["group 0-1 holds nothing"]),
            "writes lost: group 0-1 holds nothing",
        ),
        (Event(BAD, restarts=4), "bad clients ended Triton 4 times"),
        (Event("corrupt", troubles=["A damaged version was loaded."]), "A damaged version was loaded."),
    ],
)
def test_what_an_event_fails_for(event, words):
    assert event.to_dict()["passed"] is False
    assert event.list_failures() == [words]
    assert Event("kill Triton", [1.0], restarts=1).list_failures() == []


def test_the_tables():
    text = format_markdown(CLEAN)
    assert f"| {BAD} | pass | 2 | 0 | 5.2 s | 10.3 s | 3 | 270 | 0 of 50 | UnavailableError 273 |" in text
    assert "| fill the disk for 4 s | skipped: this user may not mount a file system | - |" in text
    assert "| answers at 3 times the capacity | at least 0.9x | 0.95x | pass |  |" in text
    assert "7 met no server" in text


def test_clients_record_what_they_saw():
    """A request that was sent before a fault is told from a later one; only errors of this project have a type."""
    fails = threading.Event()

    def request(number: int) -> bool:
        if fails.wait(0.05):
            raise (UnavailableError("gone"), KeyError("x"), InputError("bad"))[number % 3]
        return number != 1

    clients = Clients()
    clients.add(lambda: contextlib.nullcontext(request))
    guest = clients.add(lambda: contextlib.nullcontext(request), guest=True)
    wait_for(lambda: all(len(record.good_at) > 2 for record in clients.records))
    before, began = clients.tally(), time.monotonic()
    fails.set()
    wait_for(lambda: all(len(record.errors) > 3 for record in clients.records))
    fails.clear()
    wait_for(partial(clients.have_answers_since, time.monotonic()))
    failures = clients.list_failures(began)
    clients.dismiss()
    during = clients.tally().subtract(before)
    clients.close()
    assert clients.gone == [guest]
    assert before.wrong == 2  # the second answer of each
    assert {failure.kind for failure in failures} == {"UnavailableError", "KeyError", "InputError"}
    assert during.wrong == sum(failure.kind == "InputError" for failure in failures)
    assert during.untyped["KeyError"] == sum(failure.kind == "KeyError" for failure in failures)
    assert all(failure.sent <= failure.at for failure in failures)


LEDGER_CASES = [
    ({"0-0": {1: 5}, "0-1": {2: 5}}, 0),
    ({"0-0": {3: 5}, "0-1": {2: 5}}, 0),  # the write without an answer came through
    ({"0-1": {2: 5}}, 1),  # an acknowledged write is gone
    ({"0-0": {1: 5}, "0-1": {2: 4}}, 1),  # a part of one is gone
    ({"0-0": {1: 3, 3: 2}, "0-1": {2: 5}}, 1),  # the write without an answer came through in part
    ({"0-0": {1: 5}, "0-1": {1: 5}}, 1),  # an older version is back
]


@pytest.mark.parametrize(("stored", "lost"), LEDGER_CASES)
def test_the_ledger_sees_each_lost_write(stored, lost):
    ledger = Ledger(["0-0", "0-1", "0-2"], 5)
    for group in ("0-0", "0-1"):
        ledger.end(group, ledger.begin(group, delete=False))
    assert ledger.begin("0-0", delete=False) == 3  # without an answer
    assert len(ledger.compare({group: Counter(versions) for group, versions in stored.items()})) == lost


def test_the_ledger_sees_a_deleted_case_that_is_back():
    ledger = Ledger(["0-0"], 5)
    ledger.end("0-0", ledger.begin("0-0", delete=False))
    ledger.end("0-0", ledger.begin("0-0", delete=True))
    assert ledger.compare({}) == []
    assert len(ledger.compare({"0-0": Counter({1: 5})})) == 1
    assert ledger.writes == 2
