"""What the WAL and the gaps of the file keep, and what a disk that fails in a checkpoint leaves."""

import sqlite3

import pytest

import retrieval.copying
import retrieval.wal
from contract.errors import ArtifactError, CancelledError
from retrieval.cases import CaseRecord
from retrieval.server import main
from retrieval.store import CaseStore
from retrieval.syncing import GroupSync
from retrieval.verification import check_database

MARK = b"MARKED REPORT"


@pytest.fixture
def store(tmp_path, make):
    records = [CaseRecord(name, name, (), MARK.decode() if name == "b" else "Other.") for name in "abc"]
    with CaseStore(tmp_path / "store") as store:
        store.put(make.MODEL, records, make.vectors(3))
        store.sync()
        yield store


def find_mark(store) -> list[str]:
    """The files that hold the report."""
    return sorted(path.name for path in store.directory.glob("cases.sqlite*") if MARK in path.read_bytes())


class FailingWriter:
    """A connection whose checkpoint ends with an error of the disk, and which counts them."""

    def __init__(self, writer, text):
        self.writer, self.text, self.count = writer, text, 0

    def execute(self, sql):
        if "wal_checkpoint" not in sql:
            return self.writer.execute(sql)
        self.count += 1
        raise sqlite3.OperationalError(self.text)


@pytest.fixture
def fail(store, monkeypatch):
    """A function that lets each checkpoint of the store end with an error."""

    def fail(text):
        writer = FailingWriter(store._wal._writer, text)
        monkeypatch.setattr(store._wal, "_writer", writer)
        return writer

    return fail


@pytest.mark.parametrize("change", ["delete", "put"])
def test_a_checkpoint_that_fails_ends_all_confirmations(store, make, fail, monkeypatch, change):
    monkeypatch.setattr(retrieval.wal, "LONGEST_BYTES", 0)
    writer = fail("disk I/O error")
    if change == "delete":
        store.delete(["a"])
    else:
        store.put(make.MODEL, make.records("d"), make.vectors(1))
    for _ in range(2):
        with pytest.raises(ArtifactError, match="did not confirm a write"):
            store.sync()
    store.delete(["b"])
    assert writer.count == 1  # no page goes from a WAL that may be wrong into the file


@pytest.mark.parametrize("text", ["database is locked", "database or disk is full"])
def test_a_checkpoint_that_must_wait_is_no_failure(store, fail, text):
    fail(text)
    store.delete(["b"])
    store.sync()
    assert store._wal.holds_deleted


def test_the_wal_stays_short(store, make, monkeypatch):
    monkeypatch.setattr(retrieval.wal, "LONGEST_BYTES", 50_000)
    wal = store.directory / "cases.sqlite-wal"
    file, lengths = wal.stat().st_ino, []
    for number in range(20):
        store.put(make.MODEL, make.records([f"{number}"]), make.vectors(1))
        lengths.append(wal.stat().st_size)
    assert 0 in lengths
    assert max(lengths) < 200_000
    assert wal.stat().st_ino == file  # what `GroupSync` has open
    store.sync()


def test_a_wal_without_a_name_is_not_durable(tmp_path):
    (tmp_path / "wal").touch()
    sync = GroupSync(tmp_path / "wal")
    (tmp_path / "wal").unlink()
    sync.note()
    with pytest.raises(ArtifactError, match="did not confirm"):
        sync.wait()
    sync.close()


def test_a_cancelled_backup_leaves_no_deleted_report(store, monkeypatch):
    monkeypatch.setattr(retrieval.copying, "_PAGES_AT_ONCE", 1)
    asked = []

    def is_wanted():
        asked.append(1)
        if len(asked) == 1:
            store.delete(["b"])
        return len(asked) < 2

    with pytest.raises(CancelledError):
        store.open_copy(is_wanted)
    assert find_mark(store) == []


@pytest.mark.parametrize("later", ["write", "info"])
def test_a_deleted_report_goes_when_its_reader_has_ended(store, make, monkeypatch, later):
    monkeypatch.setattr(retrieval.wal, "_PAUSE_S", 0.0)
    reader = sqlite3.connect(store.directory / "cases.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM cases").fetchone()
    store.delete(["b"])
    store.sync()  # a reader is no failure
    assert find_mark(store) == ["cases.sqlite-wal"]
    reader.close()
    if later == "write":
        store.put(make.MODEL, make.records("d"), make.vectors(1))
    else:
        store.empty_wal_again()
    assert find_mark(store) == []


def test_compacting_removes_what_lies_in_gaps(tmp_path, make, capsys):
    directory = tmp_path / "store"
    with CaseStore(directory) as store:
        store.put(make.MODEL, make.records("abcdefgh"), make.vectors(8))
        store.delete(["h"])
        store.sync()
    path = directory / "cases.sqlite"
    data = bytearray(path.read_bytes())
    gap = data.index(bytes(400), len(data) - 8192) + 100  # the free part of the last page
    data[gap : gap + len(MARK)] = MARK
    path.write_bytes(data)
    assert check_database(path).ok
    assert main(["--store", str(directory), "--compact"]) == 0
    assert "Wrote the files anew" in capsys.readouterr().out
    assert MARK not in path.read_bytes()
    assert sorted(file.name for file in directory.iterdir()) == ["cases.sqlite", "lock"]
    assert check_database(path).rows == 7
    with CaseStore(directory) as store:
        vectors, _ = store.put(make.MODEL, make.records("i"), make.vectors(1))
        assert list(vectors.sequences) == [9]  # no number comes twice
        assert main(["--store", str(directory), "--compact"]) == 2
    assert "in use by another server" in capsys.readouterr().err
