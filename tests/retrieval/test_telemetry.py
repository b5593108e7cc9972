"""The sidecar's log lines and spans, from the real process: numbers and identifiers, nothing of a case."""

import json
import signal
import sys
import time
from pathlib import Path

import grpc
import pytest

from contract.proto import retrieval_pb2

sys.path.insert(0, str(Path(__file__).parents[1]))
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADER = f"00-{TRACE}-00f067aa0ba902b7-01"
SECRETS = ("patient-4711", "Small left pleural effusion", "scan-4711.dcm", "cxr_token")


def call(server, make, **metadata):
    """Add a case, search with its report, and ask for one that is not there."""
    given = list(metadata.items())
    case, report, image, token = SECRETS
    embedding = make.vectors(1)[0].tolist()
    new = retrieval_pb2.Case(id=case, study_id=case, report=report, image_ref=image, embedding=embedding)
    stub = server.client.stub
    stub.AddCases(retrieval_pb2.AddCasesRequest(fingerprint=make.MODEL, cases=[new]), metadata=given)
    query = retrieval_pb2.Query(embedding=embedding)
    stub.Search(retrieval_pb2.SearchRequest(fingerprint=make.MODEL, queries=[query], k=1), metadata=given)
    given.append(("authorization", f"Bearer {token}"))
    with pytest.raises(grpc.RpcError):
        stub.GetCase(retrieval_pb2.GetCaseRequest(id=f"no {case}"), metadata=given)


@pytest.mark.parametrize("form", ["json", "text"])
def test_each_call_is_a_line_without_anything_of_the_case(run_server, make, form):
    server = run_server("--log-format", form, "--log-calls", "100")
    call(server, make, **{"x-request-id": "req-1"})
    code, errors = server.end(signal.SIGTERM)
    assert code == 0
    assert not [secret for secret in SECRETS if secret in errors]
    lines = errors.splitlines()
    if form == "text":
        assert [line for line in lines if "INFO cxr.calls: Search OK" in line and "request req-1" in line]
        return
    read = [json.loads(line) for line in lines]
    calls = [(line["rpc"], line["status"], line["request_id"]) for line in read if "rpc" in line]
    assert calls == [
        ("AddCases", "OK", "req-1"),
        ("Search", "OK", "req-1"),
        ("GetCase", "NOT_FOUND", "req-1"),
    ]
    (search,) = (line for line in read if line.get("rpc") == "Search")
    assert search["request_bytes"] > 4 * make.D
    assert search["answer_bytes"] > len(SECRETS[1])


def test_spans_reach_an_otlp_receiver_below_the_callers(run_server, make):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")
    from otlp_receiver import receive_spans

    with receive_spans() as (receiver, endpoint):
        server = run_server("--otlp", endpoint)
        call(server, make, traceparent=HEADER)
        assert server.end(signal.SIGTERM)[0] == 0
        spans = receiver.wait_for(3)
    assert [(service, span.name) for service, span in spans] == [
        ("cxr-retrieval", name) for name in ("AddCases", "Search", "GetCase")
    ]
    for _, span in spans:
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, "00f067aa0ba902b7")
        assert not [secret for secret in SECRETS if secret in str(span)]
    codes = [{entry.key: entry.value for entry in span.attributes} for _, span in spans]
    assert [code["rpc.grpc.status_code"].int_value for code in codes] == [0, 0, 5]


def test_a_receiver_that_is_not_there_delays_no_call_and_no_end(run_server, make):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")
    server = run_server("--otlp", "http://127.0.0.1:9")
    began = time.monotonic()
    call(server, make)
    assert server.end(signal.SIGTERM)[0] == 0
    assert time.monotonic() - began < 20
