"""Read a store that no server has open, with the WAL that a killed one left, and change neither.

SQLite writes a WAL into its file, and removes it, when the last connection closes. So it gets another name of the file,
which it may only read, and a copy of the WAL.
"""

import contextlib
import fcntl
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from retrieval.directory import LOCK, VERIFIED, find_wal

_HEADER: Final = 32  # bytes of the WAL before its first frame
_FRAME: Final = 24  # bytes before the page of a frame
_LAST_FRAME: Final = 16  # where the number of valid frames is in the index of a WAL


@contextlib.contextmanager
def hold_lock(directory: Path) -> Iterator[bool]:
    """Keep servers out of a directory, and yield whether none has it open. Nothing is created."""
    try:
        lock = os.open(directory / LOCK, os.O_RDONLY)
    except OSError:  # a server would have made it
        yield True
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(lock)


@contextlib.contextmanager
def open_aside(path: Path) -> Iterator[Path]:
    """Yield the path of the same database in a folder of its own, with a copy of its WAL.

    Raises:
        OSError: The disk takes no copy.
    """
    folder = path.parent if os.access(path.parent, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=folder, prefix=VERIFIED) as name:
        aside = Path(name) / path.name
        try:
            os.link(path, aside)
        except OSError:  # another disk, or one without links
            shutil.copyfile(path, aside)
        shutil.copyfile(find_wal(path), find_wal(aside))
        yield aside


def loses_writes(aside: Path) -> bool:
    """Whether the WAL holds whole writes that SQLite does not read, because a page before them is damaged.

    Args:
        aside: A database of `open_aside` from which a connection has read, and which is still open.
    """
    (valid,) = struct.unpack_from("=I", aside.with_name(f"{aside.name}-shm").read_bytes(), _LAST_FRAME)
    with open(find_wal(aside), "rb") as wal:
        header = wal.read(_HEADER)
        if len(header) < _HEADER:
            return False
        (page,), salts = struct.unpack_from(">I", header, 8), header[16:24]
        whole = (os.fstat(wal.fileno()).st_size - _HEADER) // (_FRAME + page)
        for number in range(1, whole + 1):
            frame = wal.read(_FRAME)
            if frame[8:16] != salts:  # older than the last time that SQLite began at the start
                return False
            (pages,) = struct.unpack_from(">I", frame, 4)  # of the database after this write; 0 within it
            if pages and number > valid:
                return True
            wal.seek(page, os.SEEK_CUR)
    return False
