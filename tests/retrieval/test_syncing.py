"""One fsync for many writes, and what a failing disk leaves."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import retrieval.syncing
from contract.errors import ArtifactError
from retrieval.syncing import GroupSync


@pytest.fixture
def slow_disk(monkeypatch):
    """Events: an fsync has begun, it may end; and the number of fsyncs."""

    class Disk:
        begun, go, count, fails = threading.Event(), threading.Event(), 0, False

    def sync(_: int) -> None:
        Disk.count += 1
        Disk.begun.set()
        assert Disk.go.wait(60)
        if Disk.fails:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(retrieval.syncing.os, "fsync", sync)
    return Disk


@pytest.fixture
def wal(tmp_path):
    path = tmp_path / "cases.sqlite-wal"
    path.touch()
    sync = GroupSync(path)
    yield sync
    sync.close()


def test_writes_that_come_during_an_fsync_share_the_next_one(wal, slow_disk):
    wal.note()
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(wal.wait)
        assert slow_disk.begun.wait(60)
        for _ in range(8):
            wal.note()
        others = [pool.submit(wal.wait) for _ in range(8)]
        assert not any(future.done() for future in (first, *others))
        slow_disk.go.set()
        for future in (first, *others):
            future.result(60)
    assert slow_disk.count == 2  # the first one may have begun before the other writes
    wal.wait()  # nothing is new
    assert slow_disk.count == 2


def test_after_a_failed_fsync_nothing_is_confirmed(wal, slow_disk):
    slow_disk.fails = True
    wal.note()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(wal.wait) for _ in range(2)]
        assert slow_disk.begun.wait(60)
        slow_disk.go.set()
        for future in waiting:
            with pytest.raises(ArtifactError, match="did not confirm a write"):
                future.result(60)
    slow_disk.fails = False
    wal.note()
    with pytest.raises(ArtifactError, match="restart the sidecar"):
        wal.wait()
    assert slow_disk.count == 1


def test_a_write_that_the_disk_does_not_confirm_is_not_acknowledged(sidecar, make, slow_disk, expect_status):
    slow_disk.go.set()
    vectors = make.vectors(4)
    sidecar.client.add(vectors[:3])
    slow_disk.fails = True
    with expect_status("INTERNAL", "did not confirm"):
        sidecar.client.add(vectors[3:], ids=["3"])
    with expect_status("INTERNAL", "did not confirm"):
        sidecar.client.delete(["1"])
    assert sidecar.client.find_ids(vectors[2], k=1) == ["2"]  # searches go on
    assert sidecar.client.find_ids(vectors[3], k=1) == ["3"]  # index and store agree


def test_a_case_is_synced_before_it_is_acknowledged(sidecar, make, slow_disk):
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(sidecar.client.add, make.vectors(3), timeout=60)
        assert slow_disk.begun.wait(60)
        assert not adding.done()
        slow_disk.go.set()
        assert adding.result(60).added == 3
