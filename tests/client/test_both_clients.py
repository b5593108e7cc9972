"""One body of each test runs on `CxrClient` and `AsyncCxrClient`: they follow the same rules."""

import asyncio
import math
import threading
import time
from contextlib import aclosing, closing

import grpc
import numpy as np
import pytest
from both_clients import CALLERS, AsyncFake
from fake_server import TritonService, serve_triton
from fake_triton import FINGERPRINT, FakeTriton, make_decisions, make_model

from client import AsyncCxrClient, CaseInput, SearchOptions, SimilarCase
from client.retrieval import RetrievalTransport
from client.retrieval_core import IndexInfo, StoredCase
from contract.errors import (
    ArtifactError,
    BusyError,
    CancelledError,
    ConfigError,
    DeadlineError,
    FingerprintError,
    ImageError,
    InputError,
    ServerError,
    UnavailableError,
)
from contract.labels import LABELS
from retrieval.indexes import CaseIndexes
from retrieval.listener import SidecarServer
from retrieval.service import RetrievalService


@pytest.fixture(params=CALLERS)
def caller(request, triton, retrieval, monkeypatch):
    """A client with fake transports."""
    module = "client.async_client"
    monkeypatch.setattr(f"{module}.AsyncTritonTransport", lambda _url, _settings: AsyncFake(triton))
    monkeypatch.setattr(f"{module}.AsyncRetrievalTransport", lambda _url, _connection: AsyncFake(retrieval))
    caller = CALLERS[request.param]()
    yield caller
    caller.close()


def test_a_case_is_predicted_and_read(caller, triton):
    triton.outputs["probabilities"] = lambda call: np.full((call.batch, len(LABELS)), 0.75)
    prediction = caller.call("predict", b"one")
    assert (prediction.kind, prediction.fingerprint) == ("image", FINGERPRINT)
    assert {finding.present for finding in prediction.findings} == {True}
    assert triton.calls[0].images == [b"one"]
    batch = caller.call("predict_tensors", np.zeros((2, 1, 56, 56), np.uint8))
    assert batch.probabilities.shape == (2, 22)


def test_an_answer_is_read_with_the_labels_of_the_version_that_made_it(caller, triton):
    triton.models = {
        version: make_model(fingerprint=letter * 64, decisions=make_decisions(threshold))
        for version, letter, threshold in (("1", "a", 0.2), ("2", "b", 0.8))
    }
    assert caller.call("predict", report="Clear.").findings[0].threshold == 0.2
    triton.version = "2"
    swapped = caller.call("predict", report="Clear.")
    assert (swapped.fingerprint, swapped.findings[0].threshold) == ("b" * 64, 0.8)
    triton.version, triton.switches = "1", ["2"]  # the version that answered is gone before it is asked about
    assert caller.call("predict", report="Clear.").fingerprint == "b" * 64


@pytest.mark.parametrize(
    ("method", "arguments", "options", "error"),
    [
        ("predict", (), {}, ConfigError),
        ("predict", ("missing.png",), {}, ImageError),
        ("predict", (b"one",), {"timeout_s": math.nan}, ConfigError),
        ("search", (b"one",), {"k": 0}, InputError),
        ("search", (b"one",), {"exclude_studies": "study"}, InputError),
        ("search", (b"one",), {"k": 500, "options": SearchOptions(diversity=0.5)}, InputError),
        ("predict_many", ("12",), {}, ConfigError),
        ("predict_many", ([CaseInput("1", "1", b"one")],), {"in_flight": 0}, ConfigError),
        ("predict_many", ([1],), {}, ConfigError),
        ("index", ("12",), {}, ConfigError),
    ],
)
def test_what_cannot_be_used_is_refused_before_it_is_sent(caller, triton, method, arguments, options, error):
    with pytest.raises(error):
        caller.call(method, *arguments, **options)
    assert not triton.calls


@pytest.mark.parametrize(
    "error", [UnavailableError("away"), BusyError("busy"), DeadlineError("late"), ServerError("no")]
)
def test_errors_of_the_server_reach_the_caller(caller, triton, error):
    def refuse(_call):
        raise error

    triton.refuse = refuse
    with pytest.raises(type(error)) as caught:
        caller.call("predict", b"one")
    assert caught.value is error


