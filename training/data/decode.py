"""Image files decoded by several processes, in order, each file an answer of its own."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError, ImageError
from contract.image.read import load_pixels

_FILES_PER_TASK = 4


@dataclass(frozen=True)
class FileState:
    """Size in bytes and time of the last change in nanoseconds, to notice another content; -1 for no file."""

    size: int = -1
    mtime_ns: int = -1


@dataclass(frozen=True)
class DecodedFile:
    """One file: (1, S, S) uint8 pixels, or the reason why there are none."""

    path: str
    state: FileState
    pixels: NDArray[np.uint8] | None
    reason: str = ""


def decode_files(
    paths: Sequence[str], size: int, workers: int | None = None
) -> Generator[DecodedFile, None, None]:
    """Decode files with `contract.image.read.load_pixels`.

    Processes, not threads: of the 20 ms that a radiograph of 2828 x 2320 takes, 2 are Python, which runs on one core
    at a time, so that threads gain nothing beyond a dozen cores. A process takes a second to start. They end
    with this process, however it ends, and leave Ctrl-C to it.

    Args:
        paths: Image files.
        size: Side of the square output, in pixels.
        workers: Processes; default: one for each core.

    Yields:
        One entry for each path, in order.

    Raises:
        ConfigError: A process was killed, as happens where memory is short.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
    pool = ProcessPoolExecutor(min(workers or count_cores(), max(len(paths), 1)), context, _prepare_worker)
    try:
        # Processes start here and inherit what is blocked: Ctrl-C goes to all of a terminal, and is for this one.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            decoded = pool.map(decode_file, paths, [size] * len(paths), chunksize=_FILES_PER_TASK)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield from decoded
    except BrokenProcessPool as error:
        raise ConfigError(
            "A process that decodes images was killed; if memory is short, use fewer with --workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def decode_file(path: str, size: int) -> DecodedFile:
    """Decode one file; one that cannot be read or is no radiograph has a reason instead of pixels."""
    state = FileState()
    try:
        state = read_state(path)
        return DecodedFile(path, state, load_pixels(Path(path).read_bytes(), size=size))
    except OSError as error:
        return DecodedFile(path, state, None, f"The file cannot be read: {error.strerror or error}.")
    except ImageError as error:
        return DecodedFile(path, state, None, str(error))


def read_state(path: str) -> FileState:
    """Return what tells one content of a file from another.

    Raises:
        OSError: There is no such file.
    """
    found = os.stat(path)
    return FileState(found.st_size, found.st_mtime_ns)


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def _prepare_worker() -> None:
    import cv2

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cv2.setNumThreads(1)  # there is a process for each core already
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is gone; a killed one cannot tell its children."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
