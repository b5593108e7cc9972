"""Kinds of index: parameters, training, filters, the swap, and what a refusal leaves."""

import logging
import threading
import time
import weakref
from pathlib import Path

import faiss
import numpy as np
import pytest

import retrieval.builder
from contract.errors import ConfigError
from retrieval.builder import IndexPlan
from retrieval.cases import CaseVectors
from retrieval.index import Query
from retrieval.kinds import KINDS, parse_kind
from retrieval.parts import train_part
from retrieval.recall import measure_recall
from retrieval.rows import CaseFilter
from retrieval.vector_file import VectorFile
from retrieval.worker import IndexThread

APPROXIMATE = [name for name in KINDS if name != "flat"]
COUNT, D = 3000, 20  # D is no multiple of FAISS's blocks


@pytest.fixture(scope="module")
def clustered() -> np.ndarray:
    """(COUNT, D) float32 of unit length around 12 centres."""
    generator = np.random.default_rng(3)
    centres = generator.normal(size=(12, D))
    vectors = centres[generator.integers(12, size=COUNT)] + 0.5 * generator.normal(size=(COUNT, D))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def fill(vectors: np.ndarray, directory: Path) -> VectorFile:
    file = VectorFile(directory, vectors.shape[1])
    for start in range(0, len(vectors), 700):
        file.append(vectors[start : start + 700])
    return file


