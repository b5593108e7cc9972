import errno
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from contract.errors import ArtifactError, ConfigError, FingerprintError
from retrieval.cases import CaseRecord, UnknownCaseError
from retrieval.directory import lock_directory
from retrieval.schema import compute_checksum, hash_meta
from retrieval.store import CaseStore

from .store_files import change

ROOT = Path(__file__).parents[2]


def read_all(store):
    parts = list(store.read_vectors())
    ids = [name for part in parts for name in part.ids]
    return ids, np.concatenate([part.embeddings for part in parts]) if parts else None


@pytest.fixture
def store(tmp_path):
    with CaseStore(tmp_path / "store") as store:
        yield store


def test_cases_come_back_as_they_were_after_reopening(tmp_path, make):
    vectors = make.vectors(5)
    with CaseStore(tmp_path / "deep" / "store") as store:
        assert (store.fingerprint, store.dimension, store.count()) == ("", 0, 0)
        stored, replaced = store.put(make.MODEL, make.records("abcde"), vectors)
        assert replaced == 0
    with CaseStore(tmp_path / "deep" / "store", fingerprint=make.MODEL) as store:
        assert (store.fingerprint, store.dimension, store.count()) == (make.MODEL, make.D, 5)
        assert store.get("c") == make.records("c")[0]
        assert store.get_versions(stored.sequences)[stored.sequences[1]] == make.records("b")[0]
        ids, found = read_all(store)
        assert ids == list("abcde")
        np.testing.assert_array_equal(found, vectors)


