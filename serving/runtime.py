"""The resources of a running stack: a lock on its logs folder, and a private folder with a plain ASCII path.

Triton starts the python process of a model through a shell, with the model's path in the command line. With a space, a
quote or a non-ASCII letter in the path, Triton waits for minutes, and `$(...)` would even be executed. So Triton gets
paths in its own folder, with links to the real files.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from contract.errors import ConfigError
from serving.stubs import read_process

_LOCK: Final = "serve.lock"  # in the logs folder
_PREFIX: Final = "cxr-serve-"
_PLAIN: Final = re.compile(
    r"[A-Za-z0-9._/+-]+", re.ASCII
)  # only characters that every shell and locale reads alike
_STALE_S: Final = 5.0  # a folder is created a moment before it is locked
_STUB_SPEAKS: Final = "arguments"  # in the stub's message if it is started without arguments
_STUB_TIMEOUT_S: Final = 20.0


class LogsLock:
    """A lock on a logs folder, for one stack at a time. The kernel releases it when this process ends.

    The file also names the servers of this stack, so that the next stack can end the servers of a killed one.
    """

    def __init__(self, directory: Path) -> None:
        """Take the lock.

        Raises:
            ConfigError: Another stack holds the lock, or the folder cannot be written.
        """
        self._path = directory / _LOCK
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"{show_path(directory)} cannot be written: {error.strerror}.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = self._read().get("pid", "unknown")
            os.close(self._file)
            raise ConfigError(
                f"Another `cxr serve` (process {owner}) uses the logs folder {show_path(directory)}. Stop it, or "
                "choose another folder with --logs."
            ) from error

    def end_leftovers(self) -> None:
        """Kill the servers of an earlier, killed stack. Only processes with the recorded start time are killed."""
        servers = self._read().get("servers", {})
        for pid, started in servers.items() if isinstance(servers, dict) else ():
            process = read_process(int(pid)) if str(pid).isdigit() else None
            if process is not None and process.started == started:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(int(pid), signal.SIGKILL)

    def write(self, pids: Iterable[int]) -> None:
        """Record this process and its servers."""
        servers = {str(pid): process.started for pid in pids if (process := read_process(pid))}
        data = json.dumps({"pid": os.getpid(), "servers": servers}).encode()
        with contextlib.suppress(OSError):  # a full disk must not stop the servers
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, data, 0)

    def release(self) -> None:
        """Release the lock. The file stays, because a removed file could be locked twice."""
        self.write(())
        os.close(self._file)

    def _read(self) -> dict[str, object]:
        try:
            content = json.loads(self._path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


# A socket's path has at most 107 bytes (unix(7)). It consists of the base, this folder and the socket's name.
_LONGEST_BASE: Final = 107 - len(f"/{_PREFIX}12345678/triton:1")


class PrivateFolder:
    """A private folder of this stack (mode 0700) with a plain ASCII path; removed by `close`.

    It is locked while it is in use, so that the next stack can remove the folder of a killed one.
    """

    def __init__(self, base: Path) -> None:
        """Create a folder in `base`. Raise OSError if that fails."""
        _remove_stale(base)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        self._file = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def link(self, name: str, target: Path) -> Path:
        """Return a link `name` to `target`."""
        link = self.path / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        return link

    def link_unless_plain(self, name: str, target: Path) -> Path:
        """Return `target` if its path is plain, else a link to it."""
        return target if _PLAIN.fullmatch(str(target)) else self.link(name, target)

    def close(self) -> None:
        """Remove the folder with its links, but not the targets of the links."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self._file)


def list_bases() -> list[Path]:
    """Return the folders for temporary files with a plain and short path, preferred ones first."""
    candidates = [tempfile.gettempdir(), "/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR", "")]  # noqa: S108
    plain = [
        path
        for path in candidates
        if path and len(path) <= _LONGEST_BASE and _PLAIN.fullmatch(path) and Path(path).is_dir()
    ]
    return [Path(path) for path in dict.fromkeys(plain)]


def find_stub_trouble(stub: Path, environment: Mapping[str, str]) -> str | None:
    """Start the stub once, without arguments; return why it cannot start, or None."""
    try:
        done = subprocess.run(
            [str(stub)],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_STUB_TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        return f"{stub}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{stub} did not end within {_STUB_TIMEOUT_S:g} s"
    output = " ".join(done.stdout.decode("utf-8", errors="replace").split())
    return None if _STUB_SPEAKS in output else output[:300] or f"{stub} ended with code {done.returncode}"


def show_path(path: Path) -> str:
    """Return a path for terminals and logs, with bytes that are not UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def _remove_stale(base: Path) -> None:
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            entry = folder.lstat()
            if entry.st_uid != os.getuid() or time.time() - entry.st_mtime < _STALE_S or folder.is_symlink():
                continue
            file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(file)