def make_cases(vectors: np.ndarray, first: int = 0) -> CaseVectors:
    numbers = range(first, first + len(vectors))
    ids = [f"{number:05d}" for number in numbers]
    labels = [("cardiac",) if number % 10 == 0 else ("normal",) for number in numbers]
    return CaseVectors(numbers, ids, ids, vectors, labels)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def open_index(tmp_path):
    """A function that starts an index over parts of cases; the list of parts may grow."""
    opened = []

    def start(parts, kind="rabitq:lists=16,probes=4", **settings):
        plan = IndexPlan(parse_kind(kind), **{"least_cases": 100, **settings})
        index = IndexThread(lambda: iter(parts), threads=1, plan=plan, directory=tmp_path)
        opened.append(index)
        index.start().result(30)
        return index

    yield start
    for index in opened:
        index.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("annoy", "Choose from flat, hnsw"),
        ("", "Choose from flat"),
        ("rabitq:bits", "from 1 to 8, not ''"),
        ("rabitq:bits=9", "from 1 to 8, not '9'"),
        ("rabitq:bits=2,nprobe=3", "no parameter 'nprobe'. It has lists, probes, bits, refine"),
        ("flat:lists=4", "no parameter 'lists'. It has none"),
        ("hnsw:ef=-8", "from 8 to 65536"),
    ],
)
def test_a_wrong_kind_is_refused_with_the_choices(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_kind(text)
    assert message in str(caught.value)


def test_parameters_follow_the_number_of_cases():
    assert parse_kind("rabitq").resolve(10_000, 512) == {"lists": 400, "probes": 16, "bits": 2, "refine": 10}
    assert parse_kind("rabitq:probes=99").resolve(4, 512)["probes"] == 4  # never more lists than cases
    assert parse_kind("ivf_pq").resolve(10_000, 534)["bytes"] == 136  # divides the padded 544
    assert str(parse_kind(" rabitq:bits=4,probes=8 ")) == "rabitq:bits=4,probes=8"


def test_the_file_returns_the_rows_as_they_were(clustered, tmp_path):
    file = fill(clustered, tmp_path)
    rows = np.array([0, 2999, 17, 1024, 17])
    np.testing.assert_array_equal(file.read(rows), clustered[rows])
    np.testing.assert_array_equal(file.view(1000, 9999), clustered[1000:])
    assert (len(file), file.byte_count) == (COUNT, clustered.nbytes)
    assert not list(tmp_path.iterdir())  # no name: embeddings of patients do not stay on the disk


@pytest.mark.parametrize("name", APPROXIMATE)
def test_each_kind_finds_near_cases_also_through_filters(name, clustered, tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.recall.FEW_ROWS", 10)  # otherwise so few rows are all compared
    file = fill(clustered, tmp_path)
    part = train_part(faiss, parse_kind(name), file, COUNT, lambda: None)
    recall = measure_recall(part, file, np.ones(COUNT, bool), lambda: None)
    assert list(recall.by_share) == [1.0, 0.1, 0.01]
    assert recall.lowest >= 0.95
    least = part.byte_count / COUNT
    assert least < 4 * 32 + 16 + 4 * 300  # of a padded row, with lists
    allowed = np.zeros(COUNT, bool)
    allowed[[5, 700, 2999]] = True
    for rows in part.find(clustered[:4], 2, allowed):
        assert set(rows) <= {5, 700, 2999}
        assert len(rows) >= 2


@pytest.mark.parametrize("name", APPROXIMATE)
def test_cases_that_came_later_are_found_through_a_filter(name, clustered, tmp_path):
    file = fill(clustered[:2000], tmp_path)
    part = train_part(faiss, parse_kind(name), file, 2000, lambda: None)
    for start in (2000, 2001, 2500):
        part.find(clustered[:1], 2, np.arange(len(part)) < 900)  # learns which case is in which list
        stop = {2000: 2001, 2001: 2500, 2500: COUNT}[start]
        part.add(clustered[start:stop])
        allowed = np.arange(stop) >= start - 100
        assert stop - 1 in part.find(clustered[stop - 1 : stop], 10, allowed)[0]


@pytest.mark.parametrize("name", APPROXIMATE)
def test_the_same_cases_give_the_same_part(name, clustered, tmp_path):
    file = fill(clustered[:1500], tmp_path)
    rows = [
        train_part(faiss, parse_kind(name), file, 1500, lambda: None).find(clustered[:20], 10, None)
        for _ in range(2)
    ]
    for first, second in zip(*rows, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", APPROXIMATE)
def test_many_equal_cases_are_all_found(name, tmp_path, make):
    file = fill(np.repeat(make.vectors(3, 1, D), 300, axis=0), tmp_path)
    part = train_part(faiss, parse_kind(name), file, 900, lambda: None)
    allowed = np.arange(900) % 3 > 0
    for wanted, count in ((None, 900), (allowed, 600)):
        rows = part.find(make.vectors(2, 1, D), count, wanted)
        assert [len(set(some)) for some in rows] == [count, count]


def test_recall_counts_what_is_missed(clustered, tmp_path):
    file = fill(clustered, tmp_path)
    part = train_part(faiss, parse_kind("rabitq:lists=64,probes=1,bits=1"), file, COUNT, lambda: None)
    recall = measure_recall(part, file, np.ones(COUNT, bool), lambda: None)
    assert recall.by_share[1.0] < 0.95

    class Blind:
        def find(self, embeddings, depth, allowed):
            return [np.arange(3)] * len(embeddings)

    assert measure_recall(Blind(), file, np.ones(COUNT, bool), lambda: None).by_share[1.0] < 0.05


def test_flat_answers_until_the_kind_does_and_scores_stay_exact(open_index, clustered):
    index = open_index([make_cases(clustered)])
    query = Query(clustered[7], 10)
    exact = (clustered.astype(np.float64) @ clustered[7].astype(np.float64)).astype(np.float32)
    wait_for(lambda: index.kind_state.state == "ready")
    assert index.kind_state.recall.lowest >= 0.95
    answer = index.search([query], 10)[0]
    assert not answer.is_exact
    assert answer[0].sequence == 7
    for match in answer:
        assert match.score == pytest.approx(exact[match.sequence], abs=1e-7)
    facts = index.facts
    assert facts.kind == "rabitq:lists=16,probes=4,bits=2,refine=10"
    assert (facts.rows, facts.approximate_rows, facts.vector_bytes) == (COUNT, COUNT, 0)
    assert facts.file_bytes == clustered.nbytes
    few = index.search([Query(clustered[7], 300, CaseFilter(labels_any=frozenset({"cardiac"})))], 10)[0]
    assert few.is_exact  # 300 cases are compared one by one
    assert [match.sequence for match in few] == sorted(
        range(0, COUNT, 10), key=lambda row: (-exact[row], row)
    )


def test_what_changes_during_the_build_holds_after_it(open_index, clustered, monkeypatch):
    go, entered = threading.Event(), threading.Event()

    def wait(*arguments):
        entered.set()
        assert go.wait(60)
        return train_part(*arguments)

    monkeypatch.setattr(retrieval.builder, "train_part", wait)
    index = open_index([make_cases(clustered[:2000])])
    assert entered.wait(60)
    assert index.kind_state.state == "building"
    index.change(removed=["00007"])
    index.change(added=make_cases(clustered[2000:2100], 2000))
    moved = make_cases(clustered[2100:2101], 5000)
    moved.ids[0] = "00009"  # replaces case 9
    index.change(added=moved)
    before = index.search([Query(clustered[row], 3) for row in (7, 2050, 2100)], 10)
    assert all(answer.is_exact for answer in before)
    go.set()
    wait_for(lambda: index.kind_state.state == "ready")
    after = index.search([Query(clustered[row], 3) for row in (7, 2050, 2100)], 10)
    assert not any(answer.is_exact for answer in after)
    assert [answer[0].sequence for answer in after[1:]] == [2050, 5000]
    assert [answer[0] for answer in after] == [answer[0] for answer in before]
    found = {match.sequence for match in index.search([Query(clustered[7], 1000)], 10)[0]}
    assert not found & {7, 9}
    assert index.facts.rows == 2099


def test_below_the_floor_flat_answers_and_says_why(open_index, clustered, caplog):
    parts = [make_cases(clustered[:2000])]
    index = open_index(parts, "rabitq:lists=64,probes=1,bits=1", recall_floor=0.99)
    wait_for(lambda: index.kind_state.state == "refused")
    assert "0.99 is the floor" in index.kind_state.reason
    assert "is refused: Its recall@10 is 0." in caplog.text
    assert index.facts.kind == "flat"
    assert index.search([Query(clustered[7], 5)], 10)[0].is_exact
    index.change(added=make_cases(clustered[2000:2400], 2000))  # grown by a fifth: no new try
    assert index.kind_state.state == "refused"
    index.change(added=make_cases(clustered[2400:2500], 2400))
    assert index.kind_state.state == "building"
    wait_for(lambda: index.kind_state.state == "refused")


def test_growth_builds_anew_beside_the_live_part(open_index, clustered):
    index = open_index([make_cases(clustered[:1000])], growth=0.5)
    wait_for(lambda: index.kind_state.state == "ready")
    index.change(added=make_cases(clustered[1000:1400], 1000))
    assert index.kind_state.state == "ready"
    assert index.search([Query(clustered[1399], 1)], 10)[0][0].sequence == 1399  # new cases are found at once
    index.change(added=make_cases(clustered[1400:1500], 1400))
    assert not index.search([Query(clustered[3], 1)], 10)[0].is_exact  # the old part answers meanwhile
    wait_for(lambda: index.kind_state.state == "ready")
    assert index._index.part.trained_count == 1500


def test_a_new_part_below_the_floor_makes_the_index_flat(open_index, clustered, make):
    parts = [make_cases(clustered[:1000])]
    index = open_index(parts, "rabitq:lists=12,probes=2,bits=1", growth=0.5, recall_floor=0.5)
    wait_for(lambda: index.kind_state.state == "ready")
    index._builder._plan = IndexPlan(
        index._builder._plan.choice, recall_floor=1.0, growth=0.5, least_cases=100
    )
    parts.append(make_cases(make.vectors(600, 4, D), 1000))
    index.change(added=parts[1])
    wait_for(lambda: index.kind_state.state == "refused")
    wait_for(lambda: index.facts.kind == "flat")
    answer = index.search([Query(parts[1].embeddings[5], 2000)], 10)[0]
    assert (answer.is_exact, len(answer), answer[0].sequence) == (True, 1600, 1005)


def test_few_cases_wait_and_a_failed_build_leaves_flat(open_index, clustered, caplog):
    index = open_index([make_cases(clustered[:99])])
    assert (index.kind_state.state, index.kind_state.asked) == ("waiting", "rabitq:lists=16,probes=4")
    index = open_index([make_cases(clustered)], "ivf_pq:bytes=7")  # does not divide 32
    wait_for(lambda: index.kind_state.state == "refused")
    assert index.kind_state.reason == "It could not be built (RuntimeError)."
    assert index.search([Query(clustered[7], 5)], 10)[0].is_exact
    assert any(record.levelno == logging.WARNING for record in caplog.records)


def test_closing_ends_a_build(open_index, clustered, monkeypatch):
    entered = threading.Event()

    def run_until_stopped(*arguments):
        entered.set()
        while True:
            arguments[-1]()
            time.sleep(0.01)

    monkeypatch.setattr(retrieval.builder, "train_part", run_until_stopped)
    index = open_index([make_cases(clustered)])
    assert entered.wait(60)
    index.close()
    assert not any(thread.name == "building" for thread in threading.enumerate())


def test_a_full_disk_costs_no_stored_case(open_index, clustered, monkeypatch):
    parts = [make_cases(clustered[:1000])]
    index = open_index(parts)
    wait_for(lambda: index.kind_state.state == "ready")
    write, calls = VectorFile.append, []

    def fail_once(self, vectors):
        calls.append(len(vectors))
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        write(self, vectors)

    monkeypatch.setattr(VectorFile, "append", fail_once)
    parts.append(make_cases(clustered[1000:1010], 1000))
    index.change(added=parts[1])  # built anew from the store
    assert index.search([Query(clustered[1005], 1)], 10)[0][0].sequence == 1005
    wait_for(lambda: index.kind_state.state == "ready")
    assert index.search([Query(clustered[1005], 1)], 10)[0][0].sequence == 1005


def test_a_disk_that_stays_full_makes_the_index_flat_and_frees_its_file(open_index, clustered, monkeypatch):
    parts = [make_cases(clustered[:1000])]
    index = open_index(parts)
    wait_for(lambda: index.kind_state.state == "ready")
    old, kept = weakref.ref(index._index._vectors), []

    def fail(self, vectors):
        kept.append(old() is not None and old() is not self)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(VectorFile, "append", fail)
    for first in (1000, 1010):
        parts.append(make_cases(clustered[first : first + 10], first))
        index.change(added=parts[-1])
        answer = index.search([Query(clustered[first + 5], 1)], 10)[0]
        assert (answer.is_exact, answer[0].sequence) == (True, first + 5)
    assert kept == [False, False]  # the old file was gone before the second one was made
    assert (index.facts.kind, index.facts.file_bytes) == ("flat", 0)
    assert index.kind_state.state == "refused"
    assert "No space left on device" in index.kind_state.reason


def test_a_disk_that_is_full_at_the_start_leaves_flat(open_index, clustered, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(VectorFile, "append", fail)
    index = open_index([make_cases(clustered)])
    assert (index.facts.kind, index.kind_state.state) == ("flat", "refused")
    assert index.search([Query(clustered[7], 5)], 10)[0].is_exact


def test_a_part_that_comes_after_the_disk_failed_is_dropped(open_index, clustered, monkeypatch):
    go = threading.Event()

    def wait(*arguments):
        assert go.wait(60)
        return train_part(*arguments)

    monkeypatch.setattr(retrieval.builder, "train_part", wait)
    parts = [make_cases(clustered[:1000])]
    index = open_index(parts)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(VectorFile, "append", fail)
    parts.append(make_cases(clustered[1000:1010], 1000))
    index.change(added=parts[-1])
    go.set()
    wait_for(lambda: index._builder._thread is None)
    assert (index.facts.kind, index.kind_state.state) == ("flat", "refused")
    assert index.search([Query(clustered[1005], 1)], 10)[0][0].sequence == 1005


def test_a_retraining_that_fails_makes_the_index_flat(open_index, clustered, monkeypatch):
    parts = [make_cases(clustered[:1000])]
    index = open_index(parts, growth=0.5)
    wait_for(lambda: index.kind_state.state == "ready")

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(retrieval.builder, "train_part", fail)
    parts.append(make_cases(clustered[1000:1600], 1000))
    index.change(added=parts[1])
    wait_for(lambda: index.kind_state.state == "refused")
    wait_for(lambda: index.facts.kind == "flat")
    assert index.kind_state.reason == "It could not be built (MemoryError)."
    assert index.search([Query(clustered[3], 1)], 10)[0].is_exact


def test_a_kind_needs_the_processor(tmp_path):
    with pytest.raises(ConfigError, match="works on the CPU only"):
        IndexThread(lambda: iter(()), device="gpu", plan=IndexPlan(parse_kind("hnsw")), directory=tmp_path)
