"""Backups while the sidecar serves, and what becomes of them."""

import json
import os
import shutil
import stat
import threading
import time
from pathlib import Path

import pytest

import retrieval.copying
import retrieval.restoring
from client.backup import write_backup
from client.retrieval import RetrievalTransport
from contract.case_backup import read_manifest
from contract.connection import Connection
from contract.errors import ArtifactError, BusyError, ConfigError, ServerError
from contract.proto import retrieval_pb2
from retrieval.connection import connect
from retrieval.indexes import CaseIndexes
from retrieval.restoring import restore
from retrieval.store import CaseStore
from retrieval.verification import check_folder

from .store_files import change


@pytest.fixture
def back_up(tmp_path, make):
    """A function: sidecar, name -> the folder of a new backup of it."""

    def make_one(sidecar, name="backup") -> Path:
        transport = RetrievalTransport(sidecar.server.address, Connection(token=make.ADMIN_TOKEN))
        try:
            return transport.back_up(tmp_path / name, 60).folder
        finally:
            transport.close()

    return make_one


def ask(sidecar, make):
    token = (("authorization", f"Bearer {make.ADMIN_TOKEN}"),)
    return sidecar.client.stub.Backup(retrieval_pb2.BackupRequest(), timeout=60, metadata=token)


@pytest.fixture
def backup(sidecar, back_up, make) -> Path:
    """A backup of twenty cases of one model and three of another."""
    sidecar.client.add(make.vectors(20), report="Report zebra.")
    sidecar.client.add(make.vectors(3, seed=1), ids="abc", fingerprint=make.OTHER_MODEL)
    return back_up(sidecar)


def list_names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_restored_backup_answers_as_the_store(sidecar, backup, open_sidecar, make, tmp_path):
    manifest = read_manifest(backup)
    names = ["cases.sqlite", f"models/{make.OTHER_MODEL}/cases.sqlite"]
    assert [file.name for file in manifest.files] == names
    assert {check.path.relative_to(backup).as_posix(): check.rows for check in check_folder(backup)} == {
        names[0]: 20,
        names[1]: 3,
    }
    sidecar.client.delete(["7"])  # after the backup
    restored = tmp_path / "new"
    assert [(check.rows, check.ok) for check in restore(backup, restored)] == [(20, True), (3, True)]
    assert list_names(restored) == ["cases.sqlite", "lock", "models", f"models/{make.OTHER_MODEL}", names[1]]
    again = open_sidecar("new")
    query = make.vectors(20)[7]
    assert again.client.find_ids(query, k=1) == ["7"]
    assert again.client.get("7").report == "Report zebra."
    assert again.client.search([query], k=9, fingerprint=make.OTHER_MODEL)[0].hits[0].case.id in "abc"
    assert again.client.add(make.vectors(1), ids=["later"]).added == 1
    assert again.store.get("later").id == "later"


