"""Output files: the one way in which every command writes a file that a person named.

- A regular file, or none: the content is written beside the place under another name and then put there in one step,
  whole or not at all. An existing file keeps its mode; a new one has what the umask leaves.
- A symbolic link stays; the file that it leads to is written, beside that file.
- A device or a pipe is written into, never replaced; so is an open descriptor such as /dev/stdout.
- A directory is refused.
"""

import contextlib
import os
import re
import secrets
import stat
import sys
from pathlib import Path
from typing import Final

from contract.errors import ArtifactError, ConfigError

_NAME_CHARS: Final = 40  # of the file in the name of its scratch file: a long name must not grow too long
_DESCRIPTOR: Final = re.compile(r"/(?:dev|proc/(?:self|thread-self|[0-9]+))/fd/([0-9]+)")
_STREAMS: Final = {"/dev/stdout": 1, "/dev/stderr": 2}


def write_file(path: Path, content: bytes | memoryview | str, *, mode: int = 0o666) -> None:
    """Write an output file, making its directory where needed.

    Args:
        path: The file; see the module for what it may be.
        content: All of it; text becomes UTF-8.
        mode: Of a new file, from which the umask takes; an existing one keeps its own.

    Raises:
        ConfigError: The path is a directory.
        ArtifactError: The disk or the path refuses; an existing file is as it was, and nothing new is left.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if (descriptor := _find_descriptor(path)) is not None:
            _write_descriptor(descriptor, data)
            return
        found = _look(path)
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise ConfigError(f"{path} is a directory; name a file to write.")
        if found is not None and not stat.S_ISREG(found.st_mode):
            with open(os.open(path, os.O_WRONLY | os.O_NOCTTY), "wb") as device:
                device.write(data)
            return
        _replace(Path(os.path.realpath(path)), data, found, mode)
    except OSError as error:
        raise ArtifactError(f"Could not write {path}: {error.strerror or error}.") from error
    except ValueError as error:  # a path with a zero byte
        raise ArtifactError(f"Could not write {str(path)!r}: {error}.") from error


def _look(path: Path) -> os.stat_result | None:
    """Return what lies there, links followed; None for nothing."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _find_descriptor(path: Path) -> int | None:
    """Return N for /dev/fd/N, /dev/stdout and links to them, where it is open in this process."""
    place = os.path.abspath(path)
    for _ in range(40):  # links to links; the kernel gives up after as many
        if (match := _DESCRIPTOR.fullmatch(place)) is not None:
            owner = place.split("/")[2]
            return int(match[1]) if owner in {"fd", "self", "thread-self", str(os.getpid())} else None
        if place in _STREAMS and sys.platform != "win32":
            return _STREAMS[place]
        if not os.path.islink(place):
            return None
        place = os.path.normpath(os.path.join(os.path.dirname(place), os.readlink(place)))
    return None


def _write_descriptor(descriptor: int, data: bytes | memoryview) -> None:
    """Write where a stream stands, behind what this process has printed there."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    with open(os.dup(descriptor), "wb") as file:
        file.write(data)


def _replace(path: Path, data: bytes | memoryview, found: os.stat_result | None, mode: int) -> None:
    """Write a regular file; `found` is the one that it replaces."""
    if found is not None and not os.access(path, os.W_OK):
        raise PermissionError(0, "the file is write-protected")
    scratch = path.with_name(f".{path.name[:_NAME_CHARS]}-{secrets.token_hex(6)}.partial")
    made = [parent for parent in path.parents if not parent.exists()]  # the deepest first
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
    except BaseException:  # Ctrl-C, too, leaves nothing behind
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise


def _keep_owner_and_mode(handle: int, found: os.stat_result) -> None:
    with contextlib.suppress(OSError):  # only root may give a file away
        os.fchown(handle, found.st_uid, found.st_gid)
    os.fchmod(handle, stat.S_IMODE(found.st_mode))
