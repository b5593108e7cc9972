"""The events of a soak run, by name: the faults of `bench.faults.faults`, and those that need its clients and files."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Final

import numpy as np

from bench.faults.faults import (
    BAD,
    CORRUPT,
    CUT,
    CUT_S,
    DISK,
    FAULTS,
    FULL,
    RESTART,
    SWAP,
    Fault,
    fill_space,
    kill_triton,
    restart_all,
)
from bench.faults.good_clients import GoodClients, SoakCase, draw_image
from bench.faults.hostile import HostileReport, HostileTraffic
from bench.faults.namespaces import FAR_ADDRESS, SHARED_MEMORY, has_own_memory, has_own_network, set_network
from bench.faults.served_process import ServedProcess, wait_for
from bench.faults.writers import GUEST, Writers
from contract.errors import ArtifactError, ServerError
from contract.repository import read_published
from serving.triton import read_admin_key

EVENTS: Final = (*FAULTS, RESTART, CORRUPT, SWAP, FULL, DISK, CUT, BAD)
_BAD_CALLS: Final = 1500
_CUT_CALLS: Final = 1500
_BAD_S: Final = 8.0
_LARGE_SIDES: Final = range(2048, 4096, 256)  # pixels; each file needs more memory than the ones before
_CORRUPT_S: Final = 3.0
_FIRST_ANSWER_S: Final = 30.0


@dataclass(frozen=True)
class Scene:
    """What the events act on.

    Attributes:
        good: The good clients.
        writers: The writers, which belong to the good clients.
        traffic: The bad clients.
        hostile: Receives what the bad clients saw.
        repository: The served repository.
        has_versions: Whether it has two versions of one model.
        has_disk: Whether the servers' files are on a small disk of their own.
    """

    good: GoodClients
    writers: Writers
    traffic: HostileTraffic
    hostile: list[HostileReport]
    repository: Path
    has_versions: bool
    has_disk: bool


def list_events(scene: Scene) -> tuple[dict[str, Fault], dict[str, str]]:
    """Return the events by name, and for each that is not possible here the reason."""

    def disturb(_: ServedProcess) -> None:
        report = scene.traffic.run(bad_calls=_BAD_CALLS, cut_calls=_CUT_CALLS, limit_s=_BAD_S)
        scene.hostile.append(report)

    made: dict[str, Fault] = {
        **FAULTS,
        RESTART: restart_all,
        CORRUPT: lambda served: corrupt(served, scene.repository),
        SWAP: lambda served: swap(served, scene.repository),
        FULL: _make_memory_fill(scene.good),
        DISK: lambda served: fill_space(served.directory, lambda: None),
        CUT: _make_cut(scene.good, scene.writers),
        BAD: disturb,
    }
    reasons = {
        SWAP: "" if scene.has_versions else "it needs --bundle",
        FULL: "" if has_own_memory() else "this user may not have a /dev/shm of its own",
        DISK: "" if scene.has_disk else "this user may not mount a file system",
        CUT: "" if has_own_network() else "this user may not have a network namespace",
    }
    skipped = {name: reason for name, reason in reasons.items() if reason}
    return {name: made[name] for name in EVENTS if name not in skipped}, skipped


def swap(served: ServedProcess, repository: Path) -> None:
    """Make the other version the current one, in the running server too."""
    from export.versions import rollback

    rollback(repository)
    _reload(served, repository)


def corrupt(served: ServedProcess, repository: Path) -> None:
    """Change one byte of the newest version, try to load it, kill Triton, and repair the file some seconds later.

    Raises:
        ServerError: The damaged file was loaded, or Triton started with it.
    """
    state = read_published(repository)
    files = state.versions[state.newest]["files"]
    path = repository / next(name for name in sorted(files) if name.endswith(".onnx"))
    flip_byte(path)
    try:
        _require_refused(lambda: _reload(served, repository))
        kill_triton(served)
        time.sleep(_CORRUPT_S)
        if served.find_server("tritonserver") is not None:
            raise ServerError("Triton started with a damaged file.")
    finally:
        flip_byte(path)


def flip_byte(path: Path) -> None:
    """Change one bit in the middle of a file, in place. The second time repairs it."""
    with path.open("r+b") as file:
        middle = path.stat().st_size // 2
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 1]))


def _require_refused(load: Callable[[], None]) -> None:
    try:
        load()
    except ArtifactError:
        return
    raise ServerError("A damaged version was loaded.")


def _reload(served: ServedProcess, repository: Path) -> None:
    from serving.reload import reload_models

    key = read_admin_key(served.logs / "runtime" / "admin_key")
    reload_models(served.triton_url, repository, key)


def _make_memory_fill(good: GoodClients) -> Fault:
    """Return the fault that fills /dev/shm while a client sends a file that needs more than the servers hold."""
    sides = cycle(_LARGE_SIDES)

    def fill(_: ServedProcess) -> None:
        large = SoakCase(draw_image(next(sides), np.random.default_rng(0)), None)
        fill_space(SHARED_MEMORY, lambda: good.invite(large))

    return fill


def _make_cut(good: GoodClients, writers: Writers) -> Fault:
    """Return the fault that cuts off two clients: one predicts, one writes. The others use loopback all the time."""

    def cut(served: ServedProcess) -> None:
        case = SoakCase(None, "FINDINGS: A small left pleural effusion is seen.")
        guests = [
            good.invite(case, f"{FAR_ADDRESS}:{served.ports.grpc}"),
            good.add(writers.connect(GUEST, f"{FAR_ADDRESS}:{served.ports.retrieval}"), guest=True),
        ]
        if not wait_for(lambda: all(guest.good_at for guest in guests), _FIRST_ANSWER_S):
            raise ServerError("The servers do not answer over the network.")
        set_network(up=False)
        try:
            time.sleep(CUT_S)
        finally:
            set_network(up=True)
        if not all(guest.errors for guest in guests):
            raise ServerError("A client did not notice that the network was cut.")

    return cut
