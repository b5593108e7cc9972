"""Tell whether a Triton hangs or is only busy, by the time when its models last worked.

A waiting request alone means nothing, because the queue may be long. A request hangs if, while it waits, no model on
its way answers any request and no process of these models computes. (A full batch of large radiographs takes many
seconds without an answer, but it uses processor time.) A process that waits for a processor counts as computing. The
server copies the inputs of its models, so its own work counts separately: while it copies, a hang is less certain.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from serving.stubs import Process, Stub

SERVER: Final = ""  # the name under which the server's own process counts as a model
COPYING: Final = "copying"  # the server's own process is busy; no model has this name
BUSY: Final = 0.03  # share of a core from which a process counts as computing
_HARD: Final = 0.1
_WAITS_FOR_PROCESSOR: Final = "RD"  # runnable, or waiting for the kernel: proc(5), of the main thread


class Flow:
    """The time (`time.monotonic`) when each model last answered a request or computed."""

    def __init__(self) -> None:
        """Start without any observation."""
        self._successes: dict[str, int] = {}
        self._cpu_s: dict[int, float] = {}
        self._worked_at: dict[str, float] = {}
        self._seen_at = 0.0

    def update(
        self, now: float, successes: Mapping[str, int] | None, stubs: Iterable[Stub], server: Process | None
    ) -> None:
        """Make one observation.

        Args:
            now: `time.monotonic`.
            successes: Model -> number of answered requests; None if the server does not tell.
            stubs: The server's stubs.
            server: The server's own process, in which models without stubs compute.
        """
        elapsed_s = max(now - self._seen_at, 1e-3)
        for model, count in (successes or {}).items():
            if count != self._successes.get(model):
                self._worked_at[model] = now
        self._successes = dict(successes) if successes is not None else self._successes
        listed = list(stubs)
        with_stubs = {stub.model for stub in listed}
        processes = [(stub.model, stub.process) for stub in listed]
        if server is not None:
            processes.append((SERVER, server))
            if self._count_cpu_s(server) > _HARD * elapsed_s:
                self._worked_at[COPYING] = now
            processes += [(model, server) for model in self._successes if model not in with_stubs]
        for model, process in processes:
            if self._count_cpu_s(process) > BUSY * elapsed_s or process.state in _WAITS_FOR_PROCESSOR:
                self._worked_at[model] = now
        self._cpu_s = {process.pid: process.cpu_s for _, process in processes}
        self._seen_at = now

    def _count_cpu_s(self, process: Process) -> float:
        return process.cpu_s - self._cpu_s.get(process.pid, process.cpu_s)

    def has_grown(self, model: str, successes: Mapping[str, int] | None) -> bool:
        """Return whether a model answered requests since the last observation. Call it before `update`."""
        return successes is not None and successes.get(model, 0) > self._successes.get(model, 2**63)

    def get_idle_s(self, models: Iterable[str], since: float, now: float) -> float:
        """Return the seconds since one of the models last worked, or since `since` if that is later."""
        return now - max([since, *(self._worked_at.get(model, 0.0) for model in models)])

    def get_all_idle_s(self, since: float, now: float) -> float:
        """Return the seconds since any part of the server last worked, or since `since` if that is later."""
        return self.get_idle_s(self._worked_at, since, now)
