"""Checks of stores: beside a server, of each kind of damage, of older versions."""

import re
import shutil

import pytest

from contract.errors import ArtifactError, ConfigError
from retrieval.store import CaseStore
from retrieval.verification import check_database, check_folder

from .store_files import change


def test_a_whole_store(filled, make):
    (check,) = check_folder(filled.parent)
    assert (check.ok, check.version, check.fingerprint, check.dimension, check.rows) == (
        True,
        "3",
        make.MODEL,
        make.D,
        5,
    )
    assert sorted(path.name for path in filled.parent.iterdir()) == ["cases.sqlite", "lock"]


def test_a_store_that_is_served_and_one_after_kill_9(tmp_path, make):
    with CaseStore(tmp_path / "store") as store:
        store.put(make.MODEL, make.records("abc"), make.vectors(3))
        (check,) = check_folder(tmp_path / "store")
        assert (check.ok, check.rows) == (True, 3)
        store.put(make.MODEL, make.records("d"), make.vectors(1))  # nobody was locked out
        shutil.copytree(tmp_path / "store", tmp_path / "killed")
    killed = tmp_path / "killed"
    before = {path.name: path.read_bytes() for path in killed.iterdir()}
    assert before["cases.sqlite-wal"]
    (check,) = check_folder(killed)
    assert (check.ok, check.rows, check.path) == (True, 4, killed / "cases.sqlite")
    assert {
        path.name: path.read_bytes() for path in killed.iterdir()
    } == before  # nothing is written or removed


@pytest.mark.parametrize(
    ("place", "words"), [(None, None), (5000, "end of its WAL is damaged"), ("tail", None)]
)
def test_a_wal_that_a_killed_sidecar_left(tmp_path, make, place, words):
    with CaseStore(tmp_path / "store") as store:
        store.put(make.MODEL, make.records("abc"), make.vectors(3))
        store.delete(["a"])  # empties the WAL
        for name in "defgh":
            store.put(make.MODEL, make.records(name), make.vectors(1))
        shutil.copytree(tmp_path / "store", tmp_path / "killed")
    wal = tmp_path / "killed" / "cases.sqlite-wal"
    data = bytearray(wal.read_bytes())
    if place == "tail":  # killed in the middle of a write
        data = data[:-100]
    elif place is not None:
        data[place] ^= 1
    wal.write_bytes(data)
    (tmp_path / "killed" / "cases.sqlite-shm").unlink()
    (check,) = check_folder(tmp_path / "killed")
    assert check.ok == (words is None)
    assert words is None or words in " ".join(check.problems)
    assert wal.read_bytes() == data


@pytest.mark.parametrize("number", [0, 4, 2**63 - 1, "'text'"])
def test_an_impossible_counter_of_rows_is_found(filled, number):
    change(filled, f"UPDATE sqlite_sequence SET seq = {number}")
    check = check_database(filled)
    assert check.problems == ("Its counter of rows differs from what was written.",)


def test_an_emptied_file_is_refused(filled):
    filled.write_bytes(b"")
    (check,) = check_folder(filled.parent)
    assert not check.ok
    with pytest.raises(ArtifactError, match="it is empty"):
        CaseStore(filled.parent)
    assert filled.read_bytes() == b""


@pytest.mark.parametrize(
    ("statement", "damaged", "words"),
    [
        ("UPDATE cases SET report = 'Other.' WHERE id = 'c'", (3,), None),
        ("UPDATE cases SET embedding = zeroblob(64) WHERE id IN ('a', 'e')", (1, 5), None),
        ("DELETE FROM cases WHERE id = 'c'", (), "missing"),
        ("UPDATE meta SET value = 'x' WHERE key = 'fingerprint'", (), "metadata differs"),
        ("UPDATE meta SET value = '7' WHERE key = 'schema_version'", (), "has version 7"),
        ("DELETE FROM meta", (), r"has version \(none\)"),
        ("DROP TABLE meta", (), "not a case store"),
        ("CREATE TABLE other (x)", (), "schema differs"),
    ],
)
def test_each_damage_is_found(filled, statement, damaged, words):
    change(filled, statement)
    check = check_database(filled)
    assert not check.ok
    assert check.damaged == damaged
    if words is None:
        assert check.problems == ()
    else:
        assert re.search(words, " ".join(check.problems))


def test_a_broken_page_is_found_in_place_of_a_row(filled):
    data = bytearray(filled.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    filled.write_bytes(data)
    check = check_database(filled)
    assert not check.ok
    assert "SQLite" in check.problems[0]


def test_text_in_place_of_a_store(tmp_path):
    (tmp_path / "cases.sqlite").write_text("These are not cases. " * 100)
    (check,) = check_folder(tmp_path)
    assert "not a database" in check.problems[0]
    with pytest.raises(ConfigError, match="There is no case store at"):
        check_folder(tmp_path / "nowhere")


def test_an_empty_store_is_whole(tmp_path):
    CaseStore(tmp_path).close()
    (check,) = check_folder(tmp_path)
    assert (check.ok, check.rows, check.fingerprint) == (True, 0, "")
