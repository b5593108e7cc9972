"""Requests from cases, as arrays and as bytes; processes and GPU metrics of a server."""

import os
import subprocess
import sys
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor

from bench.load import perf_analyzer
from bench.load.inputs import RawCase, describe_inputs, draw_inputs, join_cases, prepare_inputs
from bench.load.requests import BytesSender, Signature, read_signature, serialise
from bench.report.process import ProcessTree, find_server
from bench.report.server import read_gpus
from contract.errors import BusyError, ConfigError, DeadlineError, InputError, ServerError, UnavailableError

TENSORS = ("pixels", "input_ids", "attention_mask")


class FakeServer:
    """Preprocesses as a served model would: the pixels tell the image's length, the ids the report's words."""

    def __init__(self):
        self.asked = []

    def __call__(self, model, inputs, outputs):
        self.asked.append(model)
        if model == "preprocess_image":
            return {"pixels": np.full((1, 1, 4, 4), len(inputs["image_bytes"][0, 0]), np.uint8)}
        words = len(inputs["report"][0, 0].split())
        return {name: np.ones((1, words), np.int64) for name in outputs}


def test_tensors_are_made_by_the_server_once():
    server = FakeServer()
    cases = [RawCase(b"abc", b"one two"), RawCase(b"a", b"one two three"), RawCase(b"ab", None)]
    requests = prepare_inputs(server, TENSORS, cases)
    assert server.asked == ["preprocess_image", "preprocess_text"] * 2  # ids and mask come together
    assert [inputs["pixels"][0, 0, 0, 0] for inputs in requests] == [3, 1]
    assert [inputs["input_ids"].shape for inputs in requests] == [(1, 2), (1, 3)]


def test_raw_files_need_no_server():
    server = FakeServer()
    (inputs,) = prepare_inputs(server, ("image_bytes", "report"), [RawCase(b"dicom", b"text")])
    assert not server.asked
    assert inputs["image_bytes"][0, 0] == b"dicom"
    assert inputs["report"].shape == (1, 1)


def test_batches_take_the_cases_round_and_pad_text():
    cases = [RawCase(b"x" * n, b"w " * n) for n in (1, 2, 3)]
    requests = prepare_inputs(FakeServer(), TENSORS, cases, batch=2, length=4)
    assert [inputs["pixels"][:, 0, 0, 0].tolist() for inputs in requests] == [[1, 2], [2, 3], [3, 1]]
    assert all(inputs["input_ids"].shape == (2, 4) for inputs in requests)
    assert requests[0]["attention_mask"].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]
    assert join_cases(requests[:1])["input_ids"].shape == (2, 4)


def test_longer_text_is_left_out():
    cases = [RawCase(b"x", b"w " * n) for n in (3, 9)]
    assert len(prepare_inputs(FakeServer(), TENSORS, cases, length=5)) == 1
    with pytest.raises(ConfigError, match="No case"):
        prepare_inputs(FakeServer(), TENSORS, cases, length=2)


def test_inputs_that_cannot_be_made():
    with pytest.raises(ConfigError, match="sound"):
        prepare_inputs(FakeServer(), ("sound",), [RawCase(b"x", b"y")])
    with pytest.raises(ConfigError, match="No case"):
        prepare_inputs(FakeServer(), ("pixels",), [RawCase(None, b"y")])


def test_drawn_inputs():
    requests = draw_inputs(TENSORS, image_size=8, length=32, batch=2, count=3)
    assert len(requests) == 3
    assert requests[0]["pixels"].shape == (2, 1, 8, 8)
    assert not np.array_equal(requests[0]["pixels"], requests[1]["pixels"])
    assert describe_inputs(requests)["mean_bytes"] == 2 * 64 + 2 * 2 * 32 * 8
    with pytest.raises(ConfigError, match="--table"):
        draw_inputs(("image_bytes",), image_size=8, length=32, batch=1)


def test_serialised_request_holds_the_arrays():
    signature = Signature("m", {"pixels": "UINT8", "report": "BYTES"}, ("out",))
    pixels = np.arange(8, dtype=np.uint8).reshape(1, 1, 2, 4)[..., ::2]  # not contiguous
    report = np.array([[b"A report."]], dtype=np.object_)
    request = service_pb2.ModelInferRequest.FromString(
        serialise(signature, {"pixels": pixels, "report": report}, ("out",))
    )
    assert (request.model_name, [x.name for x in request.outputs]) == ("m", ["out"])
    assert [(x.name, x.datatype, list(x.shape)) for x in request.inputs] == [
        ("pixels", "UINT8", [1, 1, 2, 2]),
        ("report", "BYTES", [1, 1]),
    ]
    assert request.raw_input_contents[0] == pixels.tobytes()
    assert deserialize_bytes_tensor(request.raw_input_contents[1]).tolist() == [b"A report."]


