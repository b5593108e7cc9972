"""`cxr bench soak`: what its report calls a failure, and its table. The events are in tests/e2e/test_soak.py."""

import copy

import pytest

from bench.faults.soak import BAD, _require_clean, format_markdown
from contract.errors import ServerError

EVENT = {
    "event": BAD,
    "times": 26,
    "recovery_median_s": 0.0,
    "recovery_max_s": 10.3,
    "unrecovered": 0,
    "restarts": 0,
    "errors": {"UnavailableError": 273},
}
CLEAN = {
    "minutes": 60,
    "events": [EVENT, {**EVENT, "event": "kill Triton", "restarts": 26}],
    "good_answers": 9,
    "wrong_answers": 0,
    "untyped_errors": {},
    "bad_clients": {
        "good": 5,
        "refused": 6,
        "unavailable": 7,
        "cut": {"ended": 9000, "answered": 1000},
        "wrong": [],
        "unanswered": [],
        "not_refused": [],
    },
    "leftovers": {"processes": 0, "shared_memory_bytes": 0, "regions": 0, "exit_code": 0},
}


def test_a_clean_run():
    _require_clean(CLEAN)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("wrong_answers",), 2, "2 wrong answers"),
        (("untyped_errors",), {"KeyError": 1}, "KeyError"),
        (("bad_clients", "unanswered"), ["one over grpc: late"], "unanswered: 1, first one over grpc: late"),
        (("bad_clients", "not_refused"), ["bad over grpc: answered"], "not refused: 1"),
        (("events", 0, "unrecovered"), 1, "not recovered: bad clients"),
        (("events", 0, "restarts"), 4, "bad clients ended Triton 4 times"),
        (("leftovers", "regions"), 3, "regions: 3"),
    ],
)
def test_what_a_run_fails_for(path, value, words):
    report = copy.deepcopy(CLEAN)
    place = report
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ServerError, match=words):
        _require_clean(report)


def test_the_table_shows_how_often_triton_was_started_again():
    text = format_markdown(CLEAN)
    assert f"| {BAD} | 26 | 0 | 0.0 s | 10.3 s | UnavailableError 273 |" in text
    assert "7 met no server" in text
