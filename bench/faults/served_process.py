"""Run `cxr serve` as a child process and find the processes of its servers, for a soak run."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from contract.errors import DeadlineError, ServiceError
from serving.ports import Ports
from serving.stubs import Stub, list_processes, list_stubs
from serving.triton import list_import_paths

SERVERS: Final = ("tritonserver", "serving.relay", "retrieval.server")  # words of their command lines
_READY: Final = "Ready after"
_READY_S: Final = 180.0
_STOP_S: Final = 30.0


class ServedProcess:
    """One `cxr serve`, started like a user starts it."""

    def __init__(
        self, repository: Path, directory: Path, *, ports: Ports | None = None, options: Sequence[str] = ()
    ) -> None:
        """Start it, with store, logs and output in `directory`."""
        self.ports, self.directory = ports or Ports.free(), directory
        self.logs = directory / "logs"
        directory.mkdir(parents=True, exist_ok=True)
        self.output = directory / "serve.out"
        command = [sys.executable, "-P", "-m", "cxr", "serve", "--repository", str(repository)]
        command += ["--store", str(directory / "store"), "--logs", str(self.logs)]
        command += ["--http-port", str(self.ports.http), "--grpc-port", str(self.ports.grpc)]
        command += ["--metrics-port", str(self.ports.metrics), "--retrieval-port", str(self.ports.retrieval)]
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, *options],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(list_import_paths()),
                    "PYTHONUNBUFFERED": "1",
                },
            )
        self._sessions: set[int] = set()

    @property
    def triton_url(self) -> str:
        """host:port of Triton's gRPC service."""
        return f"127.0.0.1:{self.ports.grpc}"

    @property
    def retrieval_url(self) -> str:
        """host:port of the sidecar."""
        return f"127.0.0.1:{self.ports.retrieval}"

    def read_output(self) -> str:
        """Return its output so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait_ready(self, timeout_s: float = _READY_S) -> None:
        """Wait until it reports that it is ready.

        Raises:
            ServiceError: It ended, or is not ready in time. The message holds its output.
        """
        deadline = time.monotonic() + timeout_s
        while _READY not in self.read_output():
            if self.process.poll() is not None:
                raise ServiceError(
                    f"cxr serve ended with code {self.process.returncode}: {self.read_output()}"
                )
            if time.monotonic() > deadline:
                raise DeadlineError(f"cxr serve is not ready after {timeout_s:g} s: {self.read_output()}")
            time.sleep(0.1)

    def find_server(self, word: str) -> int | None:
        """Return the process id of one of `SERVERS`; None if it is not running."""
        for process in list_processes():
            if process.parent == self.process.pid and word in _read_command(process.pid):
                self._sessions.add(process.pid)
                return process.pid
        return None

    def find_stubs(self) -> list[Stub]:
        """Return the running python processes of Triton's models."""
        server = self.find_server("tritonserver")
        return [] if server is None else [stub for stub in list_stubs(server) if stub.process.runs]

    def list_leftovers(self) -> list[int]:
        """Return the processes of its current and earlier servers, without zombies."""
        return [x.pid for x in list_processes() if x.state != "Z" and _get_session(x.pid) in self._sessions]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it cleanly; return its exit code."""
        for word in SERVERS:
            self.find_server(word)
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def __enter__(self) -> "ServedProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def wait_for(condition: Callable[[], object], timeout_s: float = 60.0) -> bool:
    """Wait until a condition holds; return whether it did in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _get_session(pid: int) -> int:
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return -1


def _read_command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    return ""
