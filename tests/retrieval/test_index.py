"""Search results are held against a plain comparison of every pair, ties and order included."""

import math
import sys
import threading
import types

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import ConfigError
from retrieval.cases import CaseVectors
from retrieval.index import FlatIndex, Query
from retrieval.rows import CaseFilter


def normalise(rows) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def put(index: FlatIndex, ids, studies, vectors, first=0) -> None:
    index.put(CaseVectors(range(first, first + len(ids)), ids, studies, vectors))


def compare_all(cases, query, k, excluded):
    """(sequence, score) of the k best of (id, study, sequence, vector): the definition of a right answer."""
    scored = []
    for name, study, sequence, vector in cases:
        if study not in excluded:
            products = [float(a) * float(b) for a, b in zip(vector, query, strict=True)]
            scored.append((-np.float32(min(1.0, max(-1.0, math.fsum(products)))), name, sequence))
    return [(sequence, float(-score)) for score, _, sequence in sorted(scored)[:k]]


def ask(index, queries):
    return [[(match.sequence, match.score) for match in row] for row in index.search(queries)]


# Few different vectors: nearly every search has ties, also across the k-th place.
corner = st.lists(st.integers(-1, 1), min_size=5, max_size=5).filter(any)


@settings(deadline=None, max_examples=60)
@given(
    vectors=st.lists(corner, min_size=1, max_size=70),
    again=st.lists(st.tuples(st.integers(0, 60), corner), max_size=20),
    removed=st.sets(st.integers(0, 60), max_size=40),
    queries=st.lists(corner, min_size=1, max_size=30),
    k=st.integers(1, 80),
    excluded=st.sets(st.integers(0, 6), max_size=6),
)
def test_answers_are_those_of_a_full_comparison(vectors, again, removed, queries, k, excluded):
    index = FlatIndex()
    cases = {}
    # Ids in an order that is not the order of the rows.
    rows = [((number * 37) % 61, vector) for number, vector in enumerate(vectors)] + again
    for sequence, (number, vector) in enumerate(rows):
        unit = normalise([vector])
        put(index, [f"case-{number}"], [f"study-{number % 7}"], unit, sequence)
        cases[f"case-{number}"] = (f"case-{number}", f"study-{number % 7}", sequence, unit[0])
    index.remove([f"case-{number}" for number in removed])
    left = [case for name, case in cases.items() if int(name[5:]) not in removed]
    assert len(index) == len(left)
    names = frozenset(f"study-{number}" for number in excluded)
    wanted = CaseFilter(excluded_study_ids=names)
    units = normalise(queries)
    expected = [compare_all(left, unit, k, names) for unit in units]
    assert ask(index, [Query(unit, k, wanted) for unit in units]) == expected
    # The answer to one query does not depend on the others.
    assert ask(index, [Query(units[0], k, wanted)]) == expected[:1]


@pytest.mark.parametrize("batch", [1, 7, 40])  # FAISS takes another path from 20 queries on
@pytest.mark.parametrize("k", [1, 10, 1000])
def test_random_vectors_at_full_size(batch, k, make):
    vectors = make.vectors(3000, 1, 256)
    vectors[1500:1600] = vectors[7]  # one hundred equal cases
    ids = [f"{number:05d}" for number in np.random.default_rng(3).permutation(3000)]
    studies = [f"study-{number % 300}" for number in range(3000)]
    index = FlatIndex()
    put(index, ids, studies, vectors)
    queries = make.vectors(batch, 2, 256)
    queries[0] = vectors[7]
    excluded = frozenset({"study-7", "study-0"})
    allowed = [number for number in range(3000) if studies[number] not in excluded]
    scores = np.clip(queries.astype(np.float64) @ vectors.T.astype(np.float64), -1, 1).astype(np.float32)
    for answer, row in zip(
        index.search([Query(query, k, CaseFilter(excluded_study_ids=excluded)) for query in queries]),
        scores,
        strict=True,
    ):
        order = sorted(allowed, key=lambda number: (-row[number], ids[number]))[:k]
        assert [match.sequence for match in answer] == order
        np.testing.assert_allclose([match.score for match in answer], row[order], atol=1e-7)


def test_queries_with_different_k_share_a_batch(make):
    vectors = make.vectors(50)
    index = FlatIndex()
    put(index, [f"{n:02d}" for n in range(50)], ["s"] * 50, vectors)
    answers = index.search([Query(vectors[n], k) for n, k in enumerate([1, 50, 3, 1000, 20])])
    assert [len(answer) for answer in answers] == [1, 50, 3, 50, 20]
    assert [answer[0].sequence for answer in answers] == [0, 1, 2, 3, 4]


