"""A kind of index over gRPC: what `GetInfo` and `Search` tell of it, and the options of the server process."""

import signal
import time

import numpy as np

from client.retrieval import RetrievalTransport
from client.search_options import SearchOptions
from retrieval.builder import IndexPlan
from retrieval.kinds import parse_kind


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def open_plan(open_sidecar, kind, **settings):
    return open_sidecar(plan=IndexPlan(parse_kind(kind), least_cases=50, **settings), threads=1)


def test_a_flat_index_says_that_it_is_exact(sidecar, make):
    sidecar.client.add(make.vectors(3))
    info = sidecar.client.info()
    assert (info.asked_kind, info.index_state, info.approximate_count) == ("flat", "ready", 0)
    assert not info.HasField("recall")
    transport = RetrievalTransport(sidecar.server.address)
    assert transport.search(make.MODEL, make.vectors(1)[0], 1, (), 10).exact
    assert transport.read_info(10).describe() == "flat, exact"
    transport.close()


def test_an_approximate_index_tells_its_recall_and_its_answers(open_sidecar, make):
    sidecar = open_plan(open_sidecar, "rabitq:lists=20,probes=15,bits=4")
    vectors = make.vectors(3000)
    for start in range(0, 3000, 1000):
        part = slice(start, start + 1000)
        sidecar.client.add(vectors[part], ids=range(start, start + 1000), labels=["cardiac"])
    transport = RetrievalTransport(sidecar.server.address)
    wait_until(lambda: transport.read_info(10).state == "ready")
    info = transport.read_info(10)
    assert info.index_kind == "rabitq:lists=20,probes=15,bits=4,refine=10"
    assert (info.asked_kind, info.approximate_count) == ("rabitq:lists=20,probes=15,bits=4", 3000)
    assert info.vector_bytes == 0
    assert info.file_bytes == vectors.nbytes
    assert 0.95 <= info.recall <= 1
    assert (info.recall_hundredth, info.recall_floor) == (1.0, 0.95)  # so few cases are compared one by one
    assert info.describe().startswith("rabitq:lists=20,probes=15,bits=4,refine=10, recall@10 at least 0.9")
    found = transport.search(make.MODEL, vectors[4], 5, (), 10)
    assert not found.exact
    assert found.cases[0].id == "4"
    expected = np.clip(vectors.astype(np.float64) @ vectors[4].astype(np.float64), -1, 1)
    assert [case.score for case in found.cases] == [
        np.float32(expected[int(case.id)]) for case in found.cases
    ]
    none = SearchOptions(labels_any=("pleural",))
    assert transport.search(make.MODEL, vectors[4], 5, (), 10, none) == ([], True)
    transport.close()


def test_a_refused_kind_is_described(open_sidecar, make):
    sidecar = open_plan(open_sidecar, "rabitq:lists=64,probes=1,bits=1", recall_floor=0.999)
    sidecar.client.add(make.vectors(1000))
    transport = RetrievalTransport(sidecar.server.address)
    wait_until(lambda: transport.read_info(10).state == "refused")
    info = transport.read_info(10)
    assert (info.index_kind, info.approximate_count) == ("flat", 0)
    assert info.recall < 0.999
    assert "; rabitq:lists=64,probes=1,bits=1 is refused. Its recall@10 is 0." in info.describe()
    assert transport.search(make.MODEL, make.vectors(1)[0], 5, (), 10).exact
    transport.close()


def test_options_of_the_server_process(run_server, make):
    server = run_server("--index", "ivf_flat:lists=8", "--recall-floor", "0.5", "--rebuild-growth", "0.1")
    server.client.add(make.vectors(10))
    info = server.client.info()
    assert (info.asked_kind, info.index_state, info.recall_floor) == ("ivf_flat:lists=8", "waiting", 0.5)
    assert server.end(signal.SIGTERM) == (0, "")
    for options, message in (
        (("--index", "annoy"), "There is no index 'annoy'. Choose from flat, hnsw"),
        (("--index", "hnsw:ef=1"), "ef of the index hnsw must be a whole number from 8 to 65536"),
        (("--index", "hnsw", "--rebuild-growth", "0"), "--rebuild-growth must be above 0"),
        (("--recall-floor", "1.5"), "must be 0 to 1"),
    ):
        wrong = run_server(*options, name="wrong", wait=False)
        assert wrong.process.wait(60) == 2
        assert message in wrong.process.stderr.read()
