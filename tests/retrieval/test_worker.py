"""The queue in front of the index; FlatIndex is replaced where a test must hold it up or break it."""

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

import retrieval.worker
from contract.errors import ArtifactError, BusyError, DeadlineError, InputError, ServerError, UnavailableError
from retrieval.cases import CaseVectors
from retrieval.index import FlatIndex, Query
from retrieval.worker import IndexThread


class Cases:
    """Stands for the store: what an index is built from."""

    def __init__(self, vectors):
        self.parts = [self.part(vectors)]
        self.reads = 0

    @staticmethod
    def part(vectors, first=0):
        ids = [str(number) for number in range(first, first + len(vectors))]
        return CaseVectors(range(first, first + len(vectors)), ids, ids, vectors)

    def read(self):
        self.reads += 1
        yield from self.parts


class HeldIndex(FlatIndex):
    """Waits in `search` until it is let go; notes the queries of each call and the threads that called."""

    calls: ClassVar[list]
    threads: ClassVar[set]
    entered: ClassVar[threading.Event]
    go: ClassVar[threading.Event]
    failure: Exception | None = None
    put_failure: Exception | None = None

    def search(self, queries):
        type(self).calls.append(len(queries))
        type(self).threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.go.wait(60)
        if self.failure:
            raise self.failure
        return super().search(queries)

    def put(self, cases):
        type(self).threads.add(threading.current_thread().name)
        if self.put_failure:
            raise self.put_failure
        super().put(cases)


@pytest.fixture
def held(monkeypatch):
    fresh = {"calls": [], "threads": set(), "entered": threading.Event(), "go": threading.Event()}
    index = type("Index", (HeldIndex,), fresh)
    monkeypatch.setattr(retrieval.worker, "FlatIndex", index)
    yield index
    index.go.set()


@pytest.fixture
def cases(make):
    return Cases(make.vectors(20))


@pytest.fixture
def open_index(cases):
    opened = []

    def start(**options):
        index = IndexThread(cases.read, **options)
        opened.append(index)
        index.start().result(10)
        return index

    yield start
    for index in opened:
        index.close()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(16) as pool:
        yield pool


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_what_waits_is_searched_together_in_one_thread(held, open_index, pool, make):
    index = open_index()
    vectors = make.vectors(20)
    first = pool.submit(index.search, [Query(vectors[0], 1)], 10)
    assert held.entered.wait(60)
    others = [
        pool.submit(index.search, [Query(vectors[n], n), Query(vectors[0], 2)], 10) for n in range(1, 9)
    ]
    wait_for(lambda: len(index._waiting) == 8)
    held.go.set()
    assert first.result()[0][0].sequence == 0
    for number, other in enumerate(others, 1):
        answers = other.result()
        assert [len(answer) for answer in answers] == [number, 2]
        assert answers[0][0].sequence == number
    assert held.calls == [1, 16]
    assert held.threads == {"index"}


def test_a_change_is_seen_by_later_searches_only(held, open_index, pool, cases, make):
    index = open_index()
    new = make.vectors(1, seed=5)
    first = pool.submit(index.search, [Query(new[0], 1)], 10)
    assert held.entered.wait(60)
    before = pool.submit(index.search, [Query(new[0], 1)], 10)
    wait_for(lambda: len(index._waiting) == 1)
    changed = pool.submit(index.change, added=cases.part(new, 100), removed=["3"])
    wait_for(lambda: len(index._waiting) == 2)
    after = pool.submit(index.search, [Query(new[0], 100)], 10)
    wait_for(lambda: len(index._waiting) == 3)
    held.go.set()
    changed.result()
    assert first.result()[0][0].sequence != 100
    assert before.result()[0][0].sequence != 100
    found = [match.sequence for match in after.result()[0]]
    assert found[0] == 100
    assert len(found) == 20
    assert 3 not in found


def test_full_queue_is_refused_but_changes_are_not(held, open_index, pool, cases, make):
    index = open_index(max_waiting=2)
    query = [Query(make.vectors(1)[0], 1)]
    running = [pool.submit(index.search, query, 10)]
    assert held.entered.wait(60)
    running += [pool.submit(index.search, query, 10) for _ in range(2)]
    wait_for(lambda: len(index._waiting) == 2)
    with pytest.raises(BusyError, match="2 search requests are waiting"):
        index.search(query, 10)
    change = pool.submit(index.change, added=cases.part(make.vectors(1), 50))
    wait_for(lambda: len(index._waiting) == 3)
    held.go.set()
    change.result()
    assert all(len(search.result()) == 1 for search in running)


def test_requests_out_of_time_are_dropped(held, open_index, pool, make):
    index = open_index()
    query = [Query(make.vectors(1)[0], 1)]
    running = pool.submit(index.search, query, 10)
    assert held.entered.wait(60)
    with pytest.raises(DeadlineError, match=r"0\.02 s"):
        index.search(query, 0.02)
    held.go.set()
    running.result()
    index.search(query, 10)
    assert held.calls == [1, 1]  # the second one never reached FAISS


