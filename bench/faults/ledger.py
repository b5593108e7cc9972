"""A ledger outside of the sidecar: what it acknowledged, and what must therefore be stored after a fault.

Cases are written in groups. Each group belongs to one sender, which writes or deletes it with one request at a time.
After a fault, a group must be as the last acknowledged request left it, or as a later request without an answer meant
it: all of it, never a part.
"""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from client.retrieval import RetrievalTransport, StoredCase

MODEL: Final = "a" * 64  # a fingerprint
_DIMENSIONS: Final = 16


class Ledger:
    """Group -> version. 0: there is no such case."""

    def __init__(self, groups: Sequence[str], cases: int) -> None:
        """Take the names of all groups, each two numbers with a hyphen, and the number of cases of a group."""
        self.groups, self.cases = tuple(groups), cases
        self.acknowledged: dict[str, int] = {}
        self.writes = 0
        self._unanswered: dict[str, set[int]] = {}
        self._version = 0
        self._lock = threading.Lock()

    def begin(self, group: str, *, delete: bool) -> int:
        """Note a request that is about to be sent. Return the version that it writes; 0 for a deletion."""
        with self._lock:
            self._version += 1
            version = 0 if delete else self._version
            self._unanswered.setdefault(group, set()).add(version)
            return version

    def end(self, group: str, version: int) -> None:
        """Note the answer to the last request of a group."""
        with self._lock:
            self.acknowledged[group] = version
            self._unanswered.pop(group)
            self.writes += 1

    def compare(self, stored: Mapping[str, "Counter[int]"]) -> list[str]:
        """Return a sentence for each group that is not as it must be; then believe the store.

        No request may be open meanwhile.

        Args:
            stored: Group -> version -> number of its stored cases.
        """
        sentences = []
        for group in self.groups:
            versions = stored.get(group) or Counter({0: self.cases})
            allowed = {self.acknowledged.get(group, 0), *self._unanswered.get(group, ())}
            ((version, count), *others) = versions.most_common()
            if others or count != self.cases or version not in allowed:
                sentences.append(
                    f"group {group} holds {dict(versions)} (version: cases), allowed are {self.cases} cases of one "
                    f"version of {sorted(allowed)}"
                )
            self.acknowledged[group] = version
        self._unanswered.clear()
        return sentences


def list_ids(group: str, count: int) -> list[str]:
    """Return the ids of the cases of a group."""
    return [f"{group}-{place}" for place in range(count)]


def make_group(group: str, version: int, count: int) -> list[StoredCase]:
    """Return the cases of a group. Each version has other embeddings and reports."""
    seed = [int(part) for part in group.split("-")]
    vectors = np.random.default_rng([*seed, version]).normal(size=(count, _DIMENSIONS)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [
        StoredCase(name, group, vector, ("normal",), f"{version}", "")
        for name, vector in zip(list_ids(group, count), vectors, strict=True)
    ]


def read_groups(transport: RetrievalTransport, timeout_s: float) -> dict[str, "Counter[int]"]:
    """Return group -> version -> number of its stored cases, from their reports.

    Raises:
        ServiceError: The sidecar does not answer.
    """
    stored: dict[str, Counter[int]] = {}
    for case in transport.list_cases(timeout_s, MODEL, reports=True):
        stored.setdefault(case.study_id, Counter())[int(case.report)] += 1
    return stored
