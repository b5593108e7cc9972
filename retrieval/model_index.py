"""The cases of one model in files of this machine: the durable store, and the search index built from it."""

import logging
import threading
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.backend import FoundCase, FoundCases, ModelFacts
from retrieval.cases import CaseRecord, DamagedRowsError
from retrieval.index import Matches, Query
from retrieval.listing import Page, read_page
from retrieval.metrics import SidecarMetrics
from retrieval.requests import ListRequest, require_dimension
from retrieval.store import CaseStore
from retrieval.worker import IndexThread

_logger = logging.getLogger(__name__)


class ModelIndex:
    """The cases of one model: the store, the search index built from it, and a lock for changes in both."""

    def __init__(self, store: CaseStore, index: IndexThread, metrics: SidecarMetrics) -> None:
        """Take an open store and its index, which `index.start` builds."""
        self.store = store
        self.index = index
        self._metrics = metrics
        # Only one change at a time, so that store and index change in the same order.
        self.change_lock = threading.Lock()

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model; "" before the first case."""
        return self.store.fingerprint

    @property
    def dimension(self) -> int:
        """Number of values of an embedding; 0 before the first case."""
        return self.store.dimension

    def count(self) -> int:
        """Return the number of stored cases, without those that are known to be damaged."""
        self.store.empty_wal_again()
        return self.store.count()

    def count_kinds(self) -> dict[str, int]:
        """Return kind of embedding -> number of cases; "" for cases that do not state it."""
        return self.index.facts.rows_by_kind

    def measure(self) -> ModelFacts:
        """Return what is known now."""
        return ModelFacts(
            index=self.index.facts,
            kind=self.index.kind_state,
            damaged=len(self.store.damaged),
            waiting=self.index.waiting,
            store_bytes=self.store.measure_file(),
        )

    def add(self, fingerprint: str, cases: Sequence[CaseRecord], embeddings: NDArray[np.float32]) -> int:
        """Store all cases, or none, and add them to the index. See `retrieval.backend.ModelBackend`."""
        with self.change_lock:
            # Another request may have set the dimension meanwhile.
            require_dimension(embeddings.shape[1], self.store.dimension)
            with self._metrics.time_write("upsert"):
                vectors, replaced = self.store.put(fingerprint, cases, embeddings)
            changed = self.index.submit(added=vectors)
        # Meanwhile the next request may write, and its fsync may be the same.
        self.store.sync()
        changed.result()
        return replaced

    def delete(self, ids: Sequence[str]) -> int:
        """Delete cases; return how many were stored."""
        with self.change_lock:
            deleted = self.store.delete(ids)
            self.index.change(removed=ids)
        self.store.sync()
        return deleted

    def search(self, queries: Sequence[Query], timeout_s: float) -> list[FoundCases]:
        """Search, and read the records of exactly the case versions that the search returned.

        A row that was damaged since the start is left out of this search and all later ones.
        """
        deadline = time.monotonic() + timeout_s
        try:
            matches, records = self._find_versions(queries, deadline)
        except DamagedRowsError as error:
            _logger.warning("%s %d rows are left out.", error, len(error.rows))
            self.index.change(damaged=error.rows)
        else:
            return [_join(row, records) for row in matches]
        return self.search(queries, deadline - time.monotonic())

    def read_page(self, asked: ListRequest) -> Page:
        """Return the next cases that the filter leaves, in the order in which they were stored."""
        return read_page(self.store, asked)

    def close(self) -> None:
        """End the thread and close the store."""
        self.index.close()
        self.store.close()

    def _find_versions(
        self, queries: Sequence[Query], deadline: float
    ) -> tuple[list[Matches], dict[int, CaseRecord]]:
        matches, records = self._find(queries, deadline)
        if all(match.sequence in records for row in matches for match in row):
            return matches, records
        with self.change_lock:  # a case changed in between: repeat the search under the lock
            return self._find(queries, deadline)

    def _find(self, queries: Sequence[Query], deadline: float) -> tuple[list[Matches], dict[int, CaseRecord]]:
        matches = self.index.search(queries, max(0.0, deadline - time.monotonic()))
        return matches, self.store.get_versions(match.sequence for row in matches for match in row)


def _join(matches: Matches, records: dict[int, CaseRecord]) -> FoundCases:
    cases = [FoundCase(records[match.sequence], match.score) for match in matches]
    return FoundCases(cases, is_exact=matches.is_exact)
