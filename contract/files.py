"""Output files: every command writes a file that the user names through `write_file`.

- A regular or new file is written under another name in the same directory, then renamed. So it is complete or
  unchanged. An existing file keeps its mode; a new file gets its mode from the umask.
- A symbolic link stays. Its target is written in the same way.
- A device, a pipe or an open descriptor such as /dev/stdout is written into, never replaced.
- A directory is refused.

`read_state` tells whether an input file changed since an earlier run.
"""

import contextlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from contract.errors import ArtifactError, ConfigError

_NAME_CHARS: Final = 40  # characters of the file name that its scratch file's name repeats
_DESCRIPTOR: Final = re.compile(r"/(?:dev|proc/(?:self|thread-self|[0-9]+))/fd/([0-9]+)")
_STREAMS: Final = {"/dev/stdout": 1, "/dev/stderr": 2}


def write_file(path: Path, content: bytes | memoryview | str, *, mode: int = 0o666) -> None:
    """Write an output file and create its directory if needed.

    Args:
        path: The file; see the module docstring for what it may be.
        content: The whole content. Text is encoded as UTF-8.
        mode: Mode of a new file before the umask. An existing file keeps its mode.

    Raises:
        ConfigError: The path is a directory.
        ArtifactError: The file cannot be written. An existing file is unchanged, and no new file is left.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if (descriptor := _find_descriptor(path)) is not None:
            _write_descriptor(descriptor, data)
            return
        existing = _look(path)
        if existing is not None and stat.S_ISDIR(existing.st_mode):
            raise ConfigError(f"{path} is a directory. Give the path of a file.")
        if existing is not None and not stat.S_ISREG(existing.st_mode):
            with open(os.open(path, os.O_WRONLY | os.O_NOCTTY), "wb") as device:
                device.write(data)
            return
        _replace(Path(os.path.realpath(path)), data, existing, mode)
    except OSError as error:
        raise ArtifactError(f"Could not write {path}: {error.strerror or error}.") from error
    except ValueError as error:  # a path with a zero byte
        raise ArtifactError(f"Could not write {str(path)!r}: {error}.") from error


def read_state(paths: Iterable[Path]) -> str:
    """Return size and modification time of files, which change with their content; "" if a file is missing."""
    try:
        states = [path.stat() for path in paths]
    except (OSError, ValueError):
        return ""
    return " ".join(f"{state.st_size}@{state.st_mtime_ns}" for state in states)


def _look(path: Path) -> os.stat_result | None:
    """Return the stat of a path, links followed; None if nothing exists there."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _find_descriptor(path: Path) -> int | None:
    """Return N for /dev/fd/N, /dev/stdout and links to them, if descriptor N is open in this process."""
    target = os.path.abspath(path)
    for _ in range(40):  # links to links; the kernel follows at most 40 too
        if (match := _DESCRIPTOR.fullmatch(target)) is not None:
            owner = target.split("/")[2]
            return int(match[1]) if owner in {"fd", "self", "thread-self", str(os.getpid())} else None
        if target in _STREAMS and sys.platform != "win32":
            return _STREAMS[target]
        if not os.path.islink(target):
            return None
        target = os.path.normpath(os.path.join(os.path.dirname(target), os.readlink(target)))
    return None


def _write_descriptor(descriptor: int, data: bytes | memoryview) -> None:
    """Write at the current position of a stream, after the output that this process has printed."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    with open(os.dup(descriptor), "wb") as file:
        file.write(data)


def _replace(path: Path, data: bytes | memoryview, found: os.stat_result | None, mode: int) -> None:
    """Write a regular file; `found` is the stat of the file that it replaces."""
    if found is not None and not os.access(path, os.W_OK):
        raise PermissionError(0, "the file is write-protected")
    scratch = path.with_name(f".{path.name[:_NAME_CHARS]}-{secrets.token_hex(6)}.partial")
    new_directories = [parent for parent in path.parents if not parent.exists()]  # the deepest first
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(handle, "wb") as file:
            if found is not None:
                _keep_owner_and_mode(handle, found)
            file.write(data)
            file.flush()
            os.fsync(handle)
        scratch.replace(path)
    except BaseException:  # after Ctrl-C too, no file must be left
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for parent in new_directories:
                parent.rmdir()
        raise


def _keep_owner_and_mode(handle: int, found: os.stat_result) -> None:
    with contextlib.suppress(OSError):  # only root may change the owner
        os.fchown(handle, found.st_uid, found.st_gid)
    os.fchmod(handle, stat.S_IMODE(found.st_mode))
