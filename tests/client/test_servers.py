"""Several servers: turns, models that differ, servers that go away, and what is repeated or never repeated."""

import time
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import numpy as np
import pytest
from both_clients import CALLERS, AsyncFake
from fake_server import TritonService, serve_triton
from fake_triton import FakeRetrieval, FakeTriton, make_decisions, make_model

from client import CaseInput, CxrClient
from client.deadline import Deadline
from client.retrieval_core import IndexInfo, Stored
from client.rotation import Rotation
from client.steps import run
from contract.errors import (
    BusyError,
    ConfigError,
    DeadlineError,
    FingerprintError,
    InputError,
    ServerError,
    UnavailableError,
)
from contract.labels import LABELS

URLS = ["host1:8001", "host2:8001"]
SIDECARS = ["host3:8005", "host4:8005"]


class Servers:
    """Fake servers by their addresses, and clients of them.

    Attributes:
        tritons: Address -> Triton. host1 and host2 give the same version number to different models.
        sidecars: Address -> sidecar.
    """

    def __init__(self, make) -> None:
        self._make, self._callers = make, []
        self.tritons = {}
        for url, letter, threshold in zip(URLS, "ab", (0.2, 0.8), strict=True):
            triton = FakeTriton(make_model(fingerprint=letter * 64, decisions=make_decisions(threshold)))
            triton.url = url
            triton.outputs["probabilities"] = lambda call: np.full((call.batch, len(LABELS)), 0.5)
            self.tritons[url] = triton
        self.sidecars = {url: FakeRetrieval() for url in SIDECARS}

    def connect(self, tritons=URLS, sidecars=SIDECARS[:1], **options):
        self._callers.append(self._make(tritons, sidecars, **options))
        return self._callers[-1].call

    def give_one_model(self) -> None:
        """Let all servers serve one model."""
        for triton in self.tritons.values():
            triton.model = make_model(fingerprint="a" * 64)

    def count_calls(self) -> list[int]:
        """Return the number of requests to each Triton."""
        return [len(triton.calls) for triton in self.tritons.values()]

    def close(self) -> None:
        for caller in self._callers:
            caller.close()


@pytest.fixture(params=CALLERS)
def servers(request, monkeypatch):
    servers = Servers(CALLERS[request.param])
    for module, wrap in (("client.client", lambda fake: fake), ("client.async_client", AsyncFake)):
        prefix = "Async" if "async" in module else ""
        monkeypatch.setattr(
            f"{module}.{prefix}TritonTransport", lambda url, _, wrap=wrap: wrap(servers.tritons[url])
        )
        monkeypatch.setattr(
            f"{module}.{prefix}RetrievalTransport", lambda url, _, wrap=wrap: wrap(servers.sidecars[url])
        )
    pauses = []
    monkeypatch.setattr("client.steps.time", SimpleNamespace(sleep=pauses.append))
    servers.pauses = pauses
    yield servers
    servers.close()


def fail_with(error):
    def refuse(_call):
        raise error

    return refuse


def test_servers_take_turns(servers):
    call = servers.connect()
    for _ in range(6):
        call("predict", b"one")
    assert servers.count_calls() == [3, 3]


def test_an_answer_is_read_with_the_decisions_of_the_server_that_gave_it(servers):
    """During a roll-out two servers may give one version number to two models."""
    shown = dict(zip(URLS, (0.25, 0.75), strict=True))  # by these probabilities an answer names its server
    for url, triton in servers.tritons.items():
        triton.outputs["probabilities"] = lambda call, value=shown[url]: np.full(
            (call.batch, len(LABELS)), value
        )
    expected = {0.25: ("a" * 64, 0.2), 0.75: ("b" * 64, 0.8)}
    call, seen = servers.connect(), set()
    for _ in range(3):
        prediction = call("predict", b"one")
        first = prediction.findings[0]
        assert (prediction.fingerprint, first.threshold) == expected[first.probability]
        batch = call("predict_tensors", np.zeros((1, 1, 56, 56), np.uint8))
        value = float(batch.probabilities[0, 0])
        assert (batch.fingerprint, batch.labels[0].threshold) == expected[value]
        batch_of_other = call("predict_tensors", np.zeros((1, 1, 56, 56), np.uint8))
        seen |= {first.probability, value, float(batch_of_other.probabilities[0, 0])}
    assert seen == set(expected)


@pytest.mark.parametrize("error", [UnavailableError("away"), BusyError("busy")])
def test_another_server_answers_for_one_that_does_not(servers, error):
    servers.give_one_model()
    servers.tritons[URLS[0]].refuse = fail_with(error)
    call = servers.connect()
    for _ in range(6):
        assert call("predict", b"one").fingerprint == "a" * 64
    away, there = servers.count_calls()
    assert there == 6
    assert away == 1, "a server that did not answer comes last for some seconds"
    assert not servers.pauses


