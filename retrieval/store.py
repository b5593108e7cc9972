"""The durable case store. The search index is built from it and can always be rebuilt.

The store is one SQLite file in a directory that only one server at a time may open. A write goes into the WAL, and is
durable after `sync`: from then on it survives a crash and a power failure. A replaced case gets a new sequence number,
so a sequence number always stands for one version of one case.

SQLite checks the structure of its file but not the content, so it does not notice a flipped bit in a report or an
embedding. So each row has a checksum (8 bytes of a SHA-256 over the whole row with its sequence number). It is checked
when the index is built and whenever a case is returned. `meta` has a checksum too, and the number of rows.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from contract.bundle import require_same_fingerprint
from contract.errors import ArtifactError
from contract.strings import require_strings
from retrieval.cases import CaseRecord, CaseVectors, DamagedRowsError, UnknownCaseError
from retrieval.checks import select_intact
from retrieval.connection import begin, connect
from retrieval.copying import copy_database
from retrieval.damage import describe_rows, report_damage, report_row
from retrieval.directory import DATABASE, find_wal, lock_directory
from retrieval.meta import add_rows, read_meta, states_rows, write_meta
from retrieval.opening import prepare_store, require_present
from retrieval.schema import COUNT_ROWS, FIRST_ROW, PAGE, SELECT
from retrieval.syncing import GroupSync
from retrieval.table import (
    MAX_PARAMETERS,
    delete_rows,
    find_next_sequence,
    insert_rows,
    join_cases,
    make_record,
    make_vectors,
    read_record,
)
from retrieval.wal import WalKeeper

_PAGE_CASES: Final = 1024


class CaseStore:
    """The cases of one model in one directory. Thread-safe."""

    def __init__(self, directory: Path | str, *, fingerprint: str | None = None) -> None:
        """Open the store, or create an empty one.

        Args:
            directory: Created (mode 0700) if missing.
            fingerprint: Fingerprint of the model that the cases must belong to. None: the model of the stored or the
                first cases.

        Raises:
            ConfigError: Another server has the store open, or the directory cannot be used.
            FingerprintError: The store holds cases of another model. The message names both.
            ArtifactError: The file is not a case store, is damaged or has another version.
        """
        self.directory = Path(directory)
        self._path = self.directory / DATABASE
        self._required = fingerprint
        self._damaged: set[int] = set()
        # Number of changes so far; rows that are read while it changes are not one consistent state.
        self._changes = 0
        self._read_lock, self._write_lock = threading.Lock(), threading.Lock()
        with contextlib.ExitStack() as cleanup:
            lock = lock_directory(self.directory)
            cleanup.callback(os.close, lock)
            with self._translate("opened"):
                self._writer = cleanup.enter_context(contextlib.closing(connect(self._path)))
                prepare_store(self._writer, self._path)
                # A second connection, so that a search does not wait for a write to the disk.
                self._reader = cleanup.enter_context(contextlib.closing(connect(self._path)))
                self._reader.execute("PRAGMA query_only = ON")
                meta = read_meta(self._reader)
                wal = find_wal(self._path)
                self._sync = cleanup.enter_context(contextlib.closing(GroupSync(wal)))
                self._wal = WalKeeper(self._writer, wal, self._sync)
            self._fingerprint, self._dimension = require_present(self._path, meta)
            if self._fingerprint and fingerprint:
                require_same_fingerprint(
                    fingerprint,
                    self._fingerprint,
                    expected_from="the served one",
                    found_from=f"The case store {self.directory}",
                )
            self._cleanup = cleanup.pop_all()

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model of the stored cases; "" before the first case."""
        return self._fingerprint

    @property
    def dimension(self) -> int:
        """Number of values of an embedding; 0 before the first case."""
        return self._dimension

    def require_fingerprint(self, fingerprint: str, *, found_from: str) -> None:
        """Raise FingerprintError unless the store holds cases of this model or is empty."""
        expected = self._fingerprint or self._required
        if expected:
            require_same_fingerprint(
                expected, fingerprint, expected_from="this case store", found_from=found_from
            )

    def reserve(self, fingerprint: str) -> None:
        """Reserve an empty store for one model. A store that has a model is not changed."""
        self._required = self._required or self._fingerprint or fingerprint

    def belongs_to(self, fingerprint: str) -> bool:
        """Whether the store holds, or is reserved for, cases of this model."""
        return (self._fingerprint or self._required) == fingerprint

    def count(self) -> int:
        """Return the number of stored cases without the known damaged ones."""
        with self._read_lock, self._translate("read"):
            return int(self._reader.execute("SELECT COUNT(*) FROM cases").fetchone()[0]) - len(self._damaged)

    def measure_file(self) -> int:
        """Return the size of the store's file and of its WAL, in bytes."""
        paths = (self._path, find_wal(self._path))
        return sum(path.stat().st_size for path in paths if path.exists())

    @property
    def damaged(self) -> tuple[int, ...]:
        """Sequence numbers of the damaged rows among the rows that were read."""
        return tuple(sorted(self._damaged))

    def describe_damage(self) -> str:
        """Return the damaged row numbers and what to do, as a sentence without case ids; "" if no row is damaged."""
        return describe_rows(self._path, self.damaged)

    def remove_damaged(self) -> int:
        """Remove the known damaged rows and return their number."""
        with self._write_lock, self._translate("written"):
            with begin(self._writer) as writer:
                rows = [(number,) for number in self._damaged]
                writer.executemany("DELETE FROM cases WHERE sequence = ?", rows)
                self._write_meta()
            self._sync.note()
            self._wal.empty()
        self._damaged.clear()
        return len(rows)

    def put(
        self, fingerprint: str, cases: Sequence[CaseRecord], embeddings: NDArray[np.float32]
    ) -> tuple[CaseVectors, int]:
        """Store all cases, or none. A case replaces the one with the same id.

        Args:
            fingerprint: Fingerprint of the model that made the embeddings.
            cases: N cases with N different ids.
            embeddings: (N, D) float32 of unit length.

        Returns:
            The data for the index, and the number of replaced cases. The cases are durable after `sync`.

        Raises:
            FingerprintError: The store holds cases of another model.
            ArtifactError: The disk is full or failed. No case was stored.
        """
        self.require_fingerprint(fingerprint, found_from="the request")
        blobs = [row.tobytes() for row in np.ascontiguousarray(embeddings, dtype="<f4")]
        with self._write_lock, self._translate("written"):
            with begin(self._writer) as writer:
                replaced = delete_rows(writer, [case.id for case in cases])
                first = find_next_sequence(writer)
                sequences = list(range(first, first + len(cases)))
                insert_rows(writer, fingerprint, sequences, cases, blobs)
                self._write_meta(fingerprint, int(embeddings.shape[1]), added=sequences, removed=replaced)
            self._sync.note()
            self._wal.shorten()
        self._forget_damage()
        self._fingerprint, self._dimension = fingerprint, int(embeddings.shape[1])
        return join_cases(sequences, cases, embeddings), len(replaced)

    def observe_syncs(self, observe: Callable[[float], object]) -> None:
        """Call a function with the seconds of each fsync."""
        self._sync.observe = observe

    def sync(self) -> None:
        """Return when all that was written before is durable. ArtifactError: the disk failed."""
        self._sync.wait()

    def delete(self, ids: Iterable[str]) -> int:
        """Delete all cases, or none, and return the number of deleted ones. Unknown ids are ignored. See `sync`.

        Raises:
            ArtifactError: The disk failed. No case was deleted.
        """
        named = require_strings(ids, "ids")
        with self._write_lock, self._translate("written"):
            with begin(self._writer) as writer:
                deleted = delete_rows(writer, named)
                self._write_meta(removed=deleted)
            self._sync.note()
            self._forget_damage()
            self._wal.empty()  # it still holds the deleted reports
        return len(deleted)

    def get(self, case_id: str) -> CaseRecord:
        """Return one case. Raise UnknownCaseError if it is not stored."""
        with self._read_lock, self._translate("read"):
            row = self._reader.execute(SELECT + "id = ?", (case_id,)).fetchone()
        if row is None:
            raise UnknownCaseError("No case with this id is stored.")
        if (record := read_record(row)) is None:
            raise report_row(self._path, row[0])
        return record

    def get_versions(self, sequences: Iterable[int]) -> dict[int, CaseRecord]:
        """Return the cases with these sequence numbers, without those that were replaced or deleted meanwhile.

        Raises:
            DamagedRowsError: Rows differ from what was written. They count as damaged from now on.
            ArtifactError: The file cannot be read.
        """
        numbers = sorted(set(sequences))
        records: dict[int, CaseRecord] = {}
        damaged = set[int]()
        for start in range(0, len(numbers), MAX_PARAMETERS):
            part = numbers[start : start + MAX_PARAMETERS]
            statement = SELECT + f"sequence IN ({','.join('?' * len(part))})"
            with self._read_lock, self._translate("read"):
                rows = self._reader.execute(statement, part).fetchall()
            for row in rows:
                if (record := read_record(row)) is None:
                    damaged.add(row[0])
                else:
                    records[row[0]] = record
        if damaged:
            self._damaged = self._damaged | damaged
            raise DamagedRowsError(str(report_row(self._path, min(damaged))), frozenset(damaged))
        return records

    def read_named(self, ids: Sequence[str]) -> tuple[list[CaseRecord], NDArray[np.float32]]:
        """Return the intact cases with these ids, in any order, and their embeddings, (N, D) float32.

        Raises:
            ArtifactError: The file cannot be read.
        """
        rows: list[tuple[Any, ...]] = []
        for start in range(0, len(ids), MAX_PARAMETERS):
            part = ids[start : start + MAX_PARAMETERS]
            with self._read_lock, self._translate("read"):
                rows += self._reader.execute(SELECT + f"id IN ({','.join('?' * len(part))})", part)
        intact = select_intact(rows, self._fingerprint, self._dimension)
        vectors = make_vectors(intact).embeddings if intact else np.zeros((0, self._dimension), np.float32)
        return [make_record(row) for row in intact], vectors

    def read_vectors(self) -> Iterator[CaseVectors]:
        """Yield every intact case in writing order, in batches of at most 1024; record the damaged ones.

        Raises:
            ArtifactError: Cases are missing, or the file cannot be read.
        """
        statement = SELECT + PAGE
        changes, last, damaged = self._changes, FIRST_ROW, set[int]()
        while True:
            with self._read_lock, self._translate("read"):
                rows = self._reader.execute(statement, (last, _PAGE_CASES)).fetchall()
            if not rows:
                break
            intact = select_intact(rows, self._fingerprint, self._dimension)
            damaged |= {row[0] for row in rows} - {row[0] for row in intact}
            if intact:
                yield make_vectors(intact)
            last = rows[-1][0]
        if changes == self._changes:
            self._damaged = damaged
            self._require_all_rows()

    def read_rows(self, after: int, limit: int) -> list[tuple[int, CaseRecord | None]]:
        """Return the number and the case of the rows after a row, at most `limit`; None for a damaged one.

        Raises:
            ArtifactError: The file cannot be read.
        """
        with self._read_lock, self._translate("read"):
            rows = self._reader.execute(SELECT + PAGE, (after, limit)).fetchall()
        intact = {row[0]: row for row in select_intact(rows, self._fingerprint, self._dimension)}
        return [(row[0], make_record(row) if row[0] in intact else None) for row in rows]

    def open_copy(self, is_wanted: Callable[[], bool]) -> BinaryIO:
        """Return a file with the store as it is now, without later changes. When it is closed, nothing is left of it.

        Args:
            is_wanted: Whether to go on copying.

        Raises:
            ArtifactError: The file cannot be copied, such as on a full disk.
            CancelledError: The copy is not wanted any more.
        """
        try:
            with self._translate("copied"), contextlib.closing(connect(self._path)) as source:
                return copy_database(source, self.directory, is_wanted)
        finally:
            with self._write_lock:
                if self._wal.holds_deleted:  # what was deleted meanwhile
                    self._wal.empty()

    def empty_wal_again(self) -> None:
        """Empty the WAL if it still holds deleted reports, unless a write is under way."""
        if self._wal.holds_deleted and self._write_lock.acquire(blocking=False):
            try:
                self._wal.shorten()
            finally:
                self._write_lock.release()

    def compact(self) -> None:
        """Write the file anew without gaps. ArtifactError: the disk is full or failed, and nothing was changed."""
        with self._write_lock, self._translate("compacted"):
            self._writer.execute("VACUUM")
            self._sync.note()
            self._wal.empty()

    def close(self) -> None:
        """Close the file, so that another server can open it. May be called repeatedly."""
        with self._write_lock, self._read_lock:
            self._cleanup.close()

    def __enter__(self) -> "CaseStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_meta(
        self,
        fingerprint: str | None = None,
        dimension: int | None = None,
        *,
        added: Sequence[int] | None = None,
        removed: Sequence[int] | None = None,
    ) -> None:
        """Write `meta` at the end of a transaction that changes rows.

        The rows are counted again if neither `added` nor `removed` is given, or if a row is damaged.
        """
        changes = (
            None if self._damaged or (added is None and removed is None) else (added or (), removed or ())
        )
        write_meta(
            self._writer,
            self._fingerprint if fingerprint is None else fingerprint,
            self._dimension if dimension is None else dimension,
            None if changes is None else add_rows(self._writer, *changes),
        )

    def _require_all_rows(self) -> None:
        """Raise ArtifactError if there are too few or too many rows and no damaged row explains it."""
        with self._read_lock, self._translate("read"):
            count, total = self._reader.execute(COUNT_ROWS).fetchone()
            (stated,) = self._reader.execute("SELECT value FROM meta WHERE key = 'rows'").fetchone() or ("",)
        if not states_rows(stated, count, total, damaged=bool(self._damaged)):
            raise report_damage(self._path, "cases are missing, or there are extra ones")

    def _forget_damage(self) -> None:
        """Record a change. A damaged row that was replaced or deleted no longer counts as damaged."""
        self._changes += 1
        if self._damaged:
            present = {number for (number,) in self._writer.execute("SELECT sequence FROM cases")}
            self._damaged &= present

    @contextlib.contextmanager
    def _translate(self, action: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ArtifactError(f"The case store {self._path} cannot be {action}: {error}.") from error
        except OSError as error:
            raise ArtifactError(
                f"The case store {self._path} cannot be {action}: {error.strerror}."
            ) from error
        except UnicodeDecodeError as error:  # SQLite quotes a damaged schema in its message
            raise report_damage(self._path, "its schema differs from what was written") from error