@pytest.fixture
def server_url():
    """A gRPC server that refuses the models "bad", "full" and "gone", sleeps for "slow", and answers with the name."""

    def infer(request, context):
        if request.model_name == "bad":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad tensor")
        if request.model_name in {"full", "gone"}:
            context.abort(grpc.StatusCode.UNAVAILABLE, "as Triton says of both")
        if request.model_name == "slow":
            time.sleep(0.5)
        return service_pb2.ModelInferResponse(model_name=request.model_name)

    handler = grpc.unary_unary_rpc_method_handler(
        infer,
        request_deserializer=service_pb2.ModelInferRequest.FromString,
        response_serializer=service_pb2.ModelInferResponse.SerializeToString,
    )
    ready = grpc.unary_unary_rpc_method_handler(
        lambda request, _: service_pb2.ModelReadyResponse(ready=request.name == "full"),
        request_deserializer=service_pb2.ModelReadyRequest.FromString,
        response_serializer=service_pb2.ModelReadyResponse.SerializeToString,
    )
    handlers = {"ModelInfer": handler, "ModelReady": ready}
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


def make_sender(url, *models, timeout_s=5.0):
    payloads = [serialise(Signature(model, {}, ()), {}) for model in models]
    return BytesSender(url, payloads, timeout_s)


def test_requests_are_sent_in_turn_and_errors_are_typed(server_url):
    sender = make_sender(server_url, "good", "bad")
    sender(0)
    sender(2)
    with pytest.raises(InputError, match="bad tensor"):
        sender(3)
    sender.close()
    slow = make_sender(server_url, "slow", timeout_s=0.1)
    with pytest.raises(DeadlineError):
        slow(0)
    slow.close()


@pytest.mark.parametrize(("model", "error"), [("full", BusyError), ("gone", UnavailableError)])
def test_a_full_queue_is_told_from_a_server_that_is_gone(server_url, model, error):
    sender = make_sender(server_url, model)
    with pytest.raises(error):
        sender(0)
    sender.close()


def test_nobody_answers():
    sender = make_sender("127.0.0.1:1", "good", timeout_s=2.0)
    with pytest.raises(UnavailableError):
        sender(0)
    sender.close()
    with pytest.raises(UnavailableError):
        read_signature("127.0.0.1:1", "good", 2.0)


def test_processes_are_measured_with_their_children():
    code = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'while True: pass']); "
        "print(child.pid, flush=True); sys.stdin.read(); child.kill()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        parent.stdout.readline()
        tree = ProcessTree([parent.pid])
        tree.begin()
        time.sleep(0.5)
        seen = tree.end()
    finally:
        parent.communicate("")
    assert seen["processes"] == 2
    assert seen["cpu_cores"] > 0.02  # of the child: the parent sleeps
    assert seen["rss_mib"] > 5
    assert tree.end()["processes"] == 0  # they have ended: nothing is measured, nothing fails


def test_process_that_is_not_there():
    with pytest.raises(ConfigError, match="999999999"):
        ProcessTree([999_999_999])


def test_server_is_found_by_its_port(server_url):
    assert find_server(server_url) == [os.getpid()]
    assert find_server("127.0.0.1:1") == []
    assert find_server("example.org:8001") == []
    assert find_server("nonsense") == []


PAGE = b"""# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)
nv_gpu_utilization{gpu_uuid="GPU-1"} 0.75
nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 1048576
nv_gpu_utilization{gpu_uuid="GPU-2"} 0
nv_cpu_utilization 0.5
"""


def test_gpu_metrics():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as page:
        thread = Thread(target=page.handle_request)
        thread.start()
        gpus = read_gpus(f"http://127.0.0.1:{page.server_port}/metrics")
        thread.join()
    assert gpus == {"GPU-1": {"utilization": 0.75, "memory_mib": 1.0}, "GPU-2": {"utilization": 0.0}}
    with pytest.raises(ConfigError, match="metrics"):
        read_gpus("http://127.0.0.1:1/metrics")


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        (None, ConfigError, "cannot be started"),
        ("echo no server >&2; exit 3", ServerError, "ended with code 3: no server"),
        ("echo odd >&2", ServerError, "wrote no median latency: odd"),
        ("sleep 5", ServerError, "did not end within 0.1 s"),
    ],
)
def test_a_perf_analyzer_that_fails_is_one_sentence(tmp_path, monkeypatch, script, error, words):
    monkeypatch.setattr(perf_analyzer, "_TIMEOUT_S", 0.1 if script == "sleep 5" else 30)
    program = tmp_path / "perf_analyzer"
    if script is not None:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    with pytest.raises(error, match=words):
        perf_analyzer.run_perf_analyzer(str(program), "host:1", "model", [], seconds=1)
