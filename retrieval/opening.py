"""Check the file of a case store when it is opened: make an empty one, or bring an older one up to date."""

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from contract.errors import ArtifactError
from retrieval.connection import begin
from retrieval.damage import report_damage
from retrieval.meta import add_rows, read_meta, read_model, require_checksum, write_meta
from retrieval.migration import migrate
from retrieval.schema import APPLICATION_ID, SCHEMA_VERSION, STEPS, make_schema, read_schema

_OLDER: Final = ("1", "2")  # versions that can be brought up to date


def prepare_store(writer: sqlite3.Connection, path: Path) -> None:
    """Check that the file is a complete store of this version, or make one of a file without tables.

    Raises:
        ArtifactError: The file is not a case store, or is damaged.
    """
    (application,) = writer.execute("PRAGMA application_id").fetchone()
    tables = {name for (name,) in writer.execute("SELECT name FROM sqlite_master")}
    if not tables and not application:
        _create(writer)
    elif application != APPLICATION_ID or not {"meta", "cases"} <= tables:
        raise ArtifactError(f"{path} is not a case store. Choose another directory.")
    (verdict,) = writer.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise report_damage(path, "SQLite finds its structure broken")
    _migrate(writer, path)


def require_present(path: Path, meta: Mapping[str, str]) -> tuple[str, int]:
    """Return the fingerprint and the dimension of a store, "" and 0 before the first case.

    Raises:
        ArtifactError: `meta` is damaged or of a version that this software does not read.
    """
    if meta.get("schema_version") != str(SCHEMA_VERSION):
        raise ArtifactError(
            f"The case store {path} has version {meta.get('schema_version', '(none)')}, but this "
            f"software reads version {SCHEMA_VERSION}. Index the cases again into another directory."
        )
    require_checksum(path, meta)
    return _require_model(path, meta)


def _create(writer: sqlite3.Connection) -> None:
    writer.execute("PRAGMA journal_mode = WAL")
    with begin(writer):
        writer.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        for statement in STEPS:
            writer.execute(statement)
        write_meta(writer, "", 0, None)


def _migrate(writer: sqlite3.Connection, path: Path) -> None:
    """Give a store of an earlier version the columns of this one, in one transaction: all or none."""
    meta = read_meta(writer)
    version = meta.get("schema_version")
    if version in _OLDER:
        if version == "2":
            require_checksum(path, meta)
        fingerprint, dimension = _require_model(path, meta)
        with begin(writer):
            if not migrate(writer, version, fingerprint, dimension):
                raise report_damage(path, "its cases do not belong to the model that it names")
            # Version 2 states how many rows there are. Counted anew, a missing one would not be noticed.
            write_meta(writer, fingerprint, dimension, add_rows(writer, (), ()) if version == "2" else None)
    if version in (*_OLDER, str(SCHEMA_VERSION)) and read_schema(writer) != make_schema():
        raise report_damage(path, "its schema differs from what was written")


def _require_model(path: Path, meta: Mapping[str, str]) -> tuple[str, int]:
    if (model := read_model(meta)) is None:
        raise report_damage(path)
    return model
