"""An index that starts flat and may then answer by an approximate part, whose embeddings are in a file.

Row numbers are those of the table of rows, of the file and of the part. So a case that was replaced or deleted, at any
time, is dead for each of them. Candidates of the part are compared exactly, as those of the flat index.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.cases import CaseVectors
from retrieval.index import FlatIndex, IndexFacts, Query
from retrieval.parts import Part
from retrieval.recall import find_rows
from retrieval.vector_file import VectorFile

_ADDED_AT_ONCE: Final = 4096


@dataclass(frozen=True)
class Snapshot:
    """The rows of an index at one time: the first rows of the file, and (rows,) bool whether each one is alive."""

    vectors: VectorFile
    alive: NDArray[np.bool_] = field(repr=False)


class KindIndex(FlatIndex):
    """Finds near embeddings. Only one thread at a time may use it; `Snapshot` may be read meanwhile."""

    def __init__(self, directory: Path, *, codes: bool = True) -> None:
        """Make an empty index on CPU, which is flat.

        Args:
            directory: Where the file of embeddings is created.
            codes: As in `FlatIndex`.
        """
        super().__init__("cpu", codes=codes)
        self._directory = directory
        self._vectors: VectorFile | None = None
        self._part: Part | None = None

    @property
    def dimension(self) -> int:
        """D, or 0 before the first case."""
        return 0 if self._vectors is None else self._vectors.dimension

    @property
    def row_count(self) -> int:
        """Number of rows, dead ones included."""
        return len(self._rows)

    @property
    def facts(self) -> IndexFacts:
        """What the index holds now."""
        file_bytes = 0 if self._vectors is None else self._vectors.byte_count
        if self._part is None:
            return replace(super().facts, file_bytes=file_bytes)
        return IndexFacts(
            kind=self._part.name,
            rows=len(self),
            approximate_rows=len(self),
            code_bytes=self._part.byte_count,
            file_bytes=file_bytes,
            rows_by_kind=self._rows.count_kinds(),
        )

    @property
    def part(self) -> Part | None:
        """The approximate part that answers; None while the index is flat."""
        return self._part

    def put(self, cases: CaseVectors) -> None:
        """Add cases. A case replaces the one with the same id."""
        if self._vectors is None:
            self._vectors = VectorFile(self._directory, cases.embeddings.shape[1])
        self._vectors.append(cases.embeddings)
        if self._part is None:
            super().put(cases)
        else:
            self._part.add(cases.embeddings)
            self._rows.append(cases)

    def take_snapshot(self) -> Snapshot:
        """Return the present rows, at least one, for a thread that trains a part."""
        assert self._vectors is not None
        return Snapshot(self._vectors, self._rows.copy_alive())

    def holds(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot is one of this index."""
        return snapshot.vectors is self._vectors

    def adopt(self, part: Part) -> None:
        """Answer by a part from now on. Rows that came after its snapshot are added to it first."""
        assert self._vectors is not None
        for start in range(len(part), len(self._rows), _ADDED_AT_ONCE):
            part.add(self._vectors.view(start, start + _ADDED_AT_ONCE))
        self._part = part
        self._index = self._codes = None

    def _find(
        self, queries: Sequence[Query], depth: int, allowed: NDArray[np.bool_] | None
    ) -> tuple[list[NDArray[np.int64]], bool]:
        if self._part is None:
            return super()._find(queries, depth, allowed)
        embeddings = np.stack([query.embedding for query in queries])
        rows, is_exact = find_rows(self._part, embeddings, depth, allowed)
        return list(rows), is_exact

    def _read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        if self._part is None:
            return super()._read(rows)
        assert self._vectors is not None
        return self._vectors.read(rows)
