"""Read the processes of a Triton on Linux: the python stubs of its models, and their processor time.

Each instance of a model of the python backend (and of the python-based "onnxruntime" backend) runs in a stub. Triton
2.51 starts a stub only once. When it ends, every request to its instance fails, although the model counts as ready.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NAME: Final = "triton_python_b"  # the kernel keeps 15 characters of triton_python_backend_stub
_STOPPED: Final = "ZXTt"  # zombie, dead, stopped, traced: proc(5)
_TICK_S: Final = 1.0 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """One process: its state letter (proc(5)), parent, processor time in seconds and start (ticks since boot)."""

    pid: int
    name: str
    state: str
    parent: int
    cpu_s: float
    started: int

    @property
    def runs(self) -> bool:
        """Whether the process can work: it is neither a zombie nor stopped."""
        return self.state not in _STOPPED


@dataclass(frozen=True)
class Stub:
    """A process that runs one instance of a model version. Both are "" for a zombie, which has no command line."""

    process: Process
    model: str
    version: str


def read_process(pid: int) -> Process | None:
    """Return a process of this machine; None if it does not exist."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    cpu = (int(fields[11]) + int(fields[12])) * _TICK_S
    return Process(pid, head.partition("(")[2], fields[0], int(fields[1]), cpu, int(fields[19]))


def list_processes() -> list[Process]:
    """Return all processes of this machine, with zombies."""
    pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
    return [process for pid in pids if (process := read_process(pid)) is not None]


def list_stubs(server_pid: int) -> list[Stub]:
    """Return the stubs that a Triton started, with zombies."""
    stubs = []
    for process in list_processes():
        if process.parent != server_pid or not process.name.startswith(_NAME):
            continue
        parts = Path(os.fsdecode(_read_model_path(process.pid))).parts
        model, version = (parts[-3], parts[-2]) if len(parts) > 2 else ("", "")
        stubs.append(Stub(process, model, version))
    return stubs


def _read_model_path(pid: int) -> bytes:
    """Return a stub's first argument: REPOSITORY/MODEL/VERSION/FILE."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return b""
    return arguments[1] if len(arguments) > 1 else b""
