"""Check a case store or a backup: its structure, its schema, and the checksum of every row.

A store may be checked while the sidecar serves it: the check reads the store as it was when the check began. A store
without a sidecar is not changed, nor is the WAL that a killed one left.
"""

import contextlib
import sqlite3
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from contract.bundle import compute_sha256
from contract.case_backup import MANIFEST, BackupFile, read_manifest
from contract.errors import ConfigError
from retrieval.checks import select_intact
from retrieval.directory import DATABASE, MODELS, UNFINISHED, find_wal
from retrieval.left_wal import hold_lock, loses_writes, open_aside
from retrieval.meta import has_checksum, read_meta, read_model, states_rows
from retrieval.schema import (
    APPLICATION_ID,
    COUNT_ROWS,
    FIRST_ROW,
    PAGE,
    SCHEMA_VERSION,
    SELECT,
    decode_text,
    make_schema,
    read_schema,
)

_PAGE_ROWS: Final = 1024
_MAX_FINDINGS: Final = 5  # of SQLite
_MOST_ROWS: Final = 2**53  # that a store ever had


@dataclass(frozen=True)
class StoreCheck:
    """What a file with the cases of one model holds.

    Attributes:
        path: The file.
        version: Version of the schema; "" if it cannot be read.
        fingerprint: Fingerprint of the model; "" before the first case.
        dimension: Number of values of an embedding; 0 before the first case.
        rows: Number of rows, the damaged ones included.
        damaged: Numbers of the rows that differ from what was written.
        problems: What else is wrong, a sentence each. The rows are checked only if there is nothing else.
    """

    path: Path
    version: str = ""
    fingerprint: str = ""
    dimension: int = 0
    rows: int = 0
    damaged: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything is as it was written."""
        return not self.damaged and not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and `ok`."""
        return {
            "path": str(self.path),
            "ok": self.ok,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "dimension": self.dimension,
            "rows": self.rows,
            "damaged": list(self.damaged),
            "problems": list(self.problems),
        }


def check_folder(folder: Path) -> list[StoreCheck]:
    """Check every file of a store, or of a backup with its hashes.

    Raises:
        ConfigError: The folder holds neither.
        ArtifactError: The list of a backup is damaged.
    """
    if (folder / MANIFEST).is_file():
        return [check_backup_file(folder, file) for file in read_manifest(folder).files]
    paths = [folder / DATABASE, *sorted((folder / MODELS).glob(f"*/{DATABASE}"))]
    if not paths[0].is_file():
        raise ConfigError(f"There is no case store at {folder}.")
    if (folder / UNFINISHED).exists():
        return [StoreCheck(folder / UNFINISHED, problems=("A restore into this store did not end.",))]
    return [check_database(path) for path in paths]


def check_backup_file(folder: Path, file: BackupFile) -> StoreCheck:
    """Check a file of a backup: its hash first, and its content if the hash is right."""
    path = folder / file.name
    try:
        found = compute_sha256(path)
    except OSError as error:
        return StoreCheck(path, problems=(f"It cannot be read: {error.strerror}.",))
    if found != file.sha256:
        return StoreCheck(
            path, problems=(f"Its SHA-256 is {found}, but {file.sha256} was written. Use another backup.",)
        )
    return check_database(path, fixed=True)


def check_database(path: Path, *, fixed: bool = False) -> StoreCheck:
    """Check one file. `fixed`: no program writes to it, and it has no WAL; it may be on a read-only disk."""
    try:
        return _check_opened(path, path, fixed=True) if fixed else _check_store_file(path)
    except OSError as error:
        return StoreCheck(path, problems=(f"It cannot be read: {error.strerror}.",))
    except sqlite3.Error as error:
        return StoreCheck(path, problems=(f"SQLite cannot read it: {error}.",))
    except UnicodeDecodeError:  # SQLite quotes a damaged schema in its message
        return StoreCheck(path, problems=("Its schema differs from what was written.",))


