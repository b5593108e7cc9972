"""What the relay exports, and that it passes on Triton's own metrics."""

import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

grpc = pytest.importorskip("grpc")

from relay_thread import READY, Running, wait  # noqa: E402

from contract.protection import Protection  # noqa: E402
from serving.ports import Ports  # noqa: E402
from serving.relay import INFER, STREAM, find_class, is_up  # noqa: E402
from serving.relay_metrics import NAMESPACE  # noqa: E402

ROOT = Path(__file__).parents[2]
REGION = "/inference.GRPCInferenceService/SystemSharedMemoryStatus"
ADMIN = "/inference.GRPCInferenceService/RepositoryModelLoad"


def read(relay: Running, name: str, **labels) -> float:
    value = relay.metrics.registry.get_sample_value(f"{NAMESPACE}_{name}", labels)
    return 0.0 if value is None else value


def count(relay: Running, kind: str, status: str) -> float:
    return read(relay, "calls_total", **{"class": kind, "status": status})


def test_calls_are_counted_by_class_and_status(triton, make_relay):
    relay = make_relay()
    assert relay.call(INFER, b"x") == relay.call(READY, b"x") == relay.call(REGION, b"x") == b"answer to x"
    for method, request, code in (
        (INFER, b"bad", "INVALID_ARGUMENT"),
        (ADMIN, b"x", "UNAUTHENTICATED"),
        (STREAM, b"x", "UNIMPLEMENTED"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            relay.call(method, request)
        assert caught.value.code().name == code
    kinds = {"infer": ["OK", "INVALID_ARGUMENT"], "question": ["OK"], "shared_memory": ["OK"]}
    kinds |= {"admin": ["UNAUTHENTICATED"], "stream": ["UNIMPLEMENTED"]}
    for kind, statuses in kinds.items():
        assert wait(lambda k=kind, s=statuses: [count(relay, k, status) for status in s] == [1] * len(s)), (
            kind
        )
        assert read(relay, "call_duration_seconds_count", **{"class": kind}) == len(statuses)
        assert read(relay, "open_calls", **{"class": kind}) == 0
    assert read(relay, "refused_total", reason="access") == 1
    assert read(relay, "refused_total", reason="unsupported") == 1


def test_running_waiting_and_refused_inferences_are_shown(triton, make_relay):
    relay = make_relay(running=1, waiting=1)
    first = relay.start(b"slow 1")
    assert wait(lambda: read(relay, "running_inferences") == 1)
    second = relay.start(b"slow 2")
    assert wait(lambda: read(relay, "pending_request_count") == 1)
    assert read(relay, "open_calls", **{"class": "infer"}) == 2
    assert read(relay, "held_bytes") == 12
    with pytest.raises(grpc.RpcError, match="queue is full"):
        relay.call(INFER, b"x")
    assert wait(lambda: read(relay, "refused_total", reason="queue_full") == 1)
    second.cancel()
    assert wait(lambda: count(relay, "infer", "CANCELLED") == 1)
    triton.go_on.set()
    assert first.result() == b"answer to slow 1"
    assert wait(lambda: read(relay, "running_inferences") == read(relay, "held_bytes") == 0)


def test_there_are_seven_classes_whatever_callers_send():
    names = [INFER, STREAM, READY, REGION, ADMIN, "/grpc.health.v1.Health/Check", "/a/b", "/a\nb", ""]
    kinds = {find_class(name) for name in names}
    assert kinds == {"infer", "stream", "question", "shared_memory", "admin", "health", "other"}


class TritonPage(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"nv_inference_count 1\n")

    def log_message(self, *_):
        pass


def test_the_process_serves_its_metrics_and_tritons(write_tokens):
    path, tokens = write_tokens("metrics")
    triton_page = HTTPServer(("127.0.0.1", 0), TritonPage)
    thread = threading.Thread(target=triton_page.serve_forever)
    thread.start()
    ports = Ports.free()
    options = ["--listen", f"127.0.0.1:{ports.grpc}", "--triton", "unix:/nowhere", "--tokens", str(path)]
    options += ["--metrics-port", str(ports.relay_metrics)]
    options += ["--triton-metrics", f"http://127.0.0.1:{triton_page.server_port}/metrics"]
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.relay", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    def fetch(page: str) -> str:
        headers = {"Authorization": f"Bearer {tokens['metrics']}"}
        asked = urllib.request.Request(f"http://127.0.0.1:{ports.relay_metrics}{page}", headers=headers)
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return answer.read().decode()

    try:
        assert wait(lambda: is_up(f"127.0.0.1:{ports.grpc}", Protection(tokens=path).make_connection()))
        assert f"{NAMESPACE}_running_inferences 0.0" in fetch("/metrics")
        assert fetch("/triton/metrics") == "nv_inference_count 1\n"
        triton_page.shutdown()
        triton_page.server_close()
        with pytest.raises(urllib.error.HTTPError, match="502"):
            fetch("/triton/metrics")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        triton_page.shutdown()
        thread.join()