def test_a_server_that_is_back_is_asked_again(servers, monkeypatch):
    servers.give_one_model()
    servers.tritons[URLS[0]].refuse = fail_with(UnavailableError("away"))
    call = servers.connect()
    monkeypatch.setattr("client.rotation._AWAY_S", 0.0)
    for _ in range(4):
        call("predict", b"one")
    servers.tritons[URLS[0]].refuse = lambda _: None
    before = len(servers.tritons[URLS[0]].calls)
    for _ in range(4):
        call("predict", b"one")
    assert len(servers.tritons[URLS[0]].calls) - before == 2


@pytest.mark.parametrize("error", [InputError("bad"), DeadlineError("late"), ServerError("failed")])
def test_what_failed_at_the_server_is_not_sent_to_another_one(servers, error):
    for triton in servers.tritons.values():
        triton.refuse = fail_with(error)
    with pytest.raises(type(error)):
        servers.connect()("predict", b"one")
    assert sum(servers.count_calls()) == 1


def test_all_servers_away_is_the_error_of_the_last_one(servers):
    for url, triton in servers.tritons.items():
        triton.refuse = fail_with(UnavailableError(f"{url} is away"))
    with pytest.raises(UnavailableError, match=r"host.:8001 is away"):
        servers.connect()("predict", b"one")
    assert servers.count_calls() == [1, 1]


def test_one_server_is_not_asked_twice_unless_the_caller_says_so(servers):
    triton = servers.tritons[URLS[0]]
    triton.refuse = fail_with(UnavailableError("away"))
    with pytest.raises(UnavailableError):
        servers.connect(URLS[0])("predict", b"one")
    assert len(triton.calls) == 1
    with pytest.raises(UnavailableError):
        servers.connect(URLS[0], retries=3)("predict", b"one")
    assert len(triton.calls) == 5


def test_pauses_grow_at_random_and_end_before_the_deadline(monkeypatch):

    pauses, asked = [], []
    monkeypatch.setattr("client.steps.time", SimpleNamespace(sleep=pauses.append))

    def fail(_server):
        asked.append(1)
        raise UnavailableError("away")
        yield

    with pytest.raises(UnavailableError):
        run(Rotation(["one", "two"], 9).run(fail, Deadline(60)))
    assert len(asked) == 10
    assert all(
        low <= pause <= high
        for pause, (low, high) in zip(
            pauses,
            [(0.05, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 0.8), (0.8, 1.6), (1, 2), (1, 2), (1, 2)],
            strict=True,
        )
    )
    asked.clear()
    with pytest.raises(UnavailableError):
        run(Rotation(["one"], 9).run(fail, Deadline(0.01)))
    assert len(asked) == 1, "no repetition starts after the deadline"


@pytest.mark.parametrize("retries", [-1, 101, 1.5, True, "3"])
def test_a_number_of_retries_that_is_none_is_refused(retries):
    with pytest.raises(ConfigError, match="retries must be"):
        CxrClient(retries=retries)


def test_storing_is_repeated_and_deleting_never(servers):
    """Storing the same cases again changes nothing. A second deletion would count no case."""
    servers.give_one_model()
    sidecar, added, deleted = servers.sidecars[SIDECARS[0]], [], []

    def add(_fingerprint, cases, _timeout_s):
        added.append([case.id for case in cases])
        if len(added) == 1:
            raise UnavailableError("the connection broke")
        return Stored(0, len(cases))

    def delete(ids, _timeout_s):
        deleted.append(ids)
        raise UnavailableError("the connection broke")

    sidecar.add, sidecar.delete = add, delete
    call = servers.connect(retries=2)
    assert call("index", [CaseInput("1", "s", b"one")]).replaced == 1
    assert added == [["1"], ["1"]]
    with pytest.raises(UnavailableError):
        call("delete", ["1"])
    assert len(deleted) == 1


def test_several_sidecars_are_read_in_turn_and_never_written(servers):
    call = servers.connect(sidecars=SIDECARS)
    first, second = servers.sidecars.values()
    first.info, second.info = IndexInfo("a", 1, 16, "flat"), IndexInfo("b", 2, 16, "flat")
    assert {call("index_info").case_count for _ in range(2)} == {1, 2}
    for method, argument in (("index", [CaseInput("1", "s", b"one")]), ("delete", ["1"])):
        with pytest.raises(ConfigError, match="a store of its own"):
            call(method, argument)
    assert not sum(servers.count_calls())


def test_a_sidecar_without_an_index_of_the_model_is_passed_over(servers):
    def search(*_):
        raise FingerprintError("only cases of another model")

    servers.sidecars[SIDECARS[0]].search = search
    call = servers.connect(sidecars=SIDECARS)
    for _ in range(3):
        assert call("search", b"one").cases == ()
    servers.sidecars[SIDECARS[1]].search = search
    with pytest.raises(FingerprintError):
        call("search", b"one")


def test_findings_are_scored_where_the_model_of_the_prediction_is(servers):
    for triton in servers.tritons.values():
        triton.outputs["input_ids"] = [[2, number, 3, *[0] * 6] for number in range(5, 7)]
        triton.outputs["attention_mask"] = [[1, 1, 1, *[0] * 6]] * 2
        triton.outputs["embedding"] = lambda call: np.ones((call.batch, 16)) / 4
    call = servers.connect()
    for _ in range(4):
        call("score_findings", ["fracture"], call("predict", b"one"))
    gone = call("predict", b"one")
    for triton in servers.tritons.values():
        triton.model = make_model(fingerprint="c" * 64)
    with pytest.raises(FingerprintError, match=f"{'c' * 12}"):
        call("score_findings", ["fracture"], gone)


