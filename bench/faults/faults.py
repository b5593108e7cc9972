"""The faults of a soak run, by name, for a `cxr serve` on this machine."""

import mmap
import os
import signal
import time
from collections.abc import Callable
from itertools import cycle, permutations
from pathlib import Path
from typing import Final

from bench.faults.served_process import SERVERS, ServedProcess

_FILL: Final = "cxr_soak_fill"
_SHORT_STOP_S: Final = 1.5  # usually enough to abort Triton 2.51 if one of its stubs is stopped for so long
FULL_S: Final = 4.0
CUT_S: Final = 6.0  # longer than the deadline of the clients
_BETWEEN_S: Final = 1.0
_STEPS_BYTES: Final = (2**22, 2**16, mmap.PAGESIZE)
_ORDERS: Final = cycle(permutations(reversed(SERVERS)))

Fault = Callable[[ServedProcess], None]


def kill_stub(served: ServedProcess) -> None:
    """Kill a python process of a model, as the kernel does when memory runs out. Each call kills another one."""
    stubs = sorted(served.find_stubs(), key=lambda stub: stub.model)
    if stubs:
        _signal(stubs[int(time.monotonic()) % len(stubs)].process.pid, signal.SIGKILL)


def stop_stub_shortly(served: ServedProcess) -> None:
    """Stop a python process of a model for a moment."""
    stubs = served.find_stubs()
    if stubs:
        _stop_shortly(stubs[int(time.monotonic()) % len(stubs)].process.pid)


def stop_stub(served: ServedProcess) -> None:
    """Stop a python process of a model for good."""
    stubs = served.find_stubs()
    if stubs:
        _signal(stubs[int(time.monotonic()) % len(stubs)].process.pid, signal.SIGSTOP)


def kill_triton(served: ServedProcess) -> None:
    """Kill Triton."""
    _signal(served.find_server("tritonserver"), signal.SIGKILL)


def stop_triton_shortly(served: ServedProcess) -> None:
    """Stop Triton for a moment."""
    _stop_shortly(served.find_server("tritonserver"))


def stop_triton(served: ServedProcess) -> None:
    """Stop Triton for good."""
    _signal(served.find_server("tritonserver"), signal.SIGSTOP)


def kill_sidecar(served: ServedProcess) -> None:
    """Kill the retrieval sidecar."""
    _signal(served.find_server("retrieval.server"), signal.SIGKILL)


def kill_relay(served: ServedProcess) -> None:
    """Kill the relay in front of Triton."""
    _signal(served.find_server("serving.relay"), signal.SIGKILL)


def stop_relay(served: ServedProcess) -> None:
    """Stop the relay for good."""
    _signal(served.find_server("serving.relay"), signal.SIGSTOP)


def restart_all(served: ServedProcess) -> None:
    """Kill all servers one after the other, so that they start again in another order. Each call uses another order."""
    order = next(_ORDERS)
    for word in order:
        _signal(served.find_server(word), signal.SIGKILL)
        time.sleep(_BETWEEN_S)


def fill_space(directory: Path, when_full: Callable[[], None]) -> None:
    """Fill the file system of a directory completely for some seconds; only one that belongs to this run.

    Args:
        directory: `/dev/shm` or the folder of the servers' files (`bench.faults.namespaces`).
        when_full: Called once when it is full. Servers keep the memory that they hold in /dev/shm, and small requests
            fit into it. Only a request larger than all earlier ones needs more.
    """
    path, size = directory / _FILL, 0
    try:
        with path.open("wb") as file:
            size = _take_all(file.fileno(), size)
            when_full()
            full_until = time.monotonic() + FULL_S
            while time.monotonic() < full_until:
                size = _take_all(file.fileno(), size)  # again, if space was freed meanwhile
                time.sleep(0.005)
    finally:
        path.unlink(missing_ok=True)


def _take_all(file: int, size: int) -> int:
    """Allocate all free space to a file that has `size` bytes; return its new size."""
    for step in _STEPS_BYTES:
        while _take(file, size, step):
            size += step
    return size


def _take(file: int, start: int, step: int) -> bool:
    """Allocate one step of space to a file; return whether that succeeded."""
    try:
        os.posix_fallocate(file, start, step)
    except OSError:
        return False
    return True


def _stop_shortly(pid: int | None) -> None:
    _signal(pid, signal.SIGSTOP)
    time.sleep(_SHORT_STOP_S)
    _signal(pid, signal.SIGCONT)


def _signal(pid: int | None, number: int) -> None:
    if pid is not None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return


FAULTS: Final[dict[str, Fault]] = {
    "kill a python process": kill_stub,
    "stop a python process for 1.5 s": stop_stub_shortly,
    "stop a python process for good": stop_stub,
    "kill Triton": kill_triton,
    "stop Triton for 1.5 s": stop_triton_shortly,
    "stop Triton for good": stop_triton,
    "kill the relay": kill_relay,
    "stop the relay for good": stop_relay,
    "kill the sidecar": kill_sidecar,
}
# The names of the events of `bench.faults.events`.
FULL: Final = f"fill /dev/shm for {FULL_S:g} s"
DISK: Final = f"fill the disk for {FULL_S:g} s"
CUT: Final = f"cut the network for {CUT_S:g} s"
RESTART: Final = "kill all in another order"
CORRUPT: Final = "corrupt the newest version"
SWAP: Final = "swap the version"
BAD: Final = "bad clients for 8 s"
