"""One server as a child process that never outlives the process that started it.

The child leads its own session. So Ctrl-C in a terminal reaches only the parent, which then stops the child cleanly,
and a kill of the group also reaches the child's children. A few lines of Python start it: they set PR_SET_PDEATHSIG
(prctl(2)) and then become the server by exec. Unlike a `preexec_fn`, this is safe in a parent with threads, and gRPC
always has threads.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final

from contract.errors import ConfigError, ServiceError

_TRITON_PREFIX: Final = re.compile(r"^[IWEF]\d{4} \S+ \d+ \S+\] ")  # E1124 02:44:48.12 99 model.cc:12]

# argv: pid of the parent, then the command. The parent may end before prctl, and then no signal would come.
_LAUNCH: Final = """
import ctypes, os, signal, sys
if ctypes.CDLL(None, use_errno=True).prctl(1, int(signal.SIGTERM), 0, 0, 0) != 0:
    sys.exit("prctl(PR_SET_PDEATHSIG) failed: " + os.strerror(ctypes.get_errno()))
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent ended before the start")
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]} cannot be run: {error.strerror}")
"""
_TAIL_BYTES: Final = 64 * 1024
_POLL_S: Final = 0.02


class ChildProcess:
    """A server process with its log file.

    The kernel ties the child to the *thread* that calls `start`, so that thread must outlive the server.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log_path: Path,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        keep_log: bool = False,
    ) -> None:
        """Set up the process; `start` starts it.

        Args:
            name: Name in messages, such as "Triton".
            command: Program and arguments.
            log_path: File for stdout and stderr. An existing file is replaced unless `keep_log`.
            environment: The whole environment of the child. None: the environment of this process.
            directory: Current directory of the child. None: the directory of this process.
            keep_log: Append to the log, so that the messages before a restart stay readable.
        """
        self.name = name
        self.log_path = log_path
        self._command = list(command)
        self._environment = None if environment is None else dict(environment)
        self._directory = directory
        self._keep_log = keep_log
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id, or None before `start`."""
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code (negative: the signal), or None while it runs or before `start`."""
        return None if self._process is None else self._process.poll()

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process.

        Raises:
            ServiceError: The process was started before, or the operating system cannot start it.
            ConfigError: The log file cannot be written.
        """
        if self._process is not None:
            raise ServiceError(f"{self.name} was started already.")
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid())]
        try:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)  # the folder may have been deleted
            log = self.log_path.open("ab" if self._keep_log else "wb")
            self._log_start = log.tell()
        except OSError as error:
            raise ConfigError(f"The log {self.log_path} cannot be written: {error.strerror}.") from error
        with log:
            try:
                self._process = subprocess.Popen(
                    [*launcher, *self._command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    cwd=self._directory,
                    start_new_session=True,
                )
            except OSError as error:
                raise ServiceError(f"{self.name} could not be started: {error.strerror}.") from error

    def describe_end(self) -> str:
        """Return how the process ended, such as "was killed (signal 9)"; "" while it runs."""
        code = self.exit_code
        if code is None:
            return ""
        return f"was killed (signal {-code})" if code < 0 else f"ended with code {code}"

    def request_stop(self) -> None:
        """Send SIGTERM to the process and return at once."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.send_signal(signal.SIGCONT)  # a stopped process would not receive SIGTERM

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the process and everything it started. May be called at any time and repeatedly.

        Args:
            timeout_s: Seconds to wait for a clean end before the process is killed.
        """
        if self._process is None:
            return
        self.request_stop()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also if Ctrl-C interrupts the wait
            self._kill_group()
            self._process.wait()

    def read_tail(self, lines: int = 20) -> list[str]:
        """Return the last non-empty lines that this process logged; [] without a log."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, file.tell() - _TAIL_BYTES))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]

    def _kill_group(self) -> None:
        # The group may still hold children after its leader has ended. For an empty group killpg raises an error.
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


class TerminationGuard:
    """Turns SIGTERM into SystemExit(0) within a `with` block, so that `finally` and `__exit__` run.

    The exit code is 0, because a server that is asked to stop has not failed. Only the main thread may use it. The
    earlier handler is restored at the end.
    """

    def __enter__(self) -> "TerminationGuard":
        self._previous = signal.signal(signal.SIGTERM, self._leave)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    @staticmethod
    def _leave(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)


def wait_until(deadline: float) -> bool:
    """Sleep for one polling step. Return False once `deadline` (time.monotonic seconds) has passed."""
    if time.monotonic() >= deadline:
        return False
    time.sleep(_POLL_S)
    return True


def find_reason(lines: list[str]) -> str:
    """Return the log line with the reason for a server's end: the first error, else the last line."""
    for mark in ("failed to load", "TritonModelException"):
        for line in lines:
            if mark in line and "creating server" not in line:
                return _shorten(line)
    return _shorten(lines[-1]) if lines else "it wrote no log"


def _shorten(line: str, limit: int = 500) -> str:
    text = _TRITON_PREFIX.sub("", line).partition("\\n\\nAt:")[0]  # without the Python stack
    text = text.strip().strip('"')
    return text if len(text) <= limit else text[: limit - 1] + "…"