def _check_store_file(path: Path) -> StoreCheck:
    with hold_lock(path.parent) as is_alone:
        wal = find_wal(path)
        if not is_alone:
            return _check_opened(path, path, fixed=False)
        if not wal.exists() or not wal.stat().st_size:
            return _check_opened(path, path, fixed=True)
        with open_aside(path) as aside:
            return _check_opened(path, aside, fixed=False)


def _check_opened(path: Path, place: Path, *, fixed: bool) -> StoreCheck:
    """Check the database at `place`, which is that of `path` or another name of it."""
    mode = "mode=ro&immutable=1" if fixed else "mode=ro"
    url = f"file:{urllib.parse.quote(str(place.resolve()))}?{mode}"
    with contextlib.closing(sqlite3.connect(url, uri=True, isolation_level=None)) as connection:
        connection.text_factory = decode_text
        connection.execute("PRAGMA query_only = ON")
        connection.execute("BEGIN")  # everything is read at one moment
        check = _check(path, connection)
        if place != path and loses_writes(place):
            lost = (
                "The end of its WAL is damaged. The writes there are lost, also confirmed ones, unless a power failure "
                "interrupted them."
            )
            return replace(check, problems=(*check.problems, lost))
        return check


def _check(path: Path, connection: sqlite3.Connection) -> StoreCheck:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if application != APPLICATION_ID or not {"meta", "cases"} <= tables:
        return StoreCheck(path, problems=("It is not a case store.",))
    meta = read_meta(connection)
    version, model = str(meta.get("schema_version", "")), read_model(meta)
    problems = tuple(_find_problems(connection, meta, version))
    if problems or model is None:
        return StoreCheck(path, version, problems=problems)
    fingerprint, dimension = model
    count, total = connection.execute(COUNT_ROWS).fetchone()
    damaged = tuple(_find_damaged(connection, fingerprint, dimension))
    same = states_rows(meta["rows"], count, total, damaged=bool(damaged))
    missing = () if same else ("Cases are missing, or there are extra ones.",)
    wrong = (
        () if damaged or _counts_rows(connection) else ("Its counter of rows differs from what was written.",)
    )
    return StoreCheck(path, version, fingerprint, dimension, int(count), damaged, missing + wrong)


def _counts_rows(connection: sqlite3.Connection) -> bool:
    """Whether the number of the last row that was ever written is possible. A lower one would come twice."""
    (last,) = connection.execute("SELECT MAX(sequence) FROM cases").fetchone()
    counted = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'cases'").fetchall()
    if not counted:
        return last is None
    return len(counted) == 1 and type(counted[0][0]) is int and (last or 0) <= counted[0][0] <= _MOST_ROWS


def _find_problems(connection: sqlite3.Connection, meta: dict[str, str], version: str) -> Iterator[str]:
    findings = [text for (text,) in connection.execute(f"PRAGMA integrity_check({_MAX_FINDINGS})")]
    if findings != ["ok"]:
        yield f"SQLite finds its structure broken ({len(findings)} findings)."
    if version != str(SCHEMA_VERSION):
        yield (
            f"It has version {version or '(none)'}, and this software checks version {SCHEMA_VERSION}. The sidecar "
            "brings an older store up to date when it opens it."
        )
        return
    if read_schema(connection) != make_schema():
        yield "Its schema differs from what was written."
    if not has_checksum(meta):
        yield "Its metadata differs from what was written."
    elif read_model(meta) is None:
        yield "Its metadata names no model, or no dimension."


def _find_damaged(connection: sqlite3.Connection, fingerprint: str, dimension: int) -> Iterator[int]:
    last = FIRST_ROW
    while rows := connection.execute(SELECT + PAGE, (last, _PAGE_ROWS)).fetchall():
        intact = {row[0] for row in select_intact(rows, fingerprint, dimension)}
        yield from (row[0] for row in rows if row[0] not in intact)
        last = rows[-1][0]
