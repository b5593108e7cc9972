"""Every public method accepts the same inputs and refuses the same mistakes before it sends a request."""

import http.server
import io
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from typer.testing import CliRunner

from cli.app import app
from client import CaseInput, CxrClient
from client.retrieval import RetrievalTransport
from client.retrieval_core import MAX_K, Found, Stored
from client.triton import TritonTransport
from contract.errors import ConfigError, ImageError, InputError, ReportError, ServerError
from contract.labels import LABELS
from contract.prompts import clean_findings
from contract.proto import retrieval_pb2, retrieval_pb2_grpc
from retrieval import requests


@pytest.fixture
def client(client, monkeypatch):
    """A client with the real transport to a sidecar, which answers a search and an indexing."""
    monkeypatch.setattr(client._sidecars[0], "search", lambda *_arguments: Found([], True))
    monkeypatch.setattr(client._sidecars[0], "add", lambda _mark, cases, _limit: Stored(len(cases), 0))
    return client


def predict_one(client, image, report):
    [(_, outcome)] = client.predict_many([CaseInput("1", "1", image, report)])
    if isinstance(outcome, InputError):
        raise outcome


def index_one(client, image, report):
    result = client.index([CaseInput("1", "1", image, report)])
    for _, reason in result.refused:
        raise InputError(reason)


ENTRIES = {
    "predict": lambda client, image, report: client.predict(image, report),
    "search": lambda client, image, report: client.search(image, report),
    "predict_many": predict_one,
    "index": index_one,
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_takes_what_holds_an_image_or_a_report(entry, client, triton, tmp_path):
    image, report = tmp_path / "chest.dcm", tmp_path / "report.txt"
    image.write_bytes(b"DICOM")
    report.write_bytes(b"Clear.")
    given = [(image, report), (str(image), b"Clear."), (b"DICOM", "Clear."), (bytearray(b"DICOM"), report)]
    for case in given:
        ENTRIES[entry](client, *case)
    sent = [(call.images, call.reports) for call in triton.calls]
    assert sent == [([b"DICOM"], [b"Clear."])] * len(given)
    ENTRIES[entry](client, np.zeros((4, 4), np.uint8), None)
    assert triton.calls[-1].images[0].startswith(b"\x89PNG")


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("image", "report", "words"),
    [
        ("missing.dcm", None, "Cannot read the image file 'missing.dcm'"),
        (None, "missing.txt", "names a file that does not exist"),
        (None, Path("missing.txt"), "Cannot read the report file"),
        (math.nan, None, "image is NaN"),
        (b"DICOM", math.nan, "report is NaN"),
        ([[0, 1]], None, "image is of type list"),
        (np.zeros((4, 4)), None, "array of shape"),
    ],
)
def test_every_entry_refuses_what_is_none(entry, image, report, words, client, triton):
    with pytest.raises(InputError, match=words):
        ENTRIES[entry](client, image, report)
    assert not triton.calls


def test_explanations_take_and_refuse_the_same(write_bundle, small_config, tmp_path):
    pytest.importorskip("captum")
    from client.explain import explain

    bundle = write_bundle(
        tmp_path / "bundle",
        small_config,
        seed=1,
        texts=["The heart is large."],
        thresholds=[0.5] * len(LABELS),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50), np.uint8)
    file, report = tmp_path / "chest.png", tmp_path / "report.txt"
    file.write_bytes(_encode(pixels))
    report.write_text("The heart is large.")
    settings = {"label": "cardiac", "steps": 2}
    one = explain(bundle, image=pixels, report=report, **settings)
    other = explain(bundle, image=str(file), report="The heart is large.", **settings)
    assert one.logit == other.logit
    np.testing.assert_array_equal(one.radiograph, other.radiograph)
    for image, words in (("missing.dcm", "Cannot read"), (math.nan, "image is NaN")):
        with pytest.raises(ImageError, match=words):
            explain(bundle, image=image)
    with pytest.raises(ReportError, match="names a file that does not exist"):
        explain(bundle, report="missing.txt")


def _encode(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    pytest.importorskip("PIL.Image").fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.delete("12"),
        lambda client: client.delete(b"12"),
        lambda client: client.delete([1, 2]),
        lambda client: client.search(report="Clear.", exclude_studies="CXR364"),
        lambda client: client.search(report="Clear.", exclude_studies=364),
        lambda client: RetrievalTransport("127.0.0.1:1").search("ab" * 32, np.ones(1), 5, "CXR364", 1),
        lambda client: RetrievalTransport("127.0.0.1:1").delete("12", 1),
        lambda client: client.search_embedding(
            np.ones(1), fingerprint="ab" * 32, exclude_studies=["a", None]
        ),
        lambda client: client.score_findings("edema", client.predict(report="Clear.")),
        lambda _client: clean_findings("edema"),
        lambda _client: CaseInput("1", "1", labels="pleural"),
        lambda _client: CaseInput("1", "1", labels=math.nan),
        lambda _client: CaseInput(1, "1"),
        lambda _client: CaseInput("1", None),
        lambda _client: CaseInput("1\udcff", "1"),
    ],
)
def test_one_string_is_no_series_of_strings(call, client, monkeypatch):
    monkeypatch.undo()  # the transport itself; nothing listens at its address
    with pytest.raises(InputError, match=r"must be (a list of strings|text)|not valid text"):
        call(client)


def test_labels_become_a_tuple():
    assert CaseInput("1", "1", labels=["pleural", "cardiac"]).labels == ("pleural", "cardiac")


