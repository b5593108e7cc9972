"""What the index knows of each row beside its embedding: the case, and what a filter asks for.

A row is never changed. A case that is replaced or deleted leaves a dead row, which no search returns.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from contract.image.view import VIEWS
from contract.labels import LABEL_INDEX
from contract.training_data import WAYS
from retrieval.cases import CaseVectors

_Value = TypeVar("_Value", bound=np.generic)
_NONE: Final = ""
_VIEW_CODES: Final = {name: code for code, name in enumerate((_NONE, *VIEWS))}
_KIND_CODES: Final = {name: code for code, name in enumerate((_NONE, *WAYS))}
_SPARE_DEAD: Final = 1024


@dataclass(frozen=True)
class CaseFilter:
    """The cases that a search may return. An empty set allows every case.

    Attributes:
        labels_any: The case has at least one of these labels.
        labels_all: The case has all of these labels.
        labels_none: The case has none of these labels.
        views: The view of its first image is one of these, of `contract.image.view.VIEWS`.
        kinds: What its embedding was made from is one of these: "study", "image", "text".
        excluded_ids: Its id is none of these.
        excluded_study_ids: The id of its study is none of these.
    """

    labels_any: frozenset[str] = frozenset()
    labels_all: frozenset[str] = frozenset()
    labels_none: frozenset[str] = frozenset()
    views: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    excluded_ids: frozenset[str] = field(default=frozenset(), repr=False)
    excluded_study_ids: frozenset[str] = field(default=frozenset(), repr=False)


EVERYTHING: Final = CaseFilter()


class RowTable:
    """The rows of an index, in the order in which they were added. Only one thread at a time may use it."""

    def __init__(self) -> None:
        """Start without a row."""
        self.ids: list[str] = []
        self.sequences: list[int] = []
        self._studies: list[str] = []
        self._row_of: dict[str, int] = {}
        self._rows_of_study: dict[str, set[int]] = {}
        self._alive = np.zeros(0, dtype=bool)
        self._labels = np.zeros(0, dtype=np.uint32)  # one bit for each label
        self._views = np.zeros(0, dtype=np.uint8)
        self._kinds = np.zeros(0, dtype=np.uint8)
        self._alive_of_kind = [0] * len(_KIND_CODES)

    def __len__(self) -> int:
        """Return the number of rows, dead ones included."""
        return len(self.ids)

    @property
    def alive_count(self) -> int:
        """Number of rows that are not dead."""
        return len(self._row_of)

    @property
    def is_wasteful(self) -> bool:
        """Whether so many rows are dead that the index should be rebuilt."""
        return len(self) - self.alive_count > _SPARE_DEAD + self.alive_count // 2

    @property
    def byte_count(self) -> int:
        """Bytes of the arrays; the ids in Python's memory are not counted."""
        return sum(array.nbytes for array in (self._alive, self._labels, self._views, self._kinds))

    def append(self, cases: CaseVectors) -> None:
        """Add a row for each case. The row of an earlier case with the same id becomes dead."""
        self._grow(len(self) + len(cases.ids))
        count = len(cases.ids)
        labels = _encode_labels(cases.labels) if cases.labels else np.zeros(count, np.uint32)
        place = slice(len(self), len(self) + count)
        self._labels[place] = labels
        self._views[place] = [_VIEW_CODES.get(name, 0) for name in cases.views] or 0
        self._kinds[place] = [_KIND_CODES.get(name, 0) for name in cases.kinds] or 0
        for case_id, study_id, sequence in zip(cases.ids, cases.study_ids, cases.sequences, strict=True):
            self.remove([case_id])
            row = len(self.ids)
            self.ids.append(case_id)
            self.sequences.append(sequence)
            self._studies.append(study_id)
            self._row_of[case_id] = row
            self._rows_of_study.setdefault(study_id, set()).add(row)
            self._alive[row] = True
            self._alive_of_kind[self._kinds[row]] += 1

    def remove(self, ids: Iterable[str]) -> None:
        """Let the rows of cases die; unknown ids are ignored."""
        for case_id in ids:
            row = self._row_of.pop(case_id, None)
            if row is None:
                continue
            self._alive[row] = False
            self._alive_of_kind[self._kinds[row]] -= 1
            study = self._rows_of_study[self._studies[row]]
            study.discard(row)
            if not study:
                del self._rows_of_study[self._studies[row]]

    def allow(self, wanted: CaseFilter) -> NDArray[np.bool_] | None:
        """Return for each row whether a search may return it, (rows,) bool; None if it may return every row."""
        if wanted == EVERYTHING and self.alive_count == len(self):
            return None
        count = len(self)
        allowed = self._alive[:count].copy()
        labels = self._labels[:count]
        if wanted.labels_any:
            allowed &= (labels & _make_bits(wanted.labels_any)) != 0
        if wanted.labels_all:
            bits = _make_bits(wanted.labels_all)
            allowed &= (labels & bits) == bits
        if wanted.labels_none:
            allowed &= (labels & _make_bits(wanted.labels_none)) == 0
        if wanted.views:
            allowed &= np.isin(self._views[:count], [_VIEW_CODES[name] for name in wanted.views])
        if wanted.kinds:
            allowed &= np.isin(self._kinds[:count], [_KIND_CODES[name] for name in wanted.kinds])
        excluded = [row for name in wanted.excluded_ids if (row := self._row_of.get(name)) is not None]
        for study_id in wanted.excluded_study_ids:
            excluded += self._rows_of_study.get(study_id, ())
        allowed[excluded] = False
        return allowed

    def copy_alive(self) -> NDArray[np.bool_]:
        """Return for each row whether it is not dead, (rows,) bool."""
        return self._alive[: len(self)].copy()

    def count_kinds(self) -> dict[str, int]:
        """Return kind -> number of its rows that are not dead; "" for cases that do not state their kind."""
        return {
            name: self._alive_of_kind[code] for name, code in _KIND_CODES.items() if self._alive_of_kind[code]
        }

    def _grow(self, size: int) -> None:
        if size <= len(self._alive):
            return
        longer = max(size, 2 * len(self._alive))
        self._alive = _lengthen(self._alive, longer)
        self._labels = _lengthen(self._labels, longer)
        self._views = _lengthen(self._views, longer)
        self._kinds = _lengthen(self._kinds, longer)


def _lengthen(array: NDArray[_Value], size: int) -> NDArray[_Value]:
    longer = np.zeros(size, dtype=array.dtype)
    longer[: len(array)] = array
    return longer


def _make_bits(labels: Iterable[str]) -> np.uint32:
    return np.uint32(sum(1 << LABEL_INDEX[label] for label in set(labels) if label in LABEL_INDEX))


def _encode_labels(labels: Sequence[Sequence[str]]) -> NDArray[np.uint32]:
    known: dict[tuple[str, ...], np.uint32] = {}
    return np.array([known.setdefault(key := tuple(row), _make_bits(key)) for row in labels], np.uint32)
