"""Names of gRPC status codes, and the code that has two meanings at Triton."""

import pytest

from contract.grpc_status import resolve_unavailable, strip_code


@pytest.mark.parametrize(
    ("status", "code"),
    [("StatusCode.NOT_FOUND", "NOT_FOUND"), ("INTERNAL", "INTERNAL"), (None, ""), ("", "")],
)
def test_a_status_has_a_bare_name(status, code):
    assert strip_code(status) == code


@pytest.mark.parametrize(("ready", "code"), [(True, "RESOURCE_EXHAUSTED"), (False, "UNAVAILABLE")])
def test_unavailable_is_a_full_queue_where_the_model_is_ready(ready, code):
    assert resolve_unavailable("UNAVAILABLE", lambda: ready) == code


@pytest.mark.parametrize("code", ["INTERNAL", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", ""])
def test_no_other_code_costs_a_question(code):
    assert resolve_unavailable(code, lambda: pytest.fail("The server was called.")) == code
