"""The files of a case store as `retrieval.migrating` reads and writes them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.cases import CaseRecord
from retrieval.checks import compute_case_checksum
from retrieval.directory import MODELS, list_models
from retrieval.store import CaseStore


class FileShelf:
    """The stores of all models in a directory."""

    def __init__(self, directory: Path) -> None:
        """Open the stores. Raise ConfigError if a server has the directory open, ArtifactError if one is damaged."""
        self._directory = directory
        with ExitStack() as cleanup:
            self._home = cleanup.enter_context(CaseStore(directory))  # the lock keeps servers out
            paths = list_models(directory)
            self._others = {
                path.name: cleanup.enter_context(CaseStore(path, fingerprint=path.name)) for path in paths
            }
            self._cleanup = cleanup.pop_all()

    def list_models(self) -> list[str]:
        """Return the fingerprints of the models that have cases."""
        stores = [self._home, *self._others.values()]
        return [store.fingerprint for store in stores if store.fingerprint]

    def count(self, model: str) -> int:
        """Return the number of rows of a model, damaged ones included."""
        store = self._find(model)
        return store.count() + len(store.damaged) if store else 0

    def read(
        self, model: str, size: int
    ) -> Iterator[tuple[list[CaseRecord], NDArray[np.float32], list[str]]]:
        """Yield the intact cases of a model in the order in which they were stored, in batches of about `size`."""
        store = self._find(model)
        for vectors in store.read_vectors() if store else ():
            records = store.get_versions(vectors.sequences) if store else {}
            for start in range(0, len(vectors.sequences), size):
                part = slice(start, start + size)
                cases = [records[sequence] for sequence in vectors.sequences[part]]
                yield cases, vectors.embeddings[part], _sum_up(model, cases, vectors.embeddings[part])

    def find(self, model: str, ids: Sequence[str]) -> dict[str, str]:
        """Return id -> checksum of those cases that are stored and intact."""
        if (store := self._find(model)) is None:
            return {}
        records, embeddings = store.read_named(ids)
        sums = _sum_up(model, records, embeddings)
        return {record.id: each for record, each in zip(records, sums, strict=True)}

    def write(self, model: str, records: Sequence[CaseRecord], embeddings: NDArray[np.float32]) -> None:
        """Store cases durably."""
        store = self._find(model) or self._make(model)
        store.put(model, records, embeddings)
        store.sync()

    def close(self) -> None:
        """Close the stores."""
        self._cleanup.close()

    def _find(self, model: str) -> CaseStore | None:
        return self._home if self._home.fingerprint == model else self._others.get(model)

    def _make(self, model: str) -> CaseStore:
        if not self._home.fingerprint:
            return self._home
        store = CaseStore(self._directory / MODELS / model, fingerprint=model)
        self._others[model] = self._cleanup.enter_context(store)
        return store


def _sum_up(model: str, records: Sequence[CaseRecord], embeddings: NDArray[np.float32]) -> list[str]:
    return [
        compute_case_checksum(model, record, row) for record, row in zip(records, embeddings, strict=True)
    ]