def test_only_the_owner_may_read_it(filled):
    assert stat.S_IMODE(filled.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(filled.stat().st_mode) == 0o600


def test_a_replaced_case_is_a_new_version_at_the_end(store, make):
    first, _ = store.put(make.MODEL, make.records("abc"), make.vectors(3))
    second, replaced = store.put(make.MODEL, make.records("bd", study="new"), make.vectors(2, seed=9))
    assert replaced == 1
    ids, vectors = read_all(store)
    assert ids == list("acbd")
    np.testing.assert_array_equal(vectors[2:], make.vectors(2, seed=9))
    assert store.get("b").study_id == "new"
    assert set(store.get_versions([*first.sequences, *second.sequences])) == {
        first.sequences[0],
        first.sequences[2],
        *second.sequences,
    }


def test_versions_are_never_given_twice(store, make):
    first, _ = store.put(make.MODEL, make.records("a"), make.vectors(1))
    assert store.delete(["a", "unknown"]) == 1
    second, _ = store.put(make.MODEL, make.records("b"), make.vectors(1))
    assert second.sequences[0] > first.sequences[0]


def test_deleted_text_is_nowhere_on_the_disk(store, make):
    store.put(make.MODEL, make.records(["zebra", "other"]), make.vectors(2))
    files = [path for path in store.directory.iterdir() if path.is_file()]
    assert any(b"Report zebra" in path.read_bytes() for path in files)
    store.delete(["zebra"])
    assert not any(b"Report zebra" in path.read_bytes() for path in files)
    with pytest.raises(UnknownCaseError) as caught:
        store.get("zebra")
    assert "zebra" not in str(caught.value)


def test_more_cases_than_one_page(store, make):
    ids = [str(number) for number in range(2500)]
    stored, _ = store.put(make.MODEL, make.records(ids), make.vectors(2500))
    assert read_all(store)[0] == ids
    assert len(store.get_versions(stored.sequences)) == 2500


def test_full_disk_stores_nothing_and_the_store_goes_on(store, make):
    store.put(make.MODEL, make.records("abc"), make.vectors(3))
    (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages + 3}")
    many = [f"new-{number}" for number in range(400)]
    with pytest.raises(ArtifactError, match="full"):
        store.put(make.MODEL, make.records(["a", *many], study="new"), make.vectors(401))
    assert read_all(store)[0] == list("abc")
    assert store.get("a").study_id == "study-a"
    store.put(make.MODEL, make.records("d"), make.vectors(1))
    assert store.count() == 4


def test_a_failure_in_the_middle_of_a_batch_stores_nothing(store, make):
    store.put(make.MODEL, make.records("abc"), make.vectors(3))
    records = [*make.records("ax"), CaseRecord("y", None), *make.records("z")]
    with pytest.raises(ArtifactError, match="cannot be written"):
        store.put(make.MODEL, records, make.vectors(4))
    assert read_all(store)[0] == list("abc")
    assert store.put(make.MODEL, make.records("d"), make.vectors(1))[1] == 0


def test_full_disk_at_the_first_case_decides_no_model(store, make):
    (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(ArtifactError, match="full"):
        store.put(make.MODEL, make.records(range(400)), make.vectors(400))
    assert (store.fingerprint, store.dimension, store.count()) == ("", 0, 0)
    store._writer.execute("PRAGMA max_page_count = 1000000")
    store.put(make.OTHER_MODEL, make.records("a"), make.vectors(1, dimension=8))
    assert (store.fingerprint, store.dimension) == (make.OTHER_MODEL, 8)


def test_another_model_is_refused_with_both_values(filled, make):
    with pytest.raises(FingerprintError, match=f"{'a' * 12}.*{'b' * 12}"):
        CaseStore(filled.parent, fingerprint=make.OTHER_MODEL)
    with (
        CaseStore(filled.parent) as store,
        pytest.raises(FingerprintError, match=f"{'b' * 12}.*{'a' * 12}"),
    ):
        store.put(make.OTHER_MODEL, make.records("f"), make.vectors(1))


def test_a_required_model_counts_before_the_first_case(tmp_path, make):
    with CaseStore(tmp_path / "store", fingerprint=make.MODEL) as store, pytest.raises(FingerprintError):
        store.put(make.OTHER_MODEL, make.records("f"), make.vectors(1))


def test_second_opening_is_refused_until_the_first_ends(tmp_path):
    first = CaseStore(tmp_path / "store")
    with pytest.raises(ConfigError, match="in use by another server"):
        CaseStore(tmp_path / "store")
    first.close()
    first.close()
    CaseStore(tmp_path / "store").close()


def test_a_failed_opening_leaves_no_lock(filled, make):
    with pytest.raises(FingerprintError):
        CaseStore(filled.parent, fingerprint=make.OTHER_MODEL)
    CaseStore(filled.parent).close()


def test_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(ConfigError, match="cannot be opened"):
        CaseStore(tmp_path / "file" / "store")
    with pytest.raises(ConfigError, match="cannot be opened"):
        CaseStore(tmp_path / "file")


def test_a_read_only_disk_ends_the_start(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match="cannot be opened: Read-only file system"):
        CaseStore(tmp_path)


def test_a_text_file_is_not_a_store(tmp_path):
    (tmp_path / "cases.sqlite").write_text("These are not cases. " * 100)
    with pytest.raises(ArtifactError, match="not a database"):
        CaseStore(tmp_path)


def test_another_programs_database_is_not_a_store(tmp_path):
    change(tmp_path / "cases.sqlite", "CREATE TABLE cases (name TEXT)")
    with pytest.raises(ArtifactError, match="not a case store"):
        CaseStore(tmp_path)
    tables = sqlite3.connect(tmp_path / "cases.sqlite")
    assert tables.execute("SELECT name FROM sqlite_master").fetchall() == [("cases",)]
    tables.close()


def test_another_version_is_named(filled):
    change(filled, "UPDATE meta SET value = '7' WHERE key = 'schema_version'")
    with pytest.raises(ArtifactError, match=r"version 7.*version 3"):
        CaseStore(filled.parent)


def test_overwritten_pages_are_damage(filled):
    data = bytearray(filled.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    filled.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"damaged|malformed"):
        CaseStore(filled.parent)


def test_damage_outside_of_what_the_index_reads_is_found(tmp_path, make):
    with CaseStore(tmp_path) as store:
        names = [f"case-{number:04d}" for number in range(1000)]
        store.put(make.MODEL, make.records(names), make.vectors(1000))
    path = tmp_path / "cases.sqlite"
    data = bytearray(path.read_bytes())
    pages = range(0, len(data), 8192)
    # A leaf of the table's index by id: type 10 (SQLite's file format, section 1.6).
    page = next(page for page in pages if data[page] == 10 and b"case-0500" in data[page : page + 8192])
    data[page + 100 : page + 8192] = bytes(8092)
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged"):
        CaseStore(tmp_path)


def test_a_cut_file_is_damage(filled):
    filled.write_bytes(filled.read_bytes()[:-4096])
    with pytest.raises(ArtifactError, match=r"damaged|malformed"):
        CaseStore(filled.parent)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("embedding", b"\0" * 12),
        ("embedding", "text"),
        ("embedding", b"\0" * 64),
        ("embedding", b"\xff" * 64),  # not a number
        ("fingerprint", "c" * 64),
        ("id", "x"),
        ("study_id", "x"),
        ("labels", "[]"),
        ("labels", "normal"),
        ("report", "Report d."),
        ("report", b"Report c."),
        ("image_ref", ""),
        ("checksum", b""),
        ("checksum", b"12345678"),
    ],
)
def test_a_damaged_row_is_left_out_and_told_of(filled, column, value):
    change(filled, f"UPDATE cases SET {column} = ? WHERE id = 'c'", (value,))
    with CaseStore(filled.parent) as store:
        assert store.describe_damage() == ""
        ids, _ = read_all(store)
        assert ids == [name for name in "abcde" if name != "c"]
        assert (store.count(), store.damaged) == (4, (3,))
        words = store.describe_damage()
        assert "1 of its rows (3)" in words
        assert "cxr index" in words
        assert f"--store {filled.parent} --remove-damaged" in words
        if column != "id":
            with pytest.raises(ArtifactError, match="row 3 differs from what was written"):
                store.get("c")
        with pytest.raises(ArtifactError, match="row 3 differs from what was written"):
            store.get_versions([2, 3])
        assert store.get("b").labels == ("normal",)


