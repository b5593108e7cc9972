"""Decoded images on disk, memory-mapped: training starts quickly and loads only the images that it reads.

The cache is a directory with

    pixels.npy      (P, 1, S, S) uint8, `numpy.load(..., mmap_mode="r")` opens it
    index.sqlite    image file -> its row, size and modification time, or why it was refused
    refused.json    the refused files, for users

New rows are appended: first their bytes and, when these are safely on the disk, their entries in the index. Bytes
after the last entry, left by an interrupt, are overwritten. So an entry is always correct, and filling a cache can
continue after an interrupt.
"""

import contextlib
import fcntl
import itertools
import os
import sqlite3
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from contract import bundle as files
from contract.errors import ArtifactError, ConfigError
from training.data.decode import DecodedFile, FileState, decode_file, decode_files, read_state
from training.data.openi import Progress, read_table

PIXELS: Final = "pixels.npy"
INDEX: Final = "index.sqlite"
REFUSED: Final = "refused.json"
_LOCK: Final = "lock"
_VERSION: Final = 1
_ROWS_PER_COMMIT: Final = 32
_HEADER_BYTES: Final = 128
_SAMPLES: Final = 3  # images that are decoded again when a cache is opened
_SCHEMA: Final = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    "CREATE TABLE images (path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, "
    "row INTEGER UNIQUE, reason TEXT NOT NULL)",
)


@dataclass(frozen=True)
class Refusal:
    """An image file that could not be decoded. The reason holds no patient data."""

    image_id: str
    path: str
    reason: str


@dataclass(frozen=True)
class CacheSummary:
    """The result of filling a cache: the images of the table, the newly decoded ones, and the refused ones."""

    images: int
    decoded: int
    refused: tuple[Refusal, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True)
class ImageCache:
    """A complete cache. `pixels` (P, 1, S, S) uint8 stays on the disk. `rows` maps a refused file to None."""

    directory: Path
    pixels: NDArray[np.uint8]
    rows: dict[str, int | None]
    states: dict[str, FileState]

    def find_rows(self, paths: Sequence[str]) -> list[int | None]:
        """Return the row of each image; None for a refused one.

        Raises:
            ConfigError: An image is not in the cache, or its file has changed since.
        """
        missing = sum(path not in self.rows for path in paths)
        changed = sum(path in self.rows and self._has_changed(path) for path in paths)
        if missing or changed:
            raise ConfigError(
                f"{missing:,} images of the table are not in the cache {self.directory}, and {changed:,} have changed "
                f"since. To add them, run `cxr data cache TABLE --out {self.directory} --size {self.pixels.shape[-1]}`."
            )
        return [self.rows[path] for path in paths]

    def _has_changed(self, path: str) -> bool:
        try:
            return read_state(path) != self.states[path]
        except OSError:
            return False  # the cache may be used where the image files are missing


def open_cache(directory: Path, size: int) -> ImageCache:
    """Open a cache for reading.

    Raises:
        ConfigError: There is no cache, it is incomplete, or its images have another size.
        ArtifactError: The cache is damaged, or this version of the program decodes other pixels.
    """
    if not (directory / INDEX).is_file():
        raise ConfigError(f"There is no image cache {directory}. Make one with `cxr data cache`.")
    with _open_index(directory) as index:
        facts = _check_facts(directory, index, size)
        entries = index.execute("SELECT path, size, mtime_ns, row FROM images").fetchall()
    if not facts.get("complete"):
        raise ConfigError(
            f"The image cache {directory} is incomplete, because filling it was interrupted. To continue, run "
            f"`cxr data cache TABLE --out {directory} --size {size}`."
        )
    rows = {path: row for path, _, _, row in entries}
    states = {path: FileState(count, mtime_ns) for path, count, mtime_ns, _ in entries}
    count = max((row for row in rows.values() if row is not None), default=-1) + 1
    cache = ImageCache(directory, _map_pixels(directory / PIXELS, count, size), rows, states)
    _check_samples(cache)
    return cache


