"""The cases of one model in a Milvus database."""

import base64
import binascii
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ArtifactError, CxrError
from contract.training_data import WAYS
from retrieval.backend import FoundCase, FoundCases, ModelFacts, make_busy_error, make_late_error
from retrieval.cases import CaseRecord, UnknownCaseError
from retrieval.index import IndexFacts, Query
from retrieval.listing import Page, PageFiller
from retrieval.metrics import SidecarMetrics
from retrieval.milvus.candidates import Version, find_nearest
from retrieval.milvus.collection import CaseCollection, ReadRow, create_collection
from retrieval.milvus.expressions import join, quote, write_filter
from retrieval.milvus.rows import Sequences, require_storable, write_rows
from retrieval.requests import MAX_ID_CHARS, ListRequest, refuse_token, require_dimension
from retrieval.rows import CaseFilter

KIND: Final = "flat, in Milvus"
_READ_AT_ONCE: Final = 256  # cases of a list
_TOKEN: Final = b"id:"
_logger = logging.getLogger(__name__)


class MilvusModel:
    """The cases of one model: a collection, which the first case creates. Thread-safe."""

    def __init__(
        self,
        client: Any,
        metrics: SidecarMetrics,
        sequences: Sequences,
        max_waiting: int,
        collection: CaseCollection | None = None,
    ) -> None:
        """Take a connected `pymilvus.MilvusClient`.

        Args:
            client: The connection.
            metrics: Where searches and writes are measured.
            sequences: Gives the numbers of new versions.
            max_waiting: Largest number of searches at a time.
            collection: The collection, if there is one.
        """
        self._client = client
        self._metrics = metrics
        self._sequences = sequences
        self._max_waiting = max_waiting
        self._collection = collection
        self._waiting = 0
        self._waiting_lock = threading.Lock()
        self._change_lock = threading.Lock()
        self._damaged = frozenset[int]()  # sequence numbers
        self._facts = ModelFacts(IndexFacts(KIND))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model; "" before the first case."""
        return self._collection.fingerprint if self._collection else ""

    @property
    def dimension(self) -> int:
        """Number of values of an embedding; 0 before the first case."""
        return self._collection.dimension if self._collection else 0

    def load(self) -> None:
        """Let Milvus load the collection, if there is one."""
        if self._collection:
            self._collection.load()

    def count(self) -> int:
        """Return the number of stored cases, without those that are known to be damaged."""
        return self._collection.count(self._leave_out()) if self._collection else 0

    def count_kinds(self) -> dict[str, int]:
        """Return kind of embedding -> number of cases; "" for cases that do not state it."""
        if not self._collection:
            return {}
        rest = self._leave_out()
        counts = {kind: self._collection.count(join(f"kind == {quote(kind)}", rest)) for kind in ("", *WAYS)}
        return {kind: count for kind, count in counts.items() if count}

    def measure(self) -> ModelFacts:
        """Return what is known now; what was known last if Milvus does not answer."""
        try:
            rows = self.count()
        except CxrError:
            return self._facts
        index = IndexFacts(KIND, rows, vector_bytes=4 * rows * self.dimension)
        self._facts = ModelFacts(index, damaged=len(self._damaged), waiting=self._waiting)
        return self._facts

    def add(self, fingerprint: str, cases: Sequence[CaseRecord], embeddings: NDArray[np.float32]) -> int:
        """Store cases; see `retrieval.backend.ModelBackend`. When Milvus fails, some of them may be stored."""
        require_storable(cases)
        with self._change_lock, self._metrics.time_write("upsert"):
            collection = self._collection
            if collection is None:
                collection = create_collection(self._client, fingerprint, embeddings.shape[1])
                self._collection = collection
            require_dimension(embeddings.shape[1], collection.dimension)
            replaced = len(collection.find_known(case.id for case in cases))
            numbers = self._sequences.take(len(cases))
            collection.upsert(write_rows(fingerprint, cases, embeddings, numbers))
        return replaced

    def delete(self, ids: Sequence[str]) -> int:
        """Delete cases; return how many were stored."""
        with self._change_lock:
            known = self._collection.find_known(ids) if self._collection else set()
            if self._collection and known:
                self._collection.delete(sorted(known))
        return len(known)

    def get(self, case_id: str) -> CaseRecord:
        """Return one case. Raise UnknownCaseError if it is not stored."""
        for row in self._collection.read([case_id]) if self._collection else ():
            if row.stored is None:
                raise ArtifactError(f"{self._describe_row(row.sequence)} Index the case again.")
            return row.stored.record
        raise UnknownCaseError("No case with this id is stored.")

    def search(self, queries: Sequence[Query], timeout_s: float) -> list[FoundCases]:
        """Return the nearest cases; see `retrieval.backend.ModelBackend`."""
        if self._collection is None:
            return [FoundCases([], is_exact=True) for _ in queries]
        began = time.monotonic()
        with self._take_turn():
            is_repeated = False
            while (remaining_s := began + timeout_s - time.monotonic()) > 0:
                # A case changed in between, or is damaged: repeat the search without changes of this sidecar.
                with self._change_lock if is_repeated else nullcontext():
                    found = self._try_search(self._collection, queries, remaining_s)
                if found is not None:
                    self._metrics.search.observe(time.monotonic() - began)
                    self._metrics.batch.observe(len(queries))
                    return found
                is_repeated = True
        raise make_late_error(timeout_s)

    def read_page(self, asked: ListRequest) -> Page:
        """Return the next cases that the filter leaves, in the order of their ids."""
        page, last = PageFiller(asked), _parse_token(asked.page_token)
        while self._collection:
            limit = min(_READ_AT_ONCE, asked.page_size - len(page.records))
            rows = self._collection.read_after(last, limit, write_filter(asked.filter))
            for row in rows:
                last = row.id
                if row.stored is None:
                    self._note_damage([row])
                elif page.add(row.stored.record):
                    return Page(page.records, _write_token(last))
            if len(rows) < limit:
                break
        return Page(page.records, "")

    def describe_damage(self) -> str:
        """Return how many rows are damaged and what to do, as a sentence; "" if none is."""
        if not self._damaged:
            return ""
        return (
            f"{len(self._damaged)} cases of model {self.fingerprint[:12]} in Milvus differ from what was written and "
            "are left out. Index the cases again with `cxr index`."
        )

    def _try_search(
        self, collection: CaseCollection, queries: Sequence[Query], timeout_s: float
    ) -> list[FoundCases] | None:
        """Search, and read exactly the versions that were found; None if one of them is not there any more."""

        def propose(embeddings: NDArray[np.float32], size: int, wanted: CaseFilter) -> Any:
            return collection.propose(embeddings, size, write_filter(wanted, self._leave_out()), timeout_s)

        found = find_nearest(propose, queries)
        rows = collection.read(sorted({version.id for versions in found for version in versions}))
        self._note_damage([row for row in rows if row.stored is None])
        records = {
            (row.id, row.sequence): row.stored.record
            for row in rows
            if row.stored is not None and row.sequence not in self._damaged
        }
        if all((version.id, version.sequence) in records for versions in found for version in versions):
            return [_join(versions, records) for versions in found]
        return None

    def _note_damage(self, rows: Sequence[ReadRow]) -> None:
        new = {row.sequence for row in rows} - self._damaged
        for sequence in sorted(new):
            _logger.warning("%s It is left out.", self._describe_row(sequence))
        self._damaged |= new

    def _describe_row(self, sequence: int) -> str:
        return f"Row {sequence} of model {self.fingerprint[:12]} in Milvus differs from what was written."

    def _leave_out(self) -> str:
        """Return the expression of the rows that are not known to be damaged; "" if none is."""
        return f"sequence not in {sorted(self._damaged)}" if self._damaged else ""

    @contextmanager
    def _take_turn(self) -> Iterator[None]:
        with self._waiting_lock:
            if self._waiting >= self._max_waiting:
                raise make_busy_error(self._max_waiting)
            self._waiting += 1
        try:
            yield
        finally:
            with self._waiting_lock:
                self._waiting -= 1


def _join(versions: Sequence[Version], records: dict[tuple[str, int], CaseRecord]) -> FoundCases:
    cases = [FoundCase(records[version.id, version.sequence], version.score) for version in versions]
    return FoundCases(cases, is_exact=True)


def _write_token(last: str) -> str:
    return base64.urlsafe_b64encode(_TOKEN + last.encode()).decode()


def _parse_token(token: str) -> str:
    """Return the id after which a page begins; "" for the first page."""
    if not token:
        return ""
    try:
        data = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        last = data.removeprefix(_TOKEN).decode()
    except (UnicodeError, binascii.Error) as error:
        raise refuse_token() from error
    if not data.startswith(_TOKEN) or not 0 < len(last) <= MAX_ID_CHARS:
        raise refuse_token()
    return last
