"""The sidecar is killed under load, again and again. A ledger outside of it says what must be there afterwards.

SIGKILL leaves what the kernel has in memory, so this is no test of a power failure.
"""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest

from bench.faults.ledger import MODEL, Ledger, list_ids, make_group, read_groups
from client.retrieval import RetrievalTransport
from contract.case_backup import MANIFEST
from contract.connection import Connection
from contract.errors import CxrError
from retrieval.verification import check_folder

from .crashing_server import POINTS

ROOT = Path(__file__).parents[2]
SENDERS = 3
GROUPS = 12  # of each sender
CASES = 50  # of a group: more than SQLite gets with one statement
ADMIN_TOKEN = "cxr_" + "a" * 40
TIMEOUT_S = 60.0


def make_ledger() -> Ledger:
    return Ledger([f"{sender}-{number}" for sender in range(SENDERS) for number in range(GROUPS)], CASES)


class Server:
    """A sidecar that may kill itself."""

    def __init__(self, directory: Path, crash_at: str) -> None:
        key = directory.with_name("key")
        key.write_text(ADMIN_TOKEN)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-P", Path(__file__).with_name("crashing_server.py")),
                *("--store", directory, "--address", "127.0.0.1:0", "--admin-key", key, "--threads", "1"),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT), "CRASH_AT": crash_at},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._transport: RetrievalTransport | None = None

    def wait_ready(self) -> RetrievalTransport:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("Ready on "), line
        address = line.split(": ")[0].removeprefix("Ready on ")
        self._transport = RetrievalTransport(address, Connection(token=ADMIN_TOKEN))
        return self._transport

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        if self._transport is not None:
            self._transport.close()


def check_search(transport: RetrievalTransport, ledger: Ledger, chance: random.Random) -> None:
    """Fail unless the index holds what the store holds."""
    groups = [group for group, version in ledger.acknowledged.items() if version]
    for group in chance.sample(groups, min(4, len(groups))):
        case = make_group(group, ledger.acknowledged[group], CASES)[chance.randrange(CASES)]
        (hit,) = transport.search(MODEL, case.embedding, 1, (), TIMEOUT_S).cases
        assert (hit.id, hit.report, round(hit.score, 5)) == (case.id, case.report, 1.0)


def send(transport: RetrievalTransport, ledger: Ledger, sender: int, seed: int) -> None:
    """Write and delete groups until the sidecar is gone."""
    chance = random.Random(seed)
    with contextlib.suppress(CxrError, grpc.RpcError, ValueError):  # ValueError: the channel is closed
        while True:
            group = f"{sender}-{chance.randrange(GROUPS)}"
            version = ledger.begin(group, delete=chance.random() < 0.2)
            if version:
                transport.add(MODEL, make_group(group, version, CASES), TIMEOUT_S)
            else:
                transport.delete(list_ids(group, CASES), TIMEOUT_S)
            ledger.end(group, version)


def back_up(transport: RetrievalTransport, folder: Path) -> None:
    with contextlib.suppress(CxrError, grpc.RpcError, ValueError):
        transport.back_up(folder, TIMEOUT_S)


def kill_once(
    store: Path, at: str, ledger: Ledger, chance: random.Random, folder: Path | None, senders: int = SENDERS
) -> bool:
    """Compare the store with the ledger, put load on the sidecar, and kill it. Return whether it killed itself.

    Args:
        store: Directory of the store.
        at: Fault point; "" for a kill at any time.
        ledger: What must be there.
        chance: For times and groups.
        folder: Folder of a backup that is written meanwhile; None for none.
        senders: Number of senders; 0 to compare only.
    """
    server, threads = Server(store, at), list[threading.Thread]()
    try:
        transport = server.wait_ready()
        assert not ledger.compare(read_groups(transport, TIMEOUT_S))
        check_search(transport, ledger, chance)
        assert not list(store.glob(".copy-*"))
        for sender in range(senders):
            arguments = (transport, ledger, sender, chance.randrange(10**6))
            threads.append(threading.Thread(target=send, args=arguments))
        if folder is not None:
            threads.append(threading.Thread(target=back_up, args=(transport, folder)))
        for thread in threads:
            thread.start()
        try:
            server.process.wait(10.0 if at else chance.uniform(0.0, 0.5))
        except subprocess.TimeoutExpired:
            return False
        return True
    finally:
        server.kill()
        for thread in threads:
            thread.join()


def kill_at_the_start(store: Path, chance: random.Random) -> None:
    """Kill a sidecar that starts, and perhaps recovers from the kill before."""
    server = Server(store, "")
    time.sleep(chance.uniform(0.1, 1.0))
    server.kill()


def kill_again_and_again(tmp_path: Path, kills: int, seed: int) -> tuple[Ledger, int]:
    """Return the ledger, and the number of times that a fault point killed the sidecar."""
    chance, ledger, store, fused = random.Random(seed), make_ledger(), tmp_path / "store", 0
    points = [*POINTS, None]  # None: at any time
    for turn in range(kills):
        if turn % 7 == 3:
            kill_at_the_start(store, chance)
            continue
        point = points[7 * turn % len(points)]
        folder = tmp_path / f"backup-{turn}" if turn % 2 else None
        at = f"{point}:{chance.randint(3, 25)}" if point else ""
        fused += kill_once(store, at, ledger, chance, folder)
        if folder is not None and folder.exists():  # it has its name, so it is whole
            assert (folder / MANIFEST).is_file()
            assert all(check.ok for check in check_folder(folder))
            shutil.rmtree(folder)
    kill_once(store, "", ledger, chance, None, senders=0)
    assert all(check.ok for check in check_folder(store))
    return ledger, fused


def test_what_was_acknowledged_survives_some_kills(tmp_path):
    ledger, fused = kill_again_and_again(tmp_path, kills=6, seed=1)
    assert ledger.writes > 10
    assert fused >= 3


@pytest.mark.slow
def test_what_was_acknowledged_survives_many_kills(tmp_path):
    ledger, fused = kill_again_and_again(tmp_path, kills=220, seed=2)
    print(f"{ledger.writes} acknowledged writes; {fused} of 220 kills at fault points")
    assert ledger.writes > 1000
    assert fused > 100