def fill_cache(
    table: Path, directory: Path, *, size: int, workers: int | None = None, progress: Progress | None = None
) -> CacheSummary:
    """Decode the images of a studies table that are not in the cache or whose files have changed.

    Args:
        table: Parquet file made by `training.data.openi.write_table`.
        directory: Cache to create or to extend.
        size: Side of the square images, in pixels.
        workers: Number of processes. Default: one per core.
        progress: Called with the number of images in the cache and in the table.

    Raises:
        ConfigError: The table names no image, the cache has another size, or another process fills it.
        ArtifactError: The cache is damaged, or cannot be written.
    """
    columns = read_table(table, ["image_ids", "image_paths"]).to_pylist()
    ids = {
        path: image_id for row in columns for image_id, path in zip(*row.values(), strict=True)
    }  # path -> image
    if not ids:
        raise ConfigError(f"{table} names no image.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _lock_directory(directory), _open_index(directory, create_size=size) as index:
            _check_facts(directory, index, size)
            todo = _drop_changed(index, list(ids))
            decoded = decode_files(todo, size, workers)

            def report(done: int) -> None:
                if progress is not None:
                    progress(len(ids) - len(todo) + done, len(ids))

            with contextlib.closing(decoded):
                _append_images(directory, index, size, decoded, report)
            index.execute("UPDATE facts SET value = 1 WHERE name = 'complete'")
            entries = index.execute("SELECT path, reason FROM images WHERE reason != ''").fetchall()
        refused = tuple(Refusal(ids[path], path, reason) for path, reason in entries if path in ids)
        summary = CacheSummary(len(ids), len(todo), refused)
        files.write_json(directory / REFUSED, [asdict(refusal) for refusal in refused])
    except OSError as error:
        raise ArtifactError(
            f"Cannot write the image cache {directory}: {error.strerror or error}."
        ) from error
    return summary


def _append_images(
    directory: Path,
    index: sqlite3.Connection,
    size: int,
    decoded: Iterable[DecodedFile],
    report: Callable[[int], None],
) -> None:
    """Write images after the last row of the index, in batches."""
    (row,) = index.execute("SELECT coalesce(max(row), -1) + 1 FROM images").fetchone()
    done, entries = 0, iter(decoded)
    with _open_pixels(directory / PIXELS) as file:
        while batch := list(itertools.islice(entries, _ROWS_PER_COMMIT)):
            images = [entry.pixels for entry in batch if entry.pixels is not None]
            file.seek(_HEADER_BYTES + row * size * size)
            file.write(b"".join(image.tobytes() for image in images))
            _seal_pixels(file, row + len(images), size)
            free_rows = itertools.count(row)
            index.execute("BEGIN")
            index.executemany(
                "INSERT INTO images VALUES (?, ?, ?, ?, ?)",
                [
                    (entry.path, entry.state.size, entry.state.mtime_ns, image_row, entry.reason)
                    for entry in batch
                    for image_row in [None if entry.pixels is None else next(free_rows)]
                ],
            )
            index.execute("COMMIT")
            row += len(images)
            done += len(batch)
            report(done)
        _seal_pixels(file, row, size)
        file.truncate(_HEADER_BYTES + row * size * size)


def _seal_pixels(file: BinaryIO, rows: int, size: int) -> None:
    """Write the header for this number of rows, and wait until all bytes are on the disk.

    The header always has the same length, so rows can be appended (NEP 1, a simple file format for NumPy arrays).
    """
    described = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({rows}, 1, {size}, {size}), }}"
    text = described.ljust(_HEADER_BYTES - 11) + "\n"
    file.seek(0)
    file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("ascii"))
    file.flush()
    os.fsync(file.fileno())


def _open_pixels(path: Path) -> BinaryIO:
    path.touch()
    return path.open("r+b")


def _map_pixels(path: Path, count: int, size: int) -> NDArray[np.uint8]:
    """Map at least `count` rows. Further rows are left over from an interrupt."""
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(
            f"The image cache {path.parent} is damaged: {path.name} cannot be read."
        ) from error
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (1, size, size) or len(pixels) < count:
        raise ArtifactError(
            f"The image cache {path.parent} is damaged: {path.name} holds {pixels.dtype} {pixels.shape}, the "
            f"index names {count} images of {size} pixels."
        )
    return pixels.view(np.ndarray)


def _check_samples(cache: ImageCache) -> None:
    """Decode some images again, because another version of the program or of a library may give other pixels."""
    rows = {path: row for path, row in cache.rows.items() if row is not None and os.path.exists(path)}
    paths = list(rows)
    size = cache.pixels.shape[-1]
    for path in paths[:: max(len(paths) // _SAMPLES, 1)][:_SAMPLES]:
        decoded = decode_file(path, size)
        if decoded.state != cache.states[path]:
            continue
        if decoded.pixels is None or not np.array_equal(decoded.pixels, cache.pixels[rows[path]]):
            raise ArtifactError(
                f"The image cache {cache.directory} holds other pixels for {path} than this version decodes. Make "
                "the cache again in a new directory."
            )


def _drop_changed(index: sqlite3.Connection, paths: Sequence[str]) -> list[str]:
    """Remove the entries of images whose files have changed; return all images to decode.

    The pixels of a file that is gone stay, because they could not be decoded again. A refused file that is gone stays
    refused.
    """
    states = {
        path: FileState(size, mtime_ns)
        for path, size, mtime_ns in index.execute("SELECT path, size, mtime_ns FROM images")
    }
    todo = [
        path for path in paths if path not in states or _find_state(path) not in (FileState(), states[path])
    ]
    index.execute("BEGIN")
    index.execute("UPDATE facts SET value = 0 WHERE name = 'complete'")
    index.executemany("DELETE FROM images WHERE path = ?", [(path,) for path in todo])
    index.execute("COMMIT")
    return todo


def _find_state(path: str) -> FileState:
    try:
        return read_state(path)
    except OSError:
        return FileState()


@contextlib.contextmanager
def _open_index(directory: Path, create_size: int | None = None) -> Iterator[sqlite3.Connection]:
    """Open the index. With a size, create it if it is missing."""
    try:
        with contextlib.closing(sqlite3.connect(directory / INDEX, isolation_level=None)) as index:
            index.execute("PRAGMA synchronous = FULL")
            tables = {
                name for (name,) in index.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
            if create_size is not None and not tables:
                index.execute("BEGIN")
                for statement in _SCHEMA:
                    index.execute(statement)
                facts = {"version": _VERSION, "size": create_size, "complete": 0}
                index.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
                index.execute("COMMIT")
            yield index
    except sqlite3.Error as error:
        raise ArtifactError(
            f"The image cache {directory} is damaged or cannot be written: {error}."
        ) from error


def _check_facts(directory: Path, index: sqlite3.Connection, size: int) -> dict[str, Any]:
    facts: dict[str, Any] = dict(index.execute("SELECT name, value FROM facts"))
    if facts.get("version") != _VERSION:
        raise ArtifactError(
            f"The image cache {directory} has version {facts.get('version')}, this software reads {_VERSION}. Make "
            "it again in a new directory."
        )
    if facts.get("size") != size:
        raise ConfigError(
            f"The image cache {directory} holds images of {facts.get('size')} pixels, not of {size}. Make a cache for "
            "each size."
        )
    return facts


@contextlib.contextmanager
def _lock_directory(directory: Path) -> Iterator[None]:
    with (directory / _LOCK).open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"Another process is filling the image cache {directory}.") from error
        yield
