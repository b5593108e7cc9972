"""Log lines of calls: their form, their rate, and what is never in them."""

import json
import logging
import socket
import time
import uuid

import pytest

from contract import telemetry
from contract.errors import ConfigError
from contract.telemetry import Observer, Telemetry, replace_traceparent

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADER = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture
def lines(caplog):
    """Return the lines of calls as JSON objects."""
    caplog.set_level(logging.INFO, telemetry.CALLS)
    form = telemetry._JsonFormatter()
    return lambda: [json.loads(form.format(record)) for record in caplog.records]


def test_a_line_holds_the_numbers_and_both_identifiers(lines):
    observer = Observer("lab", Telemetry(log_calls=10))
    sent = [("x-request-id", "a1.b:2-C"), ("traceparent", HEADER), ("authorization", "Bearer cxr_secret")]
    observer.begin("Search", sent).end("OK", 12, 34)
    (line,) = lines()
    assert line["rpc"] == "Search"
    assert (line["status"], line["request_bytes"], line["answer_bytes"]) == ("OK", 12, 34)
    assert (line["request_id"], line["trace_id"]) == ("a1.b:2-C", TRACE)
    assert 0 <= line["ms"] < 1000
    assert line["level"] == "INFO"
    assert "secret" not in json.dumps(line)


@pytest.mark.parametrize(
    "given", ["", "cxr_token", "a b", "x" * 65, "a\nforged", "../file", "Small effusion", b"\x00", None]
)
def test_a_request_id_of_another_form_is_replaced(lines, given):
    observer = Observer("lab", Telemetry(log_calls=10))
    observer.begin("Search", [("x-request-id", given), ("traceparent", given)]).end("OK", 0, 0)
    (line,) = lines()
    assert uuid.UUID(line["request_id"])
    assert "trace_id" not in line


def test_the_number_of_lines_in_a_second_is_limited(lines, monkeypatch):
    now = 100.0
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now)
    observer = Observer("lab", Telemetry(log_calls=3))
    for _ in range(10):
        observer.begin("Search", ()).end("OK", 0, 0)
    assert len(lines()) == 3
    now = 101.0
    observer.begin("Search", ()).end("OK", 0, 0)
    assert lines()[3]["left_out"] == 7
    assert "7 lines before it left out" in lines()[3]["message"]
    assert Observer("lab", Telemetry()).begin("Search", ()) is None
    assert observer.begin("health", ()) is None


def test_an_exception_is_logged_by_its_type_alone(lines):
    logger = logging.getLogger(telemetry.CALLS)
    try:
        raise ValueError("Small left pleural effusion.")
    except ValueError:
        logger.exception("failed")
    (line,) = lines()
    assert line["exception"] == "ValueError"
    assert "effusion" not in json.dumps(line)


def test_without_spans_a_traceparent_goes_on_as_it_came():
    sent = [("traceparent", HEADER), ("tenant", "x")]
    assert replace_traceparent(sent) == sent


def test_the_trace_of_a_call_does_not_stick_to_the_next_one():
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")
    observer = Observer("lab", Telemetry(otlp="http://127.0.0.1:9"))
    observer.begin("infer", [("traceparent", HEADER)]).end("OK", 0, 0)
    assert TRACE in replace_traceparent([])[0][1]
    observer.begin("health", [])
    assert replace_traceparent([]) == []
    observer.close()


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "http://", "ftp://a:1", "http://a:1/v1/traces"])
def test_a_wrong_receiver_is_refused(endpoint):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")
    with pytest.raises(ConfigError, match=r"--otlp .*http://HOST:PORT"):
        Observer("lab", Telemetry(otlp=endpoint))


def test_without_the_extra_the_reason_is_told(monkeypatch):
    import builtins

    load = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match="needs the extra 'tracing'"):
        Observer("lab", Telemetry(otlp="http://127.0.0.1:1"))


def test_a_silent_receiver_does_not_hold_the_end_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        observer = Observer("cxr-test", Telemetry(otlp=f"http://127.0.0.1:{silent.getsockname()[1]}"))
        seen = observer.begin("Search", ())
        seen.end("OK", 1, 1)
        began = time.monotonic()
        observer.close()
    assert time.monotonic() - began < 4
