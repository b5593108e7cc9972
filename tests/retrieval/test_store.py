"""The case store on disk: what is put comes back, whole batches or nothing, one server at a time."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from contract.errors import ArtifactError, ConfigError, FingerprintError
from retrieval.cases import CaseRecord, UnknownCaseError
from retrieval.directory import lock_directory
from retrieval.store import CaseStore

from .store_files import read_all

ROOT = Path(__file__).parents[2]


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