def test_an_empty_index_finds_nothing(make):
    index = FlatIndex()
    assert index.search([Query(make.vectors(1)[0], 5)]) == [[]]
    assert index.dimension == 0
    put(index, ["one"], ["s"], make.vectors(1))
    assert index.search([Query(make.vectors(1)[0], 5, CaseFilter(excluded_study_ids=frozenset({"s"})))]) == [
        []
    ]
    index.remove(["one", "unknown"])
    assert index.search([Query(make.vectors(1)[0], 5)]) == [[]]
    assert len(index) == 0


def test_much_replaced_index_asks_to_be_built_anew(make):
    index = FlatIndex()
    vectors = make.vectors(500)
    ids = [str(number) for number in range(500)]
    rounds = 0
    while not index.is_wasteful:
        put(index, ids, ids, vectors, first=rounds * 500)
        rounds += 1
    assert 3 <= rounds <= 5
    assert [match.sequence for match in index.search([Query(vectors[3], 1)])[0]] == [(rounds - 1) * 500 + 3]


class NoisyIndex:
    """A flat index whose scores are as wrong as float32 arithmetic permits."""

    def __init__(self, index):
        self.index = index
        self.d = index.d
        self.generator = np.random.default_rng(0)

    def reconstruct_batch(self, rows):
        return self.index.reconstruct_batch(rows)

    def search(self, queries, k):
        scores, rows = self.index.search(queries, self.index.ntotal)
        scores += self.generator.uniform(-1, 1, scores.shape) * self.d * 2.0**-24
        order = np.argsort(-scores, axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def test_rounding_errors_of_faiss_do_not_show(make):
    # 300 cases whose similarities to the query differ by less than the errors.
    vectors = normalise(make.vectors(1, 3, 64) + 1e-4 * make.vectors(300, 4, 64))
    ids = [f"{number:03d}" for number in range(300)]
    index = FlatIndex()
    put(index, ids, ids, vectors)
    queries = make.vectors(1, 3, 64)
    expected = compare_all(zip(ids, ids, range(300), vectors, strict=True), queries[0], 10, ())
    index._index = NoisyIndex(index._index)
    for _ in range(20):
        assert ask(index, [Query(queries[0], 10)]) == [expected]


class FakeGpuIndex:
    """What FAISS documents of a flat index on GPU: one thread, k of at most 2048."""

    def __init__(self, index):
        self.index = index
        self.d = index.d
        self.threads = set()

    def add(self, vectors):
        self.threads.add(threading.get_ident())
        self.index.add(vectors)

    def search(self, vectors, k):
        self.threads.add(threading.get_ident())
        if k > 2048:
            raise RuntimeError("GPU index only supports min/max-K selection up to 2048")
        return self.index.search(vectors, k)

    def reconstruct_batch(self, rows):
        self.threads.add(threading.get_ident())
        return self.index.reconstruct_batch(rows)


@pytest.fixture
def gpu_faiss(monkeypatch):
    """A faiss module with one pretended GPU."""
    module = types.ModuleType("faiss")
    module.IndexFlatIP = faiss.IndexFlatIP
    module.cvar = types.SimpleNamespace()
    module.StandardGpuResources = object
    module.get_num_gpus = lambda: 1
    module.index_cpu_to_gpu = lambda resources, device, index: FakeGpuIndex(index)
    module.index_gpu_to_cpu = lambda index: index.index
    monkeypatch.setitem(sys.modules, "faiss", module)
    return module


@pytest.mark.parametrize("excluded", [frozenset(), frozenset({"big"})])
def test_gpu_index_answers_as_the_cpu_index(excluded, gpu_faiss, make):
    vectors = make.vectors(4000, 5)
    vectors[100:2700] = vectors[0]  # more ties than the GPU can select at once
    studies = ["big" if number < 2500 else "small" for number in range(4000)]
    ids = [f"{number:04d}" for number in range(4000)]
    cpu, gpu = FlatIndex("cpu"), FlatIndex("gpu")
    put(cpu, ids, studies, vectors)
    put(gpu, ids, studies, vectors)
    wanted = CaseFilter(excluded_study_ids=excluded)
    queries = [Query(vector, k, wanted) for vector in vectors[[0, 3000]] for k in (5, 1000)]
    assert ask(gpu, queries) == ask(cpu, queries)
    assert ask(gpu, queries)[0][0] == ((2500, 1.0) if excluded else (0, 1.0))


def test_missing_gpu_is_a_config_error(gpu_faiss):
    gpu_faiss.get_num_gpus = lambda: 0
    with pytest.raises(ConfigError, match="no GPU"):
        FlatIndex("gpu")
    del gpu_faiss.StandardGpuResources
    with pytest.raises(ConfigError, match="faiss-gpu"):
        FlatIndex("gpu")


def test_missing_faiss_names_its_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match="pip install"):
        FlatIndex()
