"""The durable case store, which is the truth: the search index is derived from it and can always be rebuilt.

One SQLite file (WAL, synchronous=FULL: a write that was answered survives a crash and a power cut) in a
directory that one server at a time may open. A case that is replaced gets a new sequence number, so a
sequence number stands for one version of one case, for ever.
"""

import contextlib
import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.bundle import require_same_fingerprint
from contract.errors import ArtifactError, ConfigError, FingerprintError, InputError
from contract.strings import require_strings

DATABASE: Final = "cases.sqlite"
LOCK: Final = "lock"
SCHEMA_VERSION: Final = 1
LENGTH_TOLERANCE: Final = 1e-3  # how far from 1 the length of an embedding may be
_APPLICATION_ID: Final = 0x63787273  # "cxrs", in the file's header (SQLite: PRAGMA application_id)
_BUSY_TIMEOUT_S: Final = 5.0
_PAGE_CASES: Final = 1024
_MAX_PARAMETERS: Final = 500  # SQLite before 3.32 allows 999 in one statement
# The embedding comes last: reading a case's text then does not touch the pages its embedding overflows to.
_SCHEMA: Final = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE cases (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        study_id TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        labels TEXT NOT NULL,
        report TEXT NOT NULL,
        image_ref TEXT NOT NULL,
        embedding BLOB NOT NULL
    )""",
)
_INSERT: Final = (
    "INSERT INTO cases (id, study_id, fingerprint, labels, report, image_ref, embedding) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_SELECT: Final = "SELECT sequence, id, study_id, labels, report, image_ref FROM cases WHERE "


class UnknownCaseError(InputError):
    """No case of this id is stored."""


@dataclass(frozen=True)
class CaseRecord:
    """What is known about a case beside its embedding; never printed, because it is a patient's."""

    id: str = field(repr=False)
    study_id: str = field(repr=False)
    labels: tuple[str, ...] = field(default=(), repr=False)
    report: str = field(default="", repr=False)
    image_ref: str = field(default="", repr=False)


@dataclass(frozen=True)
class CaseVectors:
    """What the index needs of N cases; `embeddings` is (N, D) float32 of unit length."""

    sequences: Sequence[int]
    ids: Sequence[str] = field(repr=False)
    study_ids: Sequence[str] = field(repr=False)
    embeddings: NDArray[np.float32] = field(repr=False)