def test_only_the_owner_may_read_a_backup_and_what_is_restored(backup, tmp_path):
    restore(backup, tmp_path / "new")
    for folder in (backup, tmp_path / "new"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_a_backup_holds_what_was_acknowledged_before_and_whole_batches(sidecar, back_up, make):
    acknowledged: list[int] = []
    stop = threading.Event()

    def add_batches() -> None:
        for number in range(10_000):
            if stop.is_set():
                return
            ids = [f"{number}-{place}" for place in range(20)]
            sidecar.client.add(make.vectors(20, seed=number), ids=ids)
            acknowledged.append(number)

    sidecar.client.add(make.vectors(1000), ids=[f"old-{place}" for place in range(1000)])
    thread = threading.Thread(target=add_batches)
    thread.start()
    try:
        for turn in range(3):
            before = len(acknowledged)
            folder = back_up(sidecar, f"backup-{turn}")
            (check,) = check_folder(folder)
            assert check.ok
            assert (check.rows - 1000) % 20 == 0
            assert before <= (check.rows - 1000) // 20 <= len(acknowledged) + 1
    finally:
        stop.set()
        thread.join()
    assert len(acknowledged) > 1  # the sidecar went on meanwhile
    assert list_names(sidecar.store.directory) == [
        "cases.sqlite",
        "cases.sqlite-shm",
        "cases.sqlite-wal",
        "lock",
    ]


def test_one_backup_at_a_time_and_one_that_is_given_up(sidecar, back_up, make, tmp_path, monkeypatch):
    sidecar.client.add(make.vectors(50))
    begun, copy = threading.Event(), retrieval.copying.copy_database

    def copy_until_given_up(source, directory, is_wanted):
        begun.set()
        while is_wanted():
            pass
        return copy(source, directory, is_wanted)

    with monkeypatch.context() as patch:
        patch.setattr("retrieval.store.copy_database", copy_until_given_up)
        call = ask(sidecar, make)
        assert begun.wait(60)
        with pytest.raises(BusyError, match="Another backup is running"):
            back_up(sidecar)
        assert not (tmp_path / "backup").exists()
        call.cancel()
    for _ in range(1000):  # the sidecar notices soon
        try:
            back_up(sidecar)
            break
        except BusyError:
            pass
    assert check_folder(tmp_path / "backup")[0].rows == 50
    assert "partial" not in " ".join(list_names(tmp_path))


def test_a_deletion_does_not_wait_for_a_backup_and_is_erased_after_it(sidecar, back_up, make, monkeypatch):
    sidecar.client.add(make.vectors(3), report="Report zebra.")
    copy = retrieval.copying.copy_database

    def delete_meanwhile(source, directory, is_wanted):
        held = connect(sidecar.store.directory / "cases.sqlite")
        held.execute("BEGIN")
        held.execute("SELECT COUNT(*) FROM cases").fetchone()  # as the copy does
        began = time.monotonic()
        assert sidecar.client.delete(["0", "1", "2"]) == 3
        assert time.monotonic() - began < 4
        assert holds_report(sidecar)
        held.close()
        return copy(source, directory, is_wanted)

    monkeypatch.setattr("retrieval.store.copy_database", delete_meanwhile)
    assert check_folder(back_up(sidecar))[0].rows == 0
    assert not holds_report(sidecar)


def holds_report(sidecar) -> bool:
    files = [path for path in sidecar.store.directory.iterdir() if path.is_file()]
    return any(b"Report zebra." in path.read_bytes() for path in files)


def test_a_disk_that_takes_no_copy_leaves_a_working_server(sidecar, back_up, make, tmp_path, monkeypatch):
    sidecar.client.add(make.vectors(5))
    with monkeypatch.context() as patch:
        patch.setattr(retrieval.copying, "_PATTERN", "no-such-folder/.copy-*.partial")
        with pytest.raises(ServerError, match="takes no copy of the case store: No such file"):
            back_up(sidecar)
    assert list_names(tmp_path / "store") == ["cases.sqlite", "cases.sqlite-shm", "cases.sqlite-wal", "lock"]
    assert sidecar.client.add(make.vectors(1), ids=["new"]).added == 1
    assert check_folder(back_up(sidecar))[0].rows == 6


def test_a_copy_that_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".copy-0123.partial").write_bytes(b"Report.")
    (tmp_path / "store" / ".restore-0123.partial").mkdir()
    (tmp_path / "store" / ".restore-0123.partial" / "cases.sqlite").write_bytes(b"Report.")
    CaseStore(tmp_path / "store").close()
    assert list_names(tmp_path / "store") == ["cases.sqlite", "lock"]


def test_a_model_whose_store_is_damaged_is_named(open_sidecar, back_up, make, tmp_path):
    first = open_sidecar()
    first.client.add(make.vectors(3))
    first.client.add(make.vectors(3), fingerprint=make.OTHER_MODEL)
    first.stop()
    path = tmp_path / "store" / "models" / make.OTHER_MODEL / "cases.sqlite"
    path.write_bytes(b"These are not cases. " * 100)
    folder = back_up(open_sidecar(fingerprint=make.MODEL))
    assert read_manifest(folder).left_out == (make.OTHER_MODEL,)
    assert [file.name for file in read_manifest(folder).files] == ["cases.sqlite"]


def test_an_existing_folder_and_an_existing_store_are_kept(sidecar, backup, back_up, make, tmp_path):
    before = list_names(backup)
    with pytest.raises(ConfigError, match=r"exists\. Give the path of a new folder"):
        back_up(sidecar)
    assert list_names(backup) == before
    with CaseStore(tmp_path / "own") as store:
        store.put(make.MODEL, make.records("xy"), make.vectors(2))
    with pytest.raises(ConfigError, match=r"There is a case store at .*--replace"):
        restore(backup, tmp_path / "own")
    with CaseStore(tmp_path / "own") as store:
        assert store.count() == 2
        with pytest.raises(ConfigError, match="in use by another server"):
            restore(backup, tmp_path / "own", replace=True)
    with pytest.raises(ConfigError, match="not a backup of a case store"):
        restore(tmp_path / "own", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_replacing_leaves_nothing_of_the_old_store(backup, make, tmp_path):
    """Neither its WAL, which SQLite would replay over the new file, nor a model that the backup lacks."""
    with CaseIndexes(tmp_path / "live") as indexes:
        indexes.home.store.put(make.MODEL, make.records("xyz"), make.vectors(3))
        shutil.copytree(tmp_path / "live", tmp_path / "own")  # as after kill -9
    assert (tmp_path / "own" / "cases.sqlite-wal").stat().st_size
    (tmp_path / "own" / "models" / ("c" * 64)).mkdir(parents=True)
    (tmp_path / "own" / "models" / ("c" * 64) / "cases.sqlite").write_bytes(b"old")
    restore(backup, tmp_path / "own", replace=True)
    other = f"models/{make.OTHER_MODEL}"
    assert list_names(tmp_path / "own") == ["cases.sqlite", "lock", "models", other, f"{other}/cases.sqlite"]
    assert [(check.rows, check.ok) for check in check_folder(tmp_path / "own")] == [(20, True), (3, True)]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest"])
def test_a_damaged_backup_is_refused_and_the_store_stays(backup, make, tmp_path, damage):
    with CaseStore(tmp_path / "own") as store:
        store.put(make.MODEL, make.records("xy"), make.vectors(2))
    before = {path.name: path.read_bytes() for path in (tmp_path / "own").iterdir()}
    path = backup / ("backup.json" if damage == "manifest" else "cases.sqlite")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-4096] if damage == "cut" else data[:50] if damage == "manifest" else data)
    with pytest.raises(ArtifactError, match=r"differs from what was written|No such file|is damaged"):
        restore(backup, tmp_path / "own", replace=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "own").iterdir()} == before
    if damage == "manifest":
        with pytest.raises(ArtifactError, match=r"backup\.json is damaged"):
            check_folder(backup)
    else:
        assert [check.ok for check in check_folder(backup)] == [False, True]


