"""What the index knows of each row beside its embedding: the case, and what a filter asks for.

A row is never changed. A case that is replaced or deleted leaves a dead row, which no search returns.
"""

import functools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from contract.image.view import VIEWS
from contract.labels import LABEL_INDEX
from contract.training_data import WAYS
from retrieval.cases import CaseRecord, CaseVectors

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

    def allows(self, case: CaseRecord) -> bool:
        """Whether the case counts."""
        labels = frozenset(case.labels)
        return (
            (not self.labels_any or bool(self.labels_any & labels))
            and self.labels_all <= labels
            and not self.labels_none & labels
            and (not self.views or case.view in self.views)
            and (not self.kinds or case.kind in self.kinds)
            and case.id not in self.excluded_ids
            and case.study_id not in self.excluded_study_ids
        )


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
        self._alive[place] = True
        for code, added in enumerate(np.bincount(self._kinds[place], minlength=len(_KIND_CODES)).tolist()):
            self._alive_of_kind[code] += added
        first = len(self)
        self.ids.extend(cases.ids)
        self.sequences.extend(cases.sequences)
        self._studies.extend(cases.study_ids)
        for row, (case_id, study_id) in enumerate(zip(cases.ids, cases.study_ids, strict=True), first):
            if case_id in self._row_of:
                self.remove([case_id])
            self._row_of[case_id] = row
            self._rows_of_study.setdefault(study_id, set()).add(row)

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

    def remove_versions(self, sequences: Collection[int]) -> None:
        """Let the rows of these versions of cases die."""
        wanted = set(sequences)
        self.remove(
            [
                case_id
                for row, (case_id, sequence) in enumerate(zip(self.ids, self.sequences, strict=True))
                if sequence in wanted and self._row_of.get(case_id) == row
            ]
        )

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
    return np.array([_make_known_bits(tuple(row)) for row in labels], np.uint32)


_make_known_bits = functools.lru_cache(maxsize=4096)(_make_bits)