class CaseStore:
    """The cases of one model in one directory; every method may be called from any thread."""

    def __init__(self, directory: Path | str, *, fingerprint: str | None = None) -> None:
        """Open the store, or make an empty one.

        Args:
            directory: Made (mode 0700) if missing.
            fingerprint: Of the model whose cases it must hold; None takes the one it holds or is given first.

        Raises:
            ConfigError: Another server has it open, or the directory cannot be used.
            FingerprintError: It holds cases of another model; names both.
            ArtifactError: The file is not a case store, is damaged or is of another version.
        """
        self.directory = Path(directory)
        self._path = self.directory / DATABASE
        self._required = fingerprint
        self._fingerprint, self._dimension = "", 0
        self._read_lock, self._write_lock = threading.Lock(), threading.Lock()
        with contextlib.ExitStack() as cleanup:
            lock = _lock_directory(self.directory)
            cleanup.callback(os.close, lock)
            with self._translate("opened"):
                self._writer = cleanup.enter_context(contextlib.closing(self._connect()))
                self._prepare()
                # A second connection, so that a search does not wait while a write reaches the disk.
                self._reader = cleanup.enter_context(contextlib.closing(self._connect()))
                self._reader.execute("PRAGMA query_only = ON")
                meta = dict(self._reader.execute("SELECT key, value FROM meta"))
            self._read_meta(meta)
            self._cleanup = cleanup.pop_all()

    @property
    def fingerprint(self) -> str:
        """Of the model whose cases are stored; empty until the first case was stored."""
        return self._fingerprint

    @property
    def dimension(self) -> int:
        """Number of values of an embedding; 0 until the first case was stored."""
        return self._dimension

    def require_fingerprint(self, fingerprint: str, *, found_from: str) -> None:
        """Raise FingerprintError unless embeddings of this model belong here (a new store takes any)."""
        expected = self._fingerprint or self._required
        if expected:
            require_same_fingerprint(
                expected, fingerprint, expected_from="this case store", found_from=found_from
            )

    def count(self) -> int:
        """Return how many cases are stored."""
        with self._read_lock, self._translate("read"):
            return int(self._reader.execute("SELECT COUNT(*) FROM cases").fetchone()[0])

    def put(
        self, fingerprint: str, cases: Sequence[CaseRecord], embeddings: NDArray[np.float32]
    ) -> tuple[CaseVectors, int]:
        """Store cases, all or none; a case whose id is stored already is replaced.

        Args:
            fingerprint: Of the model that made the embeddings.
            cases: N cases with N different ids.
            embeddings: (N, D) float32 of unit length.

        Returns:
            What the index needs of them, and how many replaced another. They are on the disk by then.

        Raises:
            FingerprintError: The store holds cases of another model.
            ArtifactError: The disk is full or failed; nothing was stored.
        """
        self.require_fingerprint(fingerprint, found_from="the request")
        blobs = [row.tobytes() for row in np.ascontiguousarray(embeddings, dtype="<f4")]
        with self._write_lock, self._translate("written"), self._transaction() as writer:
            if not self._fingerprint:
                self._write_meta(fingerprint, embeddings.shape[1])
            replaced = self._delete(writer, [case.id for case in cases])
            sequences = [
                _insert(writer, fingerprint, case, blob) for case, blob in zip(cases, blobs, strict=True)
            ]
        self._fingerprint, self._dimension = fingerprint, int(embeddings.shape[1])
        ids, study_ids = [case.id for case in cases], [case.study_id for case in cases]
        return CaseVectors(sequences, ids, study_ids, embeddings), replaced

    def delete(self, ids: Iterable[str]) -> int:
        """Forget cases, all or none, and return how many there were; unknown ids count for nothing.

        Raises:
            ArtifactError: The disk failed; nothing was deleted.
        """
        named = require_strings(ids, "ids")
        with self._write_lock, self._translate("written"):
            with self._transaction() as writer:
                deleted = self._delete(writer, named)
            # The log still holds the reports; should this fail, the next checkpoint or close removes them.
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return deleted

    def get(self, case_id: str) -> CaseRecord:
        """Return one case; raises UnknownCaseError if it is not stored."""
        with self._read_lock, self._translate("read"):
            row = self._reader.execute(_SELECT + "id = ?", (case_id,)).fetchone()
        if row is None:
            raise UnknownCaseError("No case of this id is stored.")
        return self._parse_record(row)

    def get_versions(self, sequences: Iterable[int]) -> dict[int, CaseRecord]:
        """Return the cases with these sequence numbers; those replaced or deleted since are missing."""
        wanted = sorted(set(sequences))
        found: dict[int, CaseRecord] = {}
        for start in range(0, len(wanted), _MAX_PARAMETERS):
            part = wanted[start : start + _MAX_PARAMETERS]
            statement = _SELECT + f"sequence IN ({','.join('?' * len(part))})"
            with self._read_lock, self._translate("read"):
                rows = self._reader.execute(statement, part).fetchall()
            found.update((row[0], self._parse_record(row)) for row in rows)
        return found

    def read_vectors(self) -> Iterator[CaseVectors]:
        """Yield every case in the order it was written, in parts of at most 1024.

        Raises:
            ArtifactError: An embedding is damaged or belongs to another model.
        """
        statement = (
            "SELECT sequence, id, study_id, fingerprint, embedding FROM cases "
            "WHERE sequence > ? ORDER BY sequence LIMIT ?"
        )
        last = -1
        while True:
            with self._read_lock, self._translate("read"):
                rows = self._reader.execute(statement, (last, _PAGE_CASES)).fetchall()
            if not rows:
                return
            yield self._parse_vectors(rows)
            last = rows[-1][0]

    def close(self) -> None:
        """Close the file and let another server open it; may be called repeatedly."""
        with self._write_lock, self._read_lock:
            self._cleanup.close()

    def __enter__(self) -> "CaseStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> sqlite3.Connection:
        # isolation_level=None: transactions begin and end where this file says so.
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten with zeros
        return connection

    def _prepare(self) -> None:
        """Check that the file is a whole store, or make one in an empty file."""
        (application,) = self._writer.execute("PRAGMA application_id").fetchone()
        tables = {name for (name,) in self._writer.execute("SELECT name FROM sqlite_master")}
        if not tables and not application:
            self._create()
        elif application != _APPLICATION_ID or not {"meta", "cases"} <= tables:
            raise ArtifactError(f"{self._path} is not a case store: choose another directory.")
        (verdict,) = self._writer.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise ArtifactError(
                f"The case store {self._path} is damaged: restore it or index the cases again."
            )

    def _create(self) -> None:
        self._writer.execute("PRAGMA journal_mode = WAL")
        with self._transaction() as writer:
            writer.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            for statement in _SCHEMA:
                writer.execute(statement)
            writer.execute("INSERT INTO meta VALUES ('schema_version', ?)", (str(SCHEMA_VERSION),))

    def _write_meta(self, fingerprint: str, dimension: int) -> None:
        rows = [("fingerprint", fingerprint), ("dimension", str(dimension))]
        self._writer.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    def _read_meta(self, meta: dict[str, str]) -> None:
        if meta.get("schema_version") != str(SCHEMA_VERSION):
            raise ArtifactError(
                f"The case store {self._path} has version {meta.get('schema_version', '(none)')}, this "
                f"software reads version {SCHEMA_VERSION}: index the cases again into another directory."
            )
        self._fingerprint = meta.get("fingerprint", "")
        dimension = meta.get("dimension", "0")
        if not dimension.isdigit() or bool(self._fingerprint) != (int(dimension) > 0):
            raise self._report_damage()
        self._dimension = int(dimension)
        if self._fingerprint and self._required:
            require_same_fingerprint(
                self._required,
                self._fingerprint,
                expected_from="the served one",
                found_from=f"The case store {self.directory}",
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        writer = self._writer
        writer.execute("BEGIN IMMEDIATE")
        try:
            yield writer
            writer.execute("COMMIT")
        except BaseException:
            if writer.in_transaction:  # a full disk may have ended it already
                writer.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _translate(self, action: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ArtifactError(f"The case store {self._path} cannot be {action}: {error}.") from error

    @staticmethod
    def _delete(writer: sqlite3.Connection, ids: Iterable[str]) -> int:
        return sum(writer.execute("DELETE FROM cases WHERE id = ?", (case_id,)).rowcount for case_id in ids)

    def _parse_record(self, row: tuple[Any, ...]) -> CaseRecord:
        _, case_id, study_id, labels, report, image_ref = row
        try:
            return CaseRecord(case_id, study_id, tuple(json.loads(labels)), report, image_ref)
        except (TypeError, ValueError) as error:
            raise self._report_damage() from error

    def _parse_vectors(self, rows: list[tuple[Any, ...]]) -> CaseVectors:
        sequences, ids, study_ids, fingerprints, blobs = zip(*rows, strict=True)
        expected = 4 * self._dimension
        if any(not isinstance(blob, bytes) or len(blob) != expected for blob in blobs):
            raise self._report_damage("an embedding has a wrong length")
        if any(fingerprint != self._fingerprint for fingerprint in fingerprints):
            raise FingerprintError(
                f"The case store {self._path} mixes cases of different models: index the cases again."
            )
        embeddings = np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(rows), -1).astype(np.float32)
        lengths = np.linalg.norm(embeddings, axis=1)
        if not np.all(np.abs(lengths - 1) <= LENGTH_TOLERANCE):  # also false where a value is not a number
            raise self._report_damage("an embedding is not of unit length")
        return CaseVectors(sequences, ids, study_ids, embeddings)

    def _report_damage(self, detail: str = "its content is not what was written") -> ArtifactError:
        return ArtifactError(
            f"The case store {self._path} is damaged ({detail}): restore it or index the cases again."
        )


def _insert(writer: sqlite3.Connection, fingerprint: str, case: CaseRecord, blob: bytes) -> int:
    labels = json.dumps(case.labels)
    values = (case.id, case.study_id, fingerprint, labels, case.report, case.image_ref, blob)
    sequence = writer.execute(_INSERT, values).lastrowid
    assert sequence is not None  # an INSERT that did not raise has one
    return sequence


def _lock_directory(directory: Path) -> int:
    """Make the directory if needed and take it for this process; returns the open lock file."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives its other files the mode of this one: nobody else may read reports.
        os.close(os.open(directory / DATABASE, os.O_RDWR | os.O_CREAT, 0o600))
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"The case store {directory} cannot be opened: {error.strerror}.") from error
    try:
        # The kernel gives the lock back however the process ends.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ConfigError(
            f"The case store {directory} is in use by another server: stop it or choose another directory."
        ) from error
    return lock
