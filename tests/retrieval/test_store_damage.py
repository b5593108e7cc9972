"""Files that are no case store, and damage in one that is: found, told and never served."""

import os
import sqlite3

import pytest

from contract.errors import ArtifactError
from retrieval.store import CaseStore

from .store_files import change, read_all


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


@pytest.mark.parametrize(
    "meta", [("dimension", "many"), ("dimension", "0"), ("fingerprint", ""), ("rows", "4 10")]
)
def test_damaged_meta(filled, meta):
    change(filled, "UPDATE meta SET value = ? WHERE key = ?", meta[::-1])
    with pytest.raises(ArtifactError, match="damaged"):
        CaseStore(filled.parent)