def test_a_damaged_row_ends_with_its_case(filled, make):
    for name in "bcd":
        change(filled, "UPDATE cases SET report = 'Other.' WHERE id = ?", (name,))
    with CaseStore(filled.parent) as store:
        read_all(store)
        store.put(make.MODEL, make.records("b"), make.vectors(1))  # indexed again
        assert store.damaged == (3, 4)
        store.delete(["c"])
        assert store.damaged == (4,)
        assert store.remove_damaged() == 1
        assert (store.damaged, store.describe_damage(), store.count()) == ((), "", 3)
    with CaseStore(filled.parent) as store:
        assert read_all(store)[0] == list("aeb")
        assert store.damaged == ()


@pytest.mark.parametrize(
    "statement", ["DELETE FROM cases WHERE id = 'c'", "UPDATE sqlite_sequence SET seq = 1"]
)
def test_a_row_that_is_gone_is_damage(filled, statement, make):
    change(filled, statement)
    with CaseStore(filled.parent) as store:
        if "DELETE" in statement:
            with pytest.raises(ArtifactError, match="cases are missing"):
                read_all(store)
        else:  # numbers are not given twice all the same
            assert store.put(make.MODEL, make.records("f"), make.vectors(1))[0].sequences == [6]


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


@pytest.mark.parametrize(
    "meta", [("dimension", "many"), ("dimension", "0"), ("fingerprint", ""), ("rows", "4 10")]
)
def test_damaged_meta(filled, meta):
    change(filled, "UPDATE meta SET value = ? WHERE key = ?", meta[::-1])
    with pytest.raises(ArtifactError, match="damaged"):
        CaseStore(filled.parent)


@pytest.mark.parametrize("name", [".cases.sqlite.new", "cases.sqlite"])
def test_what_a_killed_first_start_left_becomes_a_store(tmp_path, name):
    if name == "cases.sqlite":
        os.close(lock_directory(tmp_path))  # before a table was made
        assert (tmp_path / name).stat().st_size
    else:
        (tmp_path / name).write_bytes(b"half")
        (tmp_path / ".verify-x").mkdir()  # of a check that was killed
    with CaseStore(tmp_path) as store:
        assert store.count() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases.sqlite", "lock"]


def test_records_do_not_print_their_content(make):
    assert "zebra" not in repr(make.records(["zebra"]))


def test_importing_the_package_is_cheap():
    code = "import retrieval, sys; print({'faiss', 'grpc', 'numpy', 'sqlite3'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