def test_a_killed_restore_keeps_servers_out_until_it_is_run_again(backup, make, tmp_path, monkeypatch):
    class Killed(BaseException):
        """The process is gone."""

    with CaseStore(tmp_path / "own") as store:
        store.put(make.MODEL, make.records("xy"), make.vectors(2))
    sync, left = retrieval.restoring.sync_folder, [0]

    def die(folder: Path) -> None:
        left[0] -= 1
        if not left[0]:
            raise Killed
        sync(folder)

    monkeypatch.setattr(retrieval.restoring, "sync_folder", die)
    for number in range(1, 6):
        left[0] = number
        with pytest.raises(Killed):
            restore(backup, tmp_path / "own", replace=True)
        with pytest.raises(
            ArtifactError, match=r"did not end. Run `cxr index restore BACKUP --store .* again"
        ):
            CaseStore(tmp_path / "own")
        (check,) = check_folder(tmp_path / "own")
        assert check.problems == ("A restore into this store did not end.",)
        with pytest.raises(ConfigError, match="--replace"):
            restore(backup, tmp_path / "own")
    monkeypatch.undo()
    restore(backup, tmp_path / "own", replace=True)
    with CaseStore(tmp_path / "own") as store:
        assert store.count() == 20


def part(**fields) -> retrieval_pb2.BackupPart:
    return retrieval_pb2.BackupPart(**fields)


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        ([], ServerError, "whole backup"),
        ([part(complete=True)], ServerError, "whole backup"),
        ([part(name="cases.sqlite"), part(data=b"x")], ServerError, "whole backup"),
        ([part(name="cases.sqlite"), part(data=b"x"), part(sha256="0" * 64)], ServerError, "on its way"),
        ([part(data=b"x"), part(complete=True)], ServerError, "whole backup"),
        ([part(name="../../escaped")], ArtifactError, "names a file"),
        ([part(name="/etc/escaped")], ArtifactError, "names a file"),
        ([part(name="models/../cases.sqlite")], ArtifactError, "names a file"),
    ],
)
def test_what_is_no_whole_backup_leaves_nothing(parts, error, words, tmp_path):
    with pytest.raises(error, match=words):
        write_backup(parts, tmp_path / "deep" / "backup")
    assert list_names(tmp_path) == ["deep"]


def test_a_full_disk_at_the_client_leaves_nothing(tmp_path, monkeypatch):
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ArtifactError, match=r"Could not write .*: No space left on device"):
        write_backup([part(name="cases.sqlite"), part(sha256="0" * 64)], tmp_path / "backup")
    assert list_names(tmp_path) == []


def test_an_error_of_the_sidecar_ends_the_backup(open_sidecar, back_up, tmp_path):
    sidecar = open_sidecar(start=False)
    with pytest.raises(Exception, match="not built yet"):
        back_up(sidecar)
    assert not (tmp_path / "backup").exists()


def test_a_damaged_row_is_in_the_backup_and_told_of(open_sidecar, back_up, make, tmp_path):
    with CaseStore(tmp_path / "store") as store:
        store.put(make.MODEL, make.records("abc"), make.vectors(3))
    change(tmp_path / "store" / "cases.sqlite", "UPDATE cases SET report = 'Other.' WHERE id = 'b'")
    folder = back_up(open_sidecar())
    (check,) = check_folder(folder)
    assert (check.rows, check.damaged, check.problems, check.ok) == (3, (2,), (), False)
    (restored,) = restore(folder, tmp_path / "new")
    assert restored.damaged == (2,)
    assert json.dumps(check.to_dict())  # for `--json`


def test_a_stub_sees_the_parts_in_order(sidecar, make):
    sidecar.client.add(make.vectors(2))
    parts = list(ask(sidecar, make))
    assert parts[0].name == "cases.sqlite"
    assert all(part.data and len(part.data) <= 2**20 for part in parts[1:-2])
    assert parts[-2].sha256
    assert parts[-1].complete