@pytest.mark.parametrize("cases", ["12", CaseInput("1", "1"), ["12"], [{"id": "1"}], 7])
def test_cases_that_are_none_are_refused(cases, client):
    for take in (client.index, client.predict_many):
        with pytest.raises(ConfigError, match="cases must be a series of CaseInput"):
            list(take(cases))


@pytest.mark.parametrize("k", [-1, 0, 1001, 2**40, 2.5, 5.0, "5", True, None, math.nan])
def test_k_is_1_to_1000(k, client, triton):
    with pytest.raises(InputError, match="k must be a whole number from 1 to 1000, not"):
        client.search(report="Clear.", k=k)
    assert not triton.calls
    with pytest.raises(InputError, match="k must be"):
        RetrievalTransport("127.0.0.1:1").search("ab" * 32, np.ones(1), k, (), 1)


def test_k_of_numpy_and_the_sidecars_own_limit(client):
    client.search(report="Clear.", k=np.int64(MAX_K))
    assert MAX_K == requests.MAX_K


@pytest.mark.parametrize(
    "timeout_s", [math.inf, -math.inf, math.nan, 0, 0.0, -1, 1e12, 10**400, "5", True, [5]]
)
def test_time_outs_are_numbers_above_0(timeout_s, client):
    for call in (
        lambda: CxrClient(timeout_s=timeout_s),
        lambda: client.predict(report="Clear.", timeout_s=timeout_s),
        lambda: client.search(report="Clear.", timeout_s=timeout_s),
        lambda: client.search_embedding(np.ones(1), fingerprint="ab" * 32, timeout_s=timeout_s),
        lambda: client.predict_many([], timeout_s=timeout_s),
        lambda: client.index([], timeout_s=timeout_s),
        lambda: client.delete(["1"], timeout_s=timeout_s),
        lambda: client.info(timeout_s=timeout_s),
        lambda: client.index_info(timeout_s=timeout_s),
        lambda: client.health(timeout_s=timeout_s),
        lambda: client.predict_tensors(timeout_s=timeout_s),
    ):
        with pytest.raises(
            ConfigError, match=r"timeout_s \(--timeout\) must be a number of seconds above 0"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_time_outs_of_numpy(client):
    for timeout_s in (np.float32(2), np.int64(2), 1, 0.001, 1e6):
        client.predict(report="Clear.", timeout_s=timeout_s)


@pytest.mark.parametrize("value", ["inf", "1e99", "nan", "0", "-1"])
def test_the_command_names_the_time_out(value):
    result = CliRunner().invoke(app, ["predict", "--report", "Clear.", "--timeout", value])
    assert result.exit_code == 2
    assert "--timeout" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "host", "host:99999", "", 8001, [], ["host:1", "host"]]
)
def test_addresses_that_are_none_are_refused_at_once(url):
    with pytest.raises(
        ConfigError, match=r"triton_url \(--triton\) must be host:port .* such as 127.0.0.1:8001"
    ):
        CxrClient(url)
    with pytest.raises(ConfigError, match=r"retrieval_url \(--retrieval\) must be .* such as 127.0.0.1:8005"):
        CxrClient(retrieval_url=url)


def test_a_command_takes_several_addresses(monkeypatch):
    monkeypatch.setenv("CXR_TRITON", "nowhere")  # an option comes before the environment
    arguments = ["predict", "--report", "Clear.", "--triton", "127.0.0.1:9", "--triton", "host"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "'host' has no port" in result.output


class Sidecar(retrieval_pb2_grpc.RetrievalServicer):
    def GetInfo(self, _request, _context):
        return retrieval_pb2.GetInfoResponse()


class OldTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A Triton that is live but does not implement the request."""

    def ServerLive(self, _request, _context):
        return service_pb2.ServerLiveResponse(live=True)


@pytest.fixture(params=["sidecar", "web", "triton"])
def other(request):
    """The address of a real server: the sidecar's gRPC, HTTP, or Triton's gRPC."""
    if request.param == "web":
        handler = type("Quiet", (http.server.BaseHTTPRequestHandler,), {"log_message": lambda *_: None})
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
            threading.Thread(target=web.serve_forever, daemon=True).start()
            yield request.param, f"127.0.0.1:{web.server_port}"
            web.shutdown()
        return
    server = grpc.server(ThreadPoolExecutor(2))
    if request.param == "sidecar":
        retrieval_pb2_grpc.add_RetrievalServicer_to_server(Sidecar(), server)
    else:
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(OldTriton(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield request.param, f"127.0.0.1:{port}"
    server.stop(0).wait()


def test_an_address_of_another_service_is_told(other):
    kind, address = other
    with CxrClient(address, address, timeout_s=5) as client:
        if kind == "triton":  # what a Triton itself does not know is its own failure
            with pytest.raises(ServerError):
                client.info()
        else:
            asked = (client.info, lambda: client.predict(report="Clear."), lambda: client.predict_many([]))
            for ask in asked[:2]:
                with pytest.raises(
                    ConfigError, match="another service than Triton's gRPC service: set triton_url"
                ):
                    ask()
            assert "Triton's gRPC 8001" in client.health().triton
        if kind != "sidecar":
            for ask in (client.index_info, lambda: client.delete(["1"])):
                with pytest.raises(
                    ConfigError, match="another service than the retrieval sidecar: set retrieval_url"
                ):
                    ask()
            assert "the sidecar's gRPC 8005" in client.health().retrieval


def test_a_transport_says_so_too():
    with pytest.raises(ConfigError, match="has no port"):
        TritonTransport("triton")
