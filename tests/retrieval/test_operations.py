"""Any order of adding, replacing, deleting, searching and restarting, against a dictionary that compares everything."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from retrieval.builder import IndexPlan
from retrieval.cases import CaseRecord
from retrieval.index import Query
from retrieval.indexes import CaseIndexes
from retrieval.kinds import KINDS, parse_kind
from retrieval.rows import CaseFilter

D, LEAST = 8, 24
MODEL = "a" * 64
# As many lists as the few cases allow; few probes, so that a search does not read them all.
CHOSEN = {
    "flat": "flat",
    "hnsw": "hnsw:links=4,ef=8",
    "ivf_flat": "ivf_flat:lists=4,probes=1",
    "sq8": "sq8:lists=4,probes=2",
    "ivf_pq": "ivf_pq:lists=4,probes=2,bytes=4",
    "rabitq": "rabitq:lists=4,probes=2,bits=1",
}
numbers = st.integers(0, 59)
LABELS = ("cardiac", "pleural", "normal")


def make_vector(seed: int) -> np.ndarray:
    """(D,) float32 of unit length; some seeds share a vector, so that scores tie."""
    vector = np.random.default_rng(seed % 40).normal(size=D)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class Operations(RuleBasedStateMachine):
    """The store and its index beside a dictionary: id -> (study, labels, vector)."""

    kind = "flat"

    def __init__(self):
        super().__init__()
        self.place = TemporaryDirectory()
        self.known: dict[str, tuple[str, tuple[str, ...], np.ndarray]] = {}
        self.open()

    def open(self):
        plan = IndexPlan(parse_kind(CHOSEN[self.kind]), recall_floor=0.0, growth=0.5, least_cases=LEAST)
        self.indexes = CaseIndexes(Path(self.place.name), threads=1, plan=plan)
        self.indexes.start().result(30)

    def teardown(self):
        self.indexes.close()
        self.place.cleanup()

    @initialize(count=st.integers(0, 40))
    def fill(self, count):
        if count:
            self.add(list(range(count)), 0)
            self.wait()

    @rule(chosen=st.lists(numbers, min_size=1, max_size=12, unique=True), seed=st.integers(0, 99))
    def add(self, chosen, seed):
        cases = [
            CaseRecord(f"{number:02d}", f"s{number % 7}", (LABELS[(number + seed) % 3],)) for number in chosen
        ]
        vectors = np.stack([make_vector(number + seed) for number in chosen])
        entry = self.indexes.find_or_make(MODEL)
        with entry.change_lock:
            added, replaced = entry.store.put(MODEL, cases, vectors)
            entry.index.change(added=added)
        assert replaced == sum(case.id in self.known for case in cases)
        for case, vector in zip(cases, vectors, strict=True):
            self.known[case.id] = (case.study_id, case.labels, vector)

    @rule(chosen=st.lists(numbers, min_size=1, max_size=20, unique=True))
    def delete(self, chosen):
        ids = [f"{number:02d}" for number in chosen]
        assert self.indexes.delete(ids) == sum(self.known.pop(name, None) is not None for name in ids)

    @rule()
    def wait(self):
        while self.indexes.home.index.kind_state.state == "building":
            time.sleep(0.002)

    @rule()
    def restart(self):
        self.indexes.close()
        self.open()

    @rule(
        seed=st.integers(0, 99), k=st.integers(1, 50), label=st.sampled_from((None, *LABELS)), study=numbers
    )
    def search(self, seed, k, label, study):
        excluded = frozenset({f"s{study}"})
        wanted = CaseFilter(frozenset({label} if label else ()), excluded_study_ids=excluded)
        vector = make_vector(seed)
        scores = {
            name: np.float32(np.clip((other.astype(np.float64) * vector.astype(np.float64)).sum(), -1, 1))
            for name, (own, labels, other) in self.known.items()
            if own not in excluded and (label is None or label in labels)
        }
        entry = self.indexes.home
        answer = entry.index.search([Query(vector, k, wanted)], 30)[0]
        records = entry.store.get_versions(match.sequence for match in answer)
        found = [(-match.score, records[match.sequence].id) for match in answer]
        assert len(found) == len(set(found)) == min(k, len(scores))
        assert found == [(-scores[name], name) for _, name in found]
        assert found == sorted(found)
        if answer.is_exact:
            assert found == sorted((-score, name) for name, score in scores.items())[:k]

    @invariant()
    def count(self):
        assert self.indexes.home.index.facts.rows == len(self.known)
        assert self.kind != "flat" or self.indexes.home.index.facts.approximate_rows == 0


def run(name: str, examples: int, steps: int, monkeypatch) -> None:
    monkeypatch.setattr("retrieval.recall.FEW_ROWS", 3)  # otherwise a filter compares all of so few cases
    machine = type("Machine", (Operations,), {"kind": name})
    limits = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    run_state_machine_as_test(machine, settings=limits)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_answers_as_a_dictionary(name, monkeypatch):
    run(name, 4, 15, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_answers_as_a_dictionary_for_long(name, monkeypatch):
    run(name, 40, 40, monkeypatch)