def test_an_older_repository_gets_one_image_and_fewer_outputs(caller, triton):
    triton.model = make_model(tells_view=False, tells_share=False)
    assert caller.call("predict", b"one", "Clear.").lateral is None
    with pytest.raises(ArtifactError, match="one image"):
        caller.call("predict", [b"one", b"two"])


def test_a_search_asks_both_servers(caller, retrieval):
    retrieval.cases = [SimilarCase("1", "1", 0.5, (), "Clear.", "")]
    found = caller.call("search", report="Clear.", k=3)
    assert [case.id for case in found] == ["1"]
    assert caller.call("search_embedding", np.ones(16), fingerprint=FINGERPRINT) == retrieval.cases


def test_many_cases_keep_their_order_and_name_their_errors(caller):
    cases = [CaseInput(str(number), "s", f"image {number}".encode()) for number in range(20)]
    cases[3] = CaseInput("3", "s", "missing.png")
    cases[4] = CaseInput("4", "s")
    outcomes = caller.call("predict_many", iter(cases), in_flight=3)
    assert [case.id for case, _ in outcomes] == [str(number) for number in range(20)]
    refused = {case.id for case, outcome in outcomes if isinstance(outcome, InputError)}
    assert refused == {"3", "4"}


def test_cases_are_indexed_in_groups(caller, retrieval, tmp_path):
    report = tmp_path / "report.txt"
    report.write_text("Clear.")
    done = []
    cases = [CaseInput(str(number), "s", report=report) for number in range(70)]
    result = caller.call("index", [*cases, CaseInput("bad", "s", "missing.png")], progress=done.append)
    assert retrieval.added == [(FINGERPRINT, 64), (FINGERPRINT, 6)]
    assert ([case_id for case_id, _ in result.refused], result.added, done[-1]) == (["bad"], 70, 71)


def test_indexing_stops_when_the_model_changes(caller, triton):
    triton.models |= {"2": make_model(fingerprint="b" * 64)}
    triton.switches = ["2"]
    with pytest.raises(FingerprintError):
        caller.call("index", [CaseInput(str(number), "s", b"one") for number in range(20)])


def test_findings_are_scored_by_the_model_of_the_prediction(caller, triton):
    prediction = caller.call("predict", b"one")
    triton.outputs["input_ids"] = [[2, number, 3, *[0] * 6] for number in range(5, 7)]
    triton.outputs["attention_mask"] = [[1, 1, 1, *[0] * 6]] * 2
    triton.outputs["embedding"] = lambda call: np.ones((call.batch, 16)) / 4
    [score] = caller.call("score_findings", ["fracture"], prediction)
    assert score.finding == "fracture"
    triton.model = make_model(fingerprint="b" * 64)
    with pytest.raises(FingerprintError):
        caller.call("score_findings", ["fracture"], prediction)


def test_health_and_facts(caller, triton, retrieval):
    retrieval.info = IndexInfo(FINGERPRINT, 7, 16, "flat")
    assert caller.call("health").ready
    assert caller.call("info") == triton.model
    assert caller.call("index_info").case_count == 7
    triton.trouble = "Triton is starting."
    assert caller.call("health").triton == "Triton is starting."
    assert repr(caller.client).endswith("Client('host:1', 'host:2')")


@pytest.fixture
def service():
    """A Triton behind real gRPC."""
    return TritonService(FakeTriton())


@pytest.fixture(params=CALLERS)
def remote(request, service):
    """A client of `service`, over real gRPC."""
    with serve_triton(service) as port:
        caller = CALLERS[request.param](f"127.0.0.1:{port}", timeout_s=20)
        yield caller
        caller.close()


def test_tensors_travel_whole(remote, service):
    service.fake.outputs["probabilities"] = lambda call: np.full((call.batch, len(LABELS)), 0.75)
    prediction = remote.call("predict", b"DICOM", "Größe normal.")
    assert {finding.probability for finding in prediction.findings} == {0.75}
    assert prediction.report_text == "Größe normal."
    [call] = service.fake.calls
    assert (call.images, call.reports) == ([b"DICOM"], ["Größe normal.".encode()])
    assert remote.call("health").triton is None


