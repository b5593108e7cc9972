"""The codes choose candidates with a proven bound: no answer may depend on them, on any vectors."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import retrieval.codes
import retrieval.index
from retrieval.cases import CaseVectors
from retrieval.codes import ByteCodes
from retrieval.index import FlatIndex, Query
from retrieval.rows import CaseFilter

LABELS = ("normal", "cardiac", "pleural")


def normalise(rows) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.where(lengths > 0, rows, 1.0)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def draw_vectors(kind: str, count: int, dimension: int, seed: int) -> np.ndarray:
    """(count, dimension) float32 of unit length."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(count, dimension))
    if kind == "random":
        return normalise(noise)
    if kind == "clustered":
        centres = generator.normal(size=(5, dimension))
        return normalise(centres[generator.integers(5, size=count)] + 0.05 * noise)
    if kind == "duplicates":
        return normalise(noise[: max(1, count // 5)])[generator.integers(max(1, count // 5), size=count)]
    if kind == "equal":
        return np.repeat(normalise(noise[:1]), count, axis=0)
    if kind == "last digit":  # equal but for one step of float32 in some values
        base = np.repeat(normalise(noise[:1]), count, axis=0)
        return np.where(noise > 1, np.nextafter(base, np.float32(2)), base).astype(np.float32)
    if kind == "one dimension":
        noise[:, 0] += 1000
        return normalise(noise)
    if kind == "outliers":  # far outside of the range of most rows
        noise *= 1e-3
        noise[:, 0] = 1
        noise[::17] = generator.normal(size=noise[::17].shape)
        return normalise(noise)
    assert kind == "opposite"
    return normalise(noise) * np.where(np.arange(count) % 2, 1, -1)[:, None].astype(np.float32)


KINDS = ("random", "clustered", "duplicates", "equal", "last digit", "one dimension", "outliers", "opposite")


def make_cases(vectors, first=0, ids=None) -> CaseVectors:
    count = len(vectors)
    ids = [f"{(number * 7919) % 10_007:05d}" for number in range(count)] if ids is None else ids
    labels = [LABELS[: sum(map(ord, name)) % 4] for name in ids]
    return CaseVectors(range(first, first + count), ids, [f"s{name[-1]}" for name in ids], vectors, labels)


def compare_all(cases: dict, query: Query) -> list[tuple[int, float]]:
    """(sequence, score) of the best of id -> (sequence, vector, labels): the definition of a right answer."""
    scored = []
    for name, (sequence, vector, labels) in cases.items():
        wanted = query.filter
        if wanted.labels_any and not wanted.labels_any & set(labels):
            continue
        if f"s{name[-1]}" in wanted.excluded_study_ids:
            continue
        product = (vector.astype(np.float64) * query.embedding.astype(np.float64)).sum()
        scored.append((-float(np.float32(np.clip(product, -1, 1))), name, sequence))
    return [(sequence, -score) for score, _, sequence in sorted(scored)[: query.k]]


def ask(index, queries) -> list[list[tuple[int, float]]]:
    return [[(match.sequence, match.score) for match in row] for row in index.search(queries)]


@pytest.fixture(scope="module", autouse=True)
def code_few_rows():
    """The codes are used from 8 rows on, and fewer candidates are asked for, so that some lie beyond."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval.index, "MIN_ROWS", 8)
        patch.setattr(retrieval.codes, "_LEAST", 4)
        patch.setattr(retrieval.codes, "_SPREAD", 1)
        yield


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(KINDS),
    count=st.integers(9, 300),
    dimension=st.sampled_from([1, 2, 3, 16, 64]),
    seed=st.integers(0, 2**20),
    k=st.sampled_from([1, 2, 10, "all", "more"]),
    queries=st.integers(1, 3),
    where=st.sampled_from(["stored", "near", "elsewhere"]),
    wanted=st.sampled_from(
        [
            CaseFilter(),
            CaseFilter(labels_any=frozenset({"cardiac"})),
            CaseFilter(excluded_study_ids=frozenset({"s1", "s2"})),
        ]
    ),
)
def test_answers_equal_a_full_comparison(kind, count, dimension, seed, k, queries, where, wanted):
    vectors = draw_vectors(kind, count, dimension, seed)
    cases = make_cases(vectors)
    index = FlatIndex()
    for start in range(0, count, 50):  # the first part decides mean and step
        part = slice(start, start + 50)
        index.put(
            CaseVectors(
                *(
                    getattr(cases, name)[part]
                    for name in ("sequences", "ids", "study_ids", "embeddings", "labels")
                )
            )
        )
    assert index._codes is not None
    generator = np.random.default_rng(seed + 1)
    stored = vectors[generator.integers(count, size=queries)]
    if where == "near":
        stored = normalise(stored + 1e-3 * generator.normal(size=stored.shape))
    elif where == "elsewhere":
        stored = normalise(generator.normal(size=stored.shape))
    number = {"all": count, "more": count + 5}.get(k, k)
    asked = [Query(vector, number, wanted) for vector in stored]
    known = dict(zip(cases.ids, zip(cases.sequences, vectors, cases.labels, strict=True), strict=True))
    assert ask(index, asked) == [compare_all(known, query) for query in asked]


@pytest.mark.parametrize("dimension", [5, 64])  # FAISS multiplies whole numbers if it is a multiple of 16
@pytest.mark.parametrize("kind", KINDS)
def test_no_score_is_further_off_than_its_bound(kind, dimension):
    vectors = draw_vectors(kind, 2000, dimension, 3)
    codes = ByteCodes(faiss, vectors[:500])
    codes.add(vectors)
    for embedding in np.concatenate([vectors[:5], draw_vectors("random", 5, dimension, 4)]):
        query = codes._code_query(embedding)
        products, rows = codes._index.search(query.code[None], 2000)
        scores, rows = query.factor * products[0].astype(np.float64), rows[0]
        exact = (vectors[rows].astype(np.float64) - codes._mean) @ embedding.astype(np.float64)
        bound = codes._bound(query, codes._errors[:, rows].astype(np.float64))
        assert sorted(rows) == list(range(2000))
        assert np.all(np.abs(scores - exact) <= bound)


def test_few_candidates_are_left_of_many_rows(monkeypatch):
    """Otherwise the codes save no time."""
    monkeypatch.setattr(retrieval.codes, "_LEAST", 1024)
    vectors = draw_vectors("random", 20_000, 128, 0)
    codes = ByteCodes(faiss, vectors)
    codes.add(vectors)
    found = codes.find(draw_vectors("random", 20, 128, 1), 10)
    assert max(len(rows) for rows in found) < 400
    # The same among a tenth of the rows, none of which may be another.
    allowed = np.arange(20_000) % 10 == 3
    for rows in codes.find(draw_vectors("random", 20, 128, 1), 10, allowed):
        assert 10 <= len(rows) < 400
        assert allowed[rows].all()


def test_too_many_candidates_are_left_to_a_scan():
    codes = ByteCodes(faiss, draw_vectors("random", 1000, 16, 0))
    codes.add(draw_vectors("equal", 1000, 16, 1))
    assert codes.find(draw_vectors("equal", 1, 16, 1), 3) == [None]


def test_rows_that_the_codes_do_not_fit_are_coded_anew():
    index = FlatIndex()
    narrow = normalise(np.eye(1, 32) + 1e-3 * np.random.default_rng(0).normal(size=(100, 32)))
    index.put(make_cases(narrow))
    first = index._codes
    index.put(make_cases(draw_vectors("random", 50, 32, 1), 100, [f"new-{number}" for number in range(50)]))
    assert index._codes is first
    assert first.is_unfit
    index.put(make_cases(draw_vectors("random", 60, 32, 2), 150, [f"more-{number}" for number in range(60)]))
    assert index._codes is not first
    assert not index._codes.is_unfit
    assert len(index._codes) == 210


def test_codes_can_be_left_out():
    vectors = draw_vectors("random", 100, 16, 0)
    plain, coded = FlatIndex(codes=False), FlatIndex()
    for index in (plain, coded):
        index.put(make_cases(vectors))
    queries = [Query(vector, 7) for vector in draw_vectors("random", 30, 16, 1)]
    assert ask(plain, queries) == ask(coded, queries)
    assert (plain.facts.kind, plain.facts.code_bytes) == ("flat", 0)
    assert (coded.facts.kind, coded.facts.vector_bytes) == ("flat, 8-bit codes", 6400)
    assert 1600 <= coded.facts.code_bytes <= 1600 + 2 * 8 * 128


class IndexMachine(RuleBasedStateMachine):
    """Random changes of an index with codes, and the same in a dictionary."""

    @initialize(kind=st.sampled_from(KINDS))
    def start(self, kind):
        self.kind, self.index, self.cases, self.sequence = kind, FlatIndex(), {}, 0

    @rule(
        names=st.sets(st.integers(0, 99), min_size=1, max_size=40),
        kind=st.sampled_from(KINDS),
        seed=st.integers(0, 99),
    )
    def put(self, names, kind, seed):
        ids = [f"{number:02d}" for number in names]
        cases = make_cases(draw_vectors(kind, len(ids), 8, seed), self.sequence, ids)
        self.index.put(cases)
        self.sequence += len(ids)
        rows = zip(cases.sequences, cases.embeddings, cases.labels, strict=True)
        self.cases.update(zip(ids, rows, strict=True))

    @rule(names=st.sets(st.integers(0, 99), max_size=30))
    def remove(self, names):
        ids = [f"{number:02d}" for number in names]
        self.index.remove(ids)
        for name in ids:
            self.cases.pop(name, None)

    @rule()
    def rebuild(self):
        """What a restart does."""
        self.index = FlatIndex()
        rows = sorted((sequence, name) for name, (sequence, *_) in self.cases.items())
        for sequence, name in rows:
            self.index.put(make_cases(self.cases[name][1][None], sequence, [name]))

    @rule(seed=st.integers(0, 99), k=st.integers(1, 120), label=st.sampled_from([None, *LABELS]))
    def search(self, seed, k, label):
        wanted = CaseFilter(labels_any=frozenset({label} - {None}))
        query = Query(draw_vectors(self.kind, 1, 8, seed)[0], k, wanted)
        assert ask(self.index, [query]) == [compare_all(self.cases, query)]

    @invariant()
    def counts_agree(self):
        if hasattr(self, "index"):
            assert len(self.index) == len(self.cases)
            assert self.index._codes is None or len(self.index._codes) == len(self.index._rows)


IndexMachine.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=20)
TestIndexMachine = IndexMachine.TestCase
