"""What the sidecar exports: each number comes from what was done, and nothing that a caller sent is in it."""

import re
import signal
import urllib.request
from types import SimpleNamespace

import grpc
import pytest

from contract.proto import retrieval_pb2
from retrieval import listener
from retrieval.calls import CallInterceptor
from retrieval.metrics import NAMESPACE
from serving.ports import Ports


def read(sidecar, name: str, **labels) -> float:
    value = sidecar.indexes.metrics.registry.get_sample_value(f"{NAMESPACE}_{name}", labels)
    return 0.0 if value is None else value


def test_calls_searches_and_writes_are_counted_and_timed(sidecar, make, expect_status):
    vectors = make.vectors(6)
    sidecar.client.add(vectors)
    sidecar.client.search(vectors[:4])
    sidecar.client.delete(["0", "unknown"])
    with expect_status("NOT_FOUND"):
        sidecar.client.get("0")
    for rpc, status in (
        ("AddCases", "OK"),
        ("Search", "OK"),
        ("DeleteCases", "OK"),
        ("GetCase", "NOT_FOUND"),
    ):
        assert read(sidecar, "requests_total", rpc=rpc, status=status) == 1
        assert read(sidecar, "request_duration_seconds_count", rpc=rpc) == 1
        assert 0 < read(sidecar, "request_duration_seconds_sum", rpc=rpc) < 10
    assert (
        read(sidecar, "queue_duration_seconds_count") == read(sidecar, "search_duration_seconds_count") == 1
    )
    assert (read(sidecar, "batch_size_queries_count"), read(sidecar, "batch_size_queries_sum")) == (1, 4)
    assert read(sidecar, "write_duration_seconds_count", operation="upsert") == 1
    assert read(sidecar, "write_duration_seconds_count", operation="delete") == 1
    assert read(sidecar, "fsync_duration_seconds_count") == 2  # the cases, the deletion
    assert read(sidecar, "build_duration_seconds_count") == 1


def test_gauges_show_the_indexes_as_they_are(sidecar, make):
    assert (read(sidecar, "ready"), read(sidecar, "models"), read(sidecar, "cases")) == (1, 0, 0)
    sidecar.client.add(make.vectors(5))
    sidecar.client.add(make.vectors(2), fingerprint=make.OTHER_MODEL)
    assert (read(sidecar, "models"), read(sidecar, "cases")) == (2, 7)
    assert read(sidecar, "vector_bytes") == 7 * make.D * 4
    assert read(sidecar, "store_bytes") > 7 * make.D * 4
    assert read(sidecar, "process_resident_memory_bytes") > 2**20
    sidecar.store._damaged = {1, 2}
    assert read(sidecar, "damaged_cases") == 2
    sidecar.store._damaged = set()
    sidecar.index.close()
    assert read(sidecar, "ready") == 0


@pytest.mark.parametrize(("error", "reason"), [("BusyError", "queue_full"), ("DeadlineError", "deadline")])
def test_refused_searches_are_counted_by_reason(sidecar, make, monkeypatch, error, reason):
    import contract.errors

    vectors = make.vectors(1)
    sidecar.client.add(vectors)
    assert read(sidecar, "refused_total", reason=reason) == 0
    monkeypatch.setattr(sidecar.index, "search", raise_error(getattr(contract.errors, error)("No.")))
    with pytest.raises(grpc.RpcError) as caught:
        sidecar.client.search(vectors)
    assert read(sidecar, "refused_total", reason=reason) == 1
    assert read(sidecar, "requests_total", rpc="Search", status=caught.value.code().name) == 1


def raise_error(error: Exception):
    def fail(*_):
        raise error

    return fail


def test_a_call_without_a_token_is_counted_and_not_named(run_server, make, write_tokens):
    path, tokens = write_tokens("metrics", "read")
    port = Ports.free().metrics
    server = run_server("--tokens", str(path), "--metrics-port", str(port))
    channel, secret = server.client.channel, "patient-4711"
    for name in ("/cxr.retrieval.v1.Retrieval/Search", f"/{secret}/{secret}"):
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(name)(b"x", timeout=10)
    request = retrieval_pb2.GetCaseRequest(id=secret)
    given = (("authorization", f"Bearer {tokens['read']}"), ("x-request-id", secret))
    with pytest.raises(grpc.RpcError):
        server.client.stub.GetCase(request, timeout=10, metadata=given)
    assert server.client.health() == "SERVING"

    def fetch(token: str) -> str:
        headers = {"Authorization": f"Bearer {token}"}
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=headers)
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return answer.read().decode()

    page = fetch(tokens["metrics"])
    assert not [word for word in (secret, *tokens.values(), str(path)) if word in page]
    counted = dict(re.findall(rf"^{NAMESPACE}_requests_total\{{(.*)\}} (\S+)$", page, re.MULTILINE))
    assert {name for name, value in counted.items() if value == "0.0"} == {
        f'rpc="{rpc}",status="INTERNAL"' for rpc in listener._NAMES.values()
    }
    assert {name: value for name, value in counted.items() if value != "0.0"} == {
        'rpc="Search",status="UNAUTHENTICATED"': "1.0",
        'rpc="other",status="UNIMPLEMENTED"': "1.0",
        'rpc="GetCase",status="NOT_FOUND"': "1.0",
        'rpc="health",status="OK"': "1.0",
    }
    assert f'{NAMESPACE}_refused_total{{reason="access"}} 1.0' in page
    assert server.end(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--metrics-port", "70000"], "must be 0 to 65535"),
        (["--metrics-port", "9", "--metrics-host", "0.0.0.0"], "A network can reach 0.0.0.0"),
    ],
)
def test_an_impossible_page_ends_the_start(run_server, options, words):
    server = run_server(*options, wait=False)
    output, errors = server.process.communicate(timeout=60)
    assert (server.process.returncode, output) == (2, "")
    assert words in errors
    assert "Traceback" not in errors


def test_a_stream_is_counted_when_it_ends_and_when_its_caller_leaves(sidecar):
    interceptor = CallInterceptor({"/a/b": "Parts"}, sidecar.indexes.metrics)
    handler = grpc.unary_stream_rpc_method_handler(lambda request, _: iter([request] * 3))
    details = SimpleNamespace(method="/a/b")
    answer = interceptor.intercept_service(lambda _: handler, details).stream_stream
    context = SimpleNamespace(code=lambda: None)
    assert list(answer(iter([b"x"]), context)) == [b"x"] * 3
    left = answer(iter([b"x"]), context)
    next(left)
    left.close()
    assert read(sidecar, "requests_total", rpc="Parts", status="OK") == 1
    assert read(sidecar, "requests_total", rpc="Parts", status="CANCELLED") == 1