def test_a_deadline_ends_a_call_here_and_on_the_server(remote, service):
    remote.call("predict", b"one")
    service.blocks = True
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=r"did not answer within 0\.\d+ s"):
        remote.call("predict", b"one", timeout_s=0.3)
    assert time.monotonic() - began < 10
    assert service.ended.wait(10)


@pytest.mark.parametrize(("ready", "error"), [(True, BusyError), (False, UnavailableError)])
def test_a_full_queue_is_told_from_a_server_that_is_away(remote, service, ready, error):
    service.ready, service.refusals = ready, [grpc.StatusCode.UNAVAILABLE]
    with pytest.raises(error):
        remote.call("predict_tensors", np.zeros((1, 1, 56, 56), np.uint8))
    remote.call("predict", b"one")


@pytest.mark.parametrize("name", CALLERS)
def test_nothing_at_an_address(name):
    caller = CALLERS[name]("127.0.0.1:9", "127.0.0.1:9", timeout_s=5)
    for method, arguments in (("predict", (b"one",)), ("index_info", ()), ("delete", (["1"],))):
        with pytest.raises(UnavailableError, match="is `cxr serve` running there"):
            caller.call(method, *arguments)
    caller.close()


@pytest.mark.parametrize("name", CALLERS)
def test_another_service_at_an_address(name, service):
    with serve_triton(service) as port:
        caller = CALLERS[name]("127.0.0.1:9", f"127.0.0.1:{port}", timeout_s=5)
        with pytest.raises(ConfigError, match="another service than the retrieval sidecar"):
            caller.call("index_info")
        caller.close()


@pytest.mark.parametrize("name", CALLERS)
def test_a_real_sidecar_stores_finds_and_deletes(name, service, tmp_path):
    service.fake.outputs["embedding"] = lambda call: [np.eye(16)[len(call.images[0]) % 16]]
    with CaseIndexes(tmp_path, fingerprint=FINGERPRINT) as indexes, serve_triton(service) as port:
        sidecar = SidecarServer(RetrievalService(indexes), "127.0.0.1:0")
        indexes.start().result(10)
        sidecar.announce()
        caller = CALLERS[name](f"127.0.0.1:{port}", sidecar.address, timeout_s=20)
        cases = [CaseInput(str(size), f"s{size}", b"x" * size, labels=("pleural",)) for size in range(1, 5)]
        assert caller.call("index", cases).added == 4
        found = caller.call("search", b"xxx", k=2)
        assert (found[0].id, found[0].labels) == ("3", ("pleural",))
        assert caller.call("delete", ["3", "none"]) == 1
        assert caller.call("index_info").case_count == 3
        with pytest.raises(FingerprintError):
            caller.call("search_embedding", np.ones(16) / 4, fingerprint="c" * 64)
        caller.close()
        sidecar.stop(0.0)


def test_cancelling_a_task_cancels_its_request_and_leaves_nothing(service):
    async def scenario() -> None:
        async with AsyncCxrClient(f"127.0.0.1:{port}", timeout_s=60) as client:
            await client.info()
            service.blocks = True
            task = asyncio.create_task(client.predict(b"one"))
            while not service.entered.is_set():
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(service.ended.wait, 10)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            service.blocks = False
            assert (await client.predict(b"one")).kind == "image"

    with serve_triton(service) as port:
        asyncio.run(scenario())


@pytest.mark.parametrize("how", ["break", "error", "cancel"])
def test_an_early_end_of_many_cancels_what_is_in_flight(service, how):
    async def consume(client) -> None:
        cases = (CaseInput(str(number), "s", f"{number}".encode()) for number in range(100))
        async with aclosing(client.predict_many(cases, in_flight=3)) as outcomes:
            async for _ in outcomes:
                service.blocks = True
                if how == "break":
                    break
                if how == "error":
                    raise KeyError

    async def scenario() -> None:
        async with AsyncCxrClient(f"127.0.0.1:{port}", timeout_s=60) as client:
            task = asyncio.create_task(consume(client))
            if how == "cancel":
                while not service.entered.is_set():
                    await asyncio.sleep(0.01)
                task.cancel()
            outcome = (await asyncio.gather(task, return_exceptions=True))[0]
            expected = {"break": type(None), "error": KeyError, "cancel": asyncio.CancelledError}[how]
            assert isinstance(outcome, expected)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    with serve_triton(service) as port:
        began = time.monotonic()
        asyncio.run(scenario())
        assert time.monotonic() - began < 15, "the requests would wait for 20 s"
    assert len(service.metadata) < 10


