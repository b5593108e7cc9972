"""The relay's log lines and spans, and the trace that it passes on to Triton."""

import logging
import sys
from pathlib import Path

import pytest

grpc = pytest.importorskip("grpc")

from relay_thread import READY, wait  # noqa: E402

from contract.telemetry import CALLS, Observer, Telemetry  # noqa: E402
from serving.relay import INFER  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADER = f"00-{TRACE}-00f067aa0ba902b7-01"


def test_each_call_is_a_line_by_its_class(triton, make_relay, caplog):
    caplog.set_level(logging.INFO, CALLS)
    relay = make_relay()
    relay.metrics._observer = Observer("cxr-relay", Telemetry(log_calls=100))
    metadata = (("x-request-id", "req-1"), ("traceparent", HEADER))
    relay.call(INFER, b"a report", metadata=metadata)
    assert triton.metadata["traceparent"] == HEADER
    with pytest.raises(grpc.RpcError):
        relay.call(INFER, b"bad report", metadata=metadata)
    assert wait(lambda: len([x for x in caplog.records if x.name == CALLS]) == 2)
    fields = [record.fields for record in caplog.records if record.name == CALLS]
    assert [(each["rpc"], each["status"]) for each in fields] == [
        ("infer", "OK"),
        ("infer", "INVALID_ARGUMENT"),
    ]
    assert (fields[0]["request_bytes"], fields[0]["answer_bytes"]) == (8, len(b"answer to a report"))
    assert {each["request_id"] for each in fields} == {"req-1"}
    assert {each["trace_id"] for each in fields} == {TRACE}
    assert "report" not in caplog.text


def test_the_span_of_the_relay_stands_between_the_callers_and_tritons(triton, make_relay):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")
    from otlp_receiver import receive_spans

    relay = make_relay()
    with receive_spans() as (receiver, endpoint):
        observer = Observer("cxr-relay", Telemetry(otlp=endpoint))
        relay.metrics._observer = observer
        relay.call(INFER, b"x", metadata=(("traceparent", HEADER),))
        passed_on = triton.metadata["traceparent"]
        relay.call(READY, b"x")
        observer.close()
        (_, infer), (service, question) = receiver.wait_for(2)
    assert service == "cxr-relay"
    assert (infer.trace_id.hex(), infer.parent_span_id.hex()) == (TRACE, "00f067aa0ba902b7")
    assert passed_on == f"00-{TRACE}-{infer.span_id.hex()}-01"
    assert question.name == "question"
    assert question.trace_id.hex() != TRACE
