"""Standing still or only busy? When the models of a Triton last worked.

A request that waits says nothing: the queue may be long. It stands still when, while it waits, no model on its way
answers anything and no process of these models computes. (One execution of a full batch of large radiographs takes
many seconds without an answer, but not without processor time.) A process that waits for a processor, on a machine
that has too few, counts as computing. The server copies what its models get, so its own work is told apart: while it
lasts a standstill is less sure.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from serving.stubs import Process, Stub

SERVER: Final = ""  # the name under which the server's own process counts as a model
COPYING: Final = "copying"  # the server's own process works hard; no model is named so
BUSY: Final = 0.03  # share of a core from which a process counts as computing
_HARD: Final = 0.1
_WAITS_FOR_PROCESSOR: Final = "RD"  # runnable, or waiting for the kernel: proc(5), of the main thread


class Flow:
    """When each model last answered a request or computed, by `time.monotonic`."""

    def __init__(self) -> None:
        """Start with nothing known."""
        self._successes: dict[str, int] = {}
        self._cpu_s: dict[int, float] = {}
        self._worked_at: dict[str, float] = {}
        self._seen_at = 0.0

    def update(
        self, now: float, successes: Mapping[str, int] | None, stubs: Iterable[Stub], server: Process | None
    ) -> None:
        """Take one look.

        Args:
            now: `time.monotonic`.
            successes: Model -> requests answered so far; None when the server does not say.
            stubs: Of the server.
            server: Its own process, in which the models without stubs compute.
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
        """Return whether a model answered requests since the last look; ask before `update`."""
        return successes is not None and successes.get(model, 0) > self._successes.get(model, 2**63)

    def get_idle_s(self, models: Iterable[str], since: float, now: float) -> float:
        """Return for how long none of the models has worked, counted from `since` at the earliest."""
        return now - max([since, *(self._worked_at.get(model, 0.0) for model in models)])

    def get_all_idle_s(self, since: float, now: float) -> float:
        """Return for how long nothing of the server has worked, counted from `since` at the earliest."""
        return self.get_idle_s(self._worked_at, since, now)