def test_closing_ends_the_running_requests_with_an_error_of_this_project(service):
    async def scenario() -> None:
        client = AsyncCxrClient(f"127.0.0.1:{port}", timeout_s=60)
        await client.info()
        service.blocks = True
        task = asyncio.create_task(client.predict(b"one"))
        while not service.entered.is_set():
            await asyncio.sleep(0.01)
        await client.close()
        with pytest.raises(CancelledError):
            await task

    with serve_triton(service) as port:
        asyncio.run(scenario())


def test_reading_an_image_leaves_the_loop_free(service, monkeypatch):
    import client.predictor as predictor_module

    slow, make_inputs = threading.Event(), predictor_module.make_inputs

    def read_slowly(image, report):
        assert slow.wait(20)
        return make_inputs(image, report)

    monkeypatch.setattr(predictor_module, "make_inputs", read_slowly)

    async def scenario() -> None:
        async with AsyncCxrClient(f"127.0.0.1:{port}", timeout_s=60) as client:
            task = asyncio.create_task(client.predict(b"one"))
            assert (await client.info()).fingerprint == FINGERPRINT  # answered while the image is read
            slow.set()
            await task

    with serve_triton(service) as port:
        asyncio.run(scenario())


def test_the_current_span_and_no_baggage_travels_with_each_call(remote, service):
    trace = pytest.importorskip("opentelemetry.trace")
    from opentelemetry import baggage, context

    span = trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, False, trace.TraceFlags(1)))
    expected = f"00-{0xABC:032x}-{0xDEF:016x}-01"
    remote.call("predict", b"one")
    assert "traceparent" not in service.metadata[-1]
    token = context.attach(baggage.set_baggage("patient", "name", trace.set_span_in_context(span)))
    try:
        remote.call("predict", b"one")
        remote.call("predict_many", [CaseInput("1", "s", b"one")])
    finally:
        context.detach(token)
    assert [metadata["traceparent"] for metadata in service.metadata[1:]] == [expected] * 2
    assert not any("baggage" in metadata for metadata in service.metadata)


def test_many_cases_wait_for_single_ones_in_the_queue(remote, service):
    """Priority 0 is the model's default, which is 1 in the published configurations with priorities."""
    remote.call("predict", b"one")
    remote.call("predict_many", [CaseInput("1", "s", b"one")])
    assert service.priorities == [0, 2]


@pytest.mark.parametrize("name", CALLERS)
def test_an_answer_of_1000_cases_with_long_reports_arrives(name, service, tmp_path):
    """gRPC alone accepts 4 MiB, and reports a larger answer with the code of a full queue."""
    report = "The heart is large. " * 500  # 10 KB
    cases = [
        StoredCase(str(number), str(number), np.eye(16, dtype=np.float32)[number % 16], (), report, "")
        for number in range(1000)
    ]
    with CaseIndexes(tmp_path, fingerprint=FINGERPRINT) as indexes:
        sidecar = SidecarServer(RetrievalService(indexes), "127.0.0.1:0")
        indexes.start().result(10)
        sidecar.announce()
        with closing(RetrievalTransport(sidecar.address)) as writer:
            for start in range(0, 1000, 250):
                writer.add(FINGERPRINT, cases[start : start + 250], 30)
        caller = CALLERS[name](retrieval_url=sidecar.address, timeout_s=30)
        found = caller.call("search_embedding", np.eye(16)[0], fingerprint=FINGERPRINT, k=1000)
        assert len(found) == 1000
        assert {case.report for case in found} == {report}
        caller.close()
        sidecar.stop(0.0)


def test_a_request_that_is_larger_than_any_message_is_an_error_of_its_own():
    case = StoredCase("1", "1", np.ones(16, np.float32), (), "x" * 2**26, "")
    with closing(RetrievalTransport("127.0.0.1:9")) as transport, pytest.raises(InputError, match="At most"):
        transport.add(FINGERPRINT, [case], 5)
