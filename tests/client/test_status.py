"""The status code alone decides on the error, whose message is one line."""

import pytest

from client.status import make_error
from contract.errors import (
    BusyError,
    CancelledError,
    DeadlineError,
    FingerprintError,
    InputError,
    ServerError,
    UnavailableError,
)

CODES = {
    "INVALID_ARGUMENT": (InputError, "refused the request"),
    "OUT_OF_RANGE": (InputError, "refused the request"),
    "FAILED_PRECONDITION": (FingerprintError, "refused the request"),
    "NOT_FOUND": (ServerError, "failed"),
    "INTERNAL": (ServerError, "failed"),
    "": (ServerError, "failed"),
    "DEADLINE_EXCEEDED": (DeadlineError, "within 2.5 s"),
    "CANCELLED": (CancelledError, "cancelled"),
    "UNAVAILABLE": (UnavailableError, "cxr serve"),
    "RESOURCE_EXHAUSTED": (BusyError, "Try again in a moment"),
}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("prefix", ["", "StatusCode."])
def test_the_code_alone_decides(code, prefix):
    kind, words = CODES[code]
    for message in ("", "Deadline Exceeded", "Exceeds maximum queue size", "failed to connect"):
        error = make_error(prefix + code, message, server="Triton", url="host:1", timeout_s=2.5)
        assert type(error) is kind
        assert words in str(error)
        assert str(error).count("\n") == 0


def test_no_code_at_all_is_a_failure_and_a_long_message_is_cut():
    error = make_error(None, "x " * 1000, server="Triton", url="host:1", timeout_s=1)
    assert type(error) is ServerError
    assert len(str(error)) < 500


def test_a_busy_server_is_not_said_to_be_down():
    error = make_error("RESOURCE_EXHAUSTED", "", server="Triton", url="host:1", timeout_s=1)
    assert "cxr serve" not in str(error)
