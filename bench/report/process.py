"""Processor time and memory of a server on this machine: a process and all its descendants."""

import time
from collections.abc import Collection
from typing import Any, Final

from contract.errors import ConfigError

try:
    import psutil  # type: ignore[import-untyped]
except ImportError as missing:
    raise ConfigError(
        "The load generator needs the 'bench' extra: pip install 'cxr-serving[bench]'."
    ) from missing

_RELAY: Final = "serving.relay"
_TRITON: Final = "tritonserver"
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1", "[::1]")


class ProcessTree:
    """Measures processes with their descendants, without those that end meanwhile."""

    def __init__(self, pids: Collection[int]) -> None:
        """Take the root processes.

        Raises:
            ConfigError: A process does not exist.
        """
        self.pids = tuple(pids)
        for pid in self.pids:
            if not psutil.pid_exists(pid):
                raise ConfigError(f"There is no process {pid} on this machine (--server-pid).")
        self._started, self._cpu_s = 0.0, {}  # type: float, dict[int, float]

    def begin(self) -> None:
        """Record the processor time so far."""
        self._cpu_s = {process.pid: cpu_s for process, cpu_s, _ in self._read()}
        self._started = time.perf_counter()

    def end(self) -> dict[str, Any]:
        """Return the busy cores since `begin`, and the current memory.

        `rss_mib` is the sum of the resident memory of all processes. Shared pages count for each of them.
        """
        lasted = max(time.perf_counter() - self._started, 1e-9)
        processes = self._read()
        used = sum(max(0.0, cpu_s - self._cpu_s.get(process.pid, 0.0)) for process, cpu_s, _ in processes)
        return {
            "cpu_cores": round(used / lasted, 3),
            "rss_mib": round(sum(rss for *_, rss in processes) / 2**20, 1),
            "processes": len(processes),
        }

    def _read(self) -> list[tuple[Any, float, int]]:
        readings = []
        for process in self._list():
            try:
                times, memory = process.cpu_times(), process.memory_info()
            except psutil.Error:
                continue
            readings.append((process, times.user + times.system, int(memory.rss)))
        return readings

    def _list(self) -> list[Any]:
        trees = [_list_tree(pid) for pid in self.pids]
        return list({process.pid: process for tree in trees for process in tree}.values())


def _list_tree(pid: int) -> list[Any]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def find_server(url: str) -> list[int]:
    """Return the processes on this machine that listen on `url` (host:port); none if unknown.

    For the relay of `cxr serve`, its Triton is included.
    """
    host, _, port = url.rpartition(":")
    if host not in _LOOPBACK or not port.isdigit():
        return []
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:  # some systems allow this only for the administrator
        return []
    pids = {
        connection.pid
        for connection in connections
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == int(port) and connection.pid
    }
    return [int(min(pids)), *_list_behind(int(min(pids)))] if pids else []


def _list_behind(pid: int) -> list[int]:
    """Return the Triton of a relay. Both have the same parent."""
    try:
        relay = psutil.Process(pid)
        siblings = relay.parent().children() if _RELAY in relay.cmdline() else []
        return [process.pid for process in siblings if process.name() == _TRITON]
    except (psutil.Error, AttributeError):
        return []