def test_an_index_of_two_models_is_an_error_that_names_both(servers):
    cases = [CaseInput(str(number), "s", b"one") for number in range(20)]
    with pytest.raises(FingerprintError, match=r"aaaaaaaaaaaa|bbbbbbbbbbbb") as caught:
        servers.connect()("index", cases)
    assert "a" * 12 in str(caught.value)
    assert "b" * 12 in str(caught.value)


def test_health_names_servers_that_differ_or_are_away(servers):
    call = servers.connect()
    told = call("health").triton
    assert all(part in told for part in ("host1:8001", "a" * 12, "host2:8001", "b" * 12))
    servers.give_one_model()
    assert call("health").triton is None
    servers.tritons[URLS[1]].trouble = "Triton at host2:8001 is starting."
    health = call("health")
    assert (health.triton, health.fingerprint) == ("Triton at host2:8001 is starting.", "a" * 64)


@pytest.mark.parametrize(
    "given",
    [URLS, tuple(URLS), "host1:8001,host2:8001", "host1:8001, host2:8001,host1:8001", [",".join(URLS)]],
)
def test_addresses_are_a_list_or_text_with_commas(servers, given):
    call = servers.connect(given)
    for _ in range(2):
        call("predict", b"one")
    assert servers.count_calls() == [1, 1]


def test_each_request_at_once_has_a_connection_of_its_own():
    """Equal channels of a process would share one connection, and so one server behind a balancer."""
    service = TritonService(FakeTriton())
    with serve_triton(service) as port, CxrClient(f"127.0.0.1:{port}", timeout_s=20) as client:
        service.gather = 4
        cases = [CaseInput(str(number), "s", b"one") for number in range(4)]
        assert len(list(client.predict_many(cases, in_flight=4))) == 4
    assert len(service.peers) == 4


@pytest.mark.parametrize("name", CALLERS)
def test_a_server_that_ends_costs_no_call(name):
    services = [TritonService(FakeTriton()) for _ in range(2)]
    with ExitStack() as running, serve_triton(services[1]) as port:
        address = f"127.0.0.1:{running.enter_context(serve_triton(services[0]))}"
        caller = CALLERS[name]([address, f"127.0.0.1:{port}"], timeout_s=20)
        for _ in range(4):
            caller.call("predict", b"one")
        assert all(service.fake.calls for service in services)
        running.close()
        began = time.monotonic()
        for _ in range(6):
            caller.call("predict", b"one")
        assert time.monotonic() - began < 15
        caller.close()


def answer(result):
    """Return or raise the result, as an operation in steps."""
    if isinstance(result, Exception):
        raise result
    return result
    yield


def test_a_server_that_was_too_slow_comes_last():
    rotation, asked = Rotation(["slow", "quick"], 3), []

    def ask(server):
        asked.append(server)
        return answer(DeadlineError("late") if server == "slow" else server)

    for _ in range(6):
        with suppress(DeadlineError):
            run(rotation.run(ask, Deadline(5)))
    assert asked.count("slow") == 1
    assert len(asked) == 6, "a call whose time is up is not repeated"


@pytest.mark.parametrize("retries", [None, 0, 5])
def test_a_server_that_refuses_costs_no_repetition(retries):
    """The other one is asked as often as the caller allows, also if its queue is full at first."""
    for _ in range(4):
        rotation, asked = Rotation(["other model", "busy once"], retries), []

        def ask(server, asked=asked):
            asked.append(server)
            if server == "other model":
                return answer(FingerprintError("only cases of another model"))
            return answer(BusyError("busy") if asked.count(server) == 1 and retries else server)

        found = run(rotation.run(ask, Deadline(5), elsewhere=(FingerprintError,)))
        assert found == "busy once"
        assert asked.count("other model") <= 1


def test_only_servers_that_all_refuse_are_a_refusal():
    asked = []

    def ask(server):
        asked.append(server)
        return answer(FingerprintError(f"{server} holds another model"))

    with pytest.raises(FingerprintError, match="holds another model"):
        run(Rotation(["one", "two", "three"], 0).run(ask, Deadline(5), elsewhere=(FingerprintError,)))
    assert sorted(asked) == ["one", "three", "two"]


def test_a_page_of_cases_is_repeated_and_the_next_one_follows(servers):
    sidecar, pages = servers.sidecars[SIDECARS[0]], []

    def list_page(request, timeout_s):
        assert timeout_s > 0
        pages.append(request.page_token)
        if len(pages) in (1, 3):
            raise BusyError("busy")
        request.page_token = "" if request.page_token else "second"
        return [f"case of {pages[-1] or 'first'}"]

    sidecar.list_page = list_page
    call = servers.connect(retries=1)
    listed = call("list_cases")
    assert list(listed) == ["case of first", "case of second"]
    assert pages == ["", "", "second", "second"]