def test_a_failed_search_fails_its_requests_and_the_next_one_works(held, open_index, cases, make):
    index = open_index()
    held.go.set()
    held.failure = RuntimeError("Report of a patient")
    with pytest.raises(ServerError, match="RuntimeError") as caught:
        index.search([Query(make.vectors(1)[0], 1)], 10)
    assert "patient" not in str(caught.value)
    held.failure = None
    assert len(index.search([Query(make.vectors(1)[0], 5)], 10)[0]) == 5
    assert cases.reads == 2  # built anew from the store


@pytest.mark.parametrize("reason", ["waste", "error"])
def test_the_old_index_is_freed_before_a_new_one_is_built(monkeypatch, make, reason):
    made, kept = [], []

    class Noted(FlatIndex):
        def __init__(self, *arguments, **options):
            kept.append(sum(old() is not None for old in made))
            made.append(weakref.ref(self))
            super().__init__(*arguments, **options)

        def remove(self, ids):
            if reason == "error":
                raise MemoryError
            super().remove(ids)

        @property
        def is_wasteful(self):
            return reason == "waste" and len(made) == 1

    monkeypatch.setattr(retrieval.worker, "FlatIndex", Noted)
    index = IndexThread(Cases(make.vectors(20)).read)
    index.start().result(10)
    index.change(removed=["1"])
    index.close()
    assert kept == [0, 0]


def test_a_failed_change_is_repaired_from_the_store(held, open_index, cases, make, caplog):
    index = open_index()
    held.go.set()
    new = cases.part(make.vectors(1, seed=4), 20)
    cases.parts.append(new)

    def fail_once(self, vectors):
        held.put = HeldIndex.put
        raise MemoryError

    held.put = fail_once
    index.change(added=new)
    assert "MemoryError" in caplog.text
    answer = index.search([Query(new.embeddings[0], 1000)], 10)[0]
    assert answer[0].sequence == 20
    assert len(answer) == 21


def test_an_index_that_cannot_be_repaired_says_so_and_tries_again(held, open_index, cases, make):
    index = open_index()
    held.go.set()
    held.put_failure = MemoryError()
    with pytest.raises(ServerError, match="stored, but"):
        index.change(added=cases.part(make.vectors(1), 20))
    with pytest.raises(ServerError, match="search failed"):
        index.search([Query(make.vectors(1)[0], 1)], 10)
    held.put_failure = None
    assert len(index.search([Query(make.vectors(1)[0], 1)], 10)[0]) == 1


def test_a_wrong_dimension_fails_alone(held, open_index, pool, make):
    index = open_index()
    running = pool.submit(index.search, [Query(make.vectors(1)[0], 1)], 10)
    assert held.entered.wait(60)
    wrong = pool.submit(index.search, [Query(make.vectors(1, dimension=3)[0], 1)], 10)
    wait_for(lambda: len(index._waiting) == 1)
    right = pool.submit(index.search, [Query(make.vectors(1)[0], 1)], 10)
    wait_for(lambda: len(index._waiting) == 2)
    held.go.set()
    with pytest.raises(InputError, match="16 values"):
        wrong.result()
    assert right.result() == running.result()


def test_much_replacing_builds_the_index_anew(open_index, cases, make):
    index = open_index()
    vectors = make.vectors(600, seed=8)
    cases.parts = [cases.part(vectors, 0)]
    while cases.reads == 1:
        index.change(added=cases.parts[0])
    assert len(index._index._rows) == 600
    assert len(index.search([Query(vectors[0], 1000)], 10)[0]) == 600


def test_closing_fails_what_waits(held, open_index, pool, make):
    index = open_index()
    query = [Query(make.vectors(1)[0], 1)]
    running = pool.submit(index.search, query, 10)
    assert held.entered.wait(60)
    waiting = pool.submit(index.search, query, 10)
    wait_for(lambda: len(index._waiting) == 1)
    closing = pool.submit(index.close)
    wait_for(lambda: index._closing)
    held.go.set()
    closing.result()
    assert len(running.result()) == 1
    with pytest.raises(UnavailableError, match="stopping"):
        waiting.result()
    with pytest.raises(UnavailableError, match="stopping"):
        index.search(query, 10)


def test_closing_ends_a_build(make):
    building, go = threading.Event(), threading.Event()

    def read():
        while True:
            yield Cases.part(make.vectors(1))
            building.set()
            assert go.wait(60)

    index = IndexThread(read)
    built = index.start()
    assert building.wait(60)
    assert not index.ready
    with pytest.raises(UnavailableError, match="not built yet"):
        index.search([Query(make.vectors(1)[0], 1)], 1)
    index._closing = True
    go.set()
    index.close()
    assert isinstance(built.exception(10), UnavailableError)
    assert not index.ready


def test_a_damaged_store_fails_the_start(make):
    def read():
        raise ArtifactError("damaged")
        yield

    index = IndexThread(read, threads=1)
    assert isinstance(index.start().exception(10), ArtifactError)
    assert not index.ready
    index.close()
