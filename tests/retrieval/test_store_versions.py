"""Stores that an earlier version wrote, and a migration that was killed."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from contract.errors import ArtifactError
from retrieval.cases import CaseRecord
from retrieval.schema import compute_checksum, hash_meta
from retrieval.store import CaseStore

from .store_files import change, read_all


def test_another_version_is_named(filled):
    change(filled, "UPDATE meta SET value = '7' WHERE key = 'schema_version'")
    with pytest.raises(ArtifactError, match=r"version 7.*version 3"):
        CaseStore(filled.parent)


def test_a_store_with_small_pages_keeps_them_and_its_cases(tmp_path, make, monkeypatch):
    """As an earlier version wrote it."""
    with monkeypatch.context() as patch:
        patch.setattr("retrieval.directory.PAGE_BYTES", 4096)
        with CaseStore(tmp_path) as store:
            store.put(make.MODEL, make.records("abc"), make.vectors(3))
    with CaseStore(tmp_path) as store:
        assert store._reader.execute("PRAGMA page_size").fetchone() == (4096,)
        store.put(make.MODEL, make.records("cd"), make.vectors(2))
        assert read_all(store)[0] == list("abcd")
    with CaseStore(tmp_path / "new") as store:
        assert store._reader.execute("PRAGMA page_size").fetchone() == (8192,)


def downgrade(path: Path) -> None:
    """Make a store what version 1 of the schema was."""
    for column in ("view", "kind", "checksum"):
        change(path, f"ALTER TABLE cases DROP COLUMN {column}")
    change(path, "DELETE FROM meta WHERE key IN ('rows', 'checksum')")
    change(path, "UPDATE meta SET value = '1' WHERE key = 'schema_version'")


def test_a_store_without_checksums_gets_them_when_it_is_opened(filled, make):
    with CaseStore(filled.parent) as store:
        expected = read_all(store)
    downgrade(filled)
    change(filled, "UPDATE cases SET embedding = zeroblob(64) WHERE id = 'e'")  # plainly wrong before
    with CaseStore(filled.parent) as store:
        ids, vectors = read_all(store)
        assert ids == list("abcd")
        np.testing.assert_array_equal(vectors, expected[1][:4])
        assert store.damaged == (5,)
        assert store.get("a") == make.records("a")[0]
        store.put(make.MODEL, make.records("ef"), make.vectors(2))
    change(filled, "UPDATE cases SET study_id = 'other' WHERE id = 'a'")
    with CaseStore(filled.parent) as store:
        assert read_all(store)[0] == list("bcdef")
        assert store.damaged == (1,)


def downgrade_to_second(path: Path) -> None:
    """Make a store what version 2 of the schema was, with its checksums."""
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT sequence, id, study_id, fingerprint, labels, report, image_ref, embedding FROM cases"
    ).fetchall()
    connection.executemany(
        "UPDATE cases SET checksum = ? WHERE sequence = ?", [(compute_checksum(row), row[0]) for row in rows]
    )
    for column in ("view", "kind"):
        connection.execute(f"ALTER TABLE cases DROP COLUMN {column}")
    meta = dict(connection.execute("SELECT key, value FROM meta WHERE key != 'checksum'"))
    meta["schema_version"] = "2"
    connection.execute("UPDATE meta SET value = '2' WHERE key = 'schema_version'")
    connection.execute("UPDATE meta SET value = ? WHERE key = 'checksum'", (hash_meta(meta),))
    connection.commit()
    connection.close()


def test_a_store_of_the_second_version_gets_views_and_kinds(filled, make):
    downgrade_to_second(filled)
    change(filled, "UPDATE cases SET report = 'Other.' WHERE id = 'd'")  # damage of before stays damage
    with CaseStore(filled.parent) as store:
        ids, vectors = read_all(store)
        assert (ids, store.damaged) == (list("abce"), (4,))
        np.testing.assert_array_equal(vectors, make.vectors(5)[[0, 1, 2, 4]])
        assert store.get("a") == make.records("a")[0]
        record = CaseRecord("f", "s", view="PA", kind="study")
        store.put(make.MODEL, [record], make.vectors(1))
    with CaseStore(filled.parent) as store:
        assert store.get("f") == record
        (last,) = list(store.read_vectors())
        assert (last.views[-2:], last.kinds[-2:], last.labels[-2:]) == (
            ("", "PA"),
            ("", "study"),
            [("normal",), ()],
        )
    change(filled, "UPDATE cases SET view = 'AP' WHERE id = 'f'")
    with CaseStore(filled.parent) as store:
        read_all(store)
        assert store.damaged == (4, 6)


def test_damage_of_the_second_version_is_not_signed_by_the_migration(filled):
    downgrade_to_second(filled)
    whole = filled.read_bytes()
    change(filled, "UPDATE meta SET value = ? WHERE key = 'fingerprint'", ("d" * 64,))
    with pytest.raises(ArtifactError, match="its metadata differs from what was written"):
        CaseStore(filled.parent)
    filled.write_bytes(whole)
    change(filled, "DELETE FROM cases WHERE id = 'd'")
    with CaseStore(filled.parent) as store, pytest.raises(ArtifactError, match="missing"):
        read_all(store)


def test_a_store_without_checksums_that_names_another_model_is_left_as_it_is(filled):
    downgrade(filled)
    change(filled, "UPDATE meta SET value = ? WHERE key = 'fingerprint'", ("d" * 64,))
    with pytest.raises(ArtifactError, match="do not belong to the model that it names"):
        CaseStore(filled.parent)
    change(filled, "UPDATE meta SET value = ? WHERE key = 'fingerprint'", ("a" * 64,))
    with CaseStore(filled.parent) as store:
        assert read_all(store)[0] == list("abcde")


def test_a_killed_migration_begins_anew(filled, monkeypatch):
    class Killed(BaseException):
        """The process is gone."""

    def fail(*_, **__):
        raise Killed

    downgrade(filled)
    before = filled.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("retrieval.opening.write_meta", fail)
        with pytest.raises(Killed):
            CaseStore(filled.parent)
    change(filled, "PRAGMA wal_checkpoint(TRUNCATE)")
    connection = sqlite3.connect(filled)
    assert connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone() == ("1",)
    connection.close()
    assert len(filled.read_bytes()) == len(before)
    with CaseStore(filled.parent) as store:
        assert read_all(store)[0] == list("abcde")
        assert store.damaged == ()
