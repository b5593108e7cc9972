"""The embeddings of an index in a file instead of in memory, for kinds that read only a few of them in a search.

The file has no name: nobody else can open it, and it ends with the process. The kernel keeps what is read often in
memory that it gives back when a program needs it.
"""

import mmap
import os
import tempfile
import weakref
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

_LEAST_ROWS: Final = 1024


class VectorFile:
    """Rows of float32 that are only ever added. One thread may add while others read earlier rows."""

    def __init__(self, directory: Path, dimension: int) -> None:
        """Create an empty file for rows of D values.

        Raises:
            OSError: The directory cannot be written.
        """
        self._file, name = tempfile.mkstemp(dir=directory)
        os.unlink(name)
        weakref.finalize(self, os.close, self._file)
        self._dimension = dimension
        self._count = 0
        self._map: NDArray[np.float32] = np.zeros((0, dimension), np.float32)

    def __len__(self) -> int:
        return self._count

    @property
    def dimension(self) -> int:
        """D."""
        return self._dimension

    @property
    def byte_count(self) -> int:
        """Bytes of the rows in the file."""
        return 4 * self._count * self._dimension

    def append(self, vectors: NDArray[np.float32]) -> None:
        """Add rows, (N, D) float32.

        Raises:
            OSError: The disk is full or failed. No row was added.
        """
        end = self._count + len(vectors)
        if end > len(self._map):
            self._lengthen(max(end, 2 * len(self._map), _LEAST_ROWS))
        data = memoryview(np.asarray(vectors, dtype=np.float32).tobytes())
        place = self.byte_count
        while data:
            written = os.pwrite(self._file, data, place)
            data, place = data[written:], place + written
        self._count = end

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return a copy of rows, (len(rows), D)."""
        return self._map[rows]

    def view(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows from start to before stop, (N, D), without a copy."""
        return self._map[start : min(stop, self._count)]

    def _lengthen(self, rows: int) -> None:
        # A hole in the file takes no space. Rows are written with a call, which reports a full disk.
        os.ftruncate(self._file, 4 * rows * self._dimension)
        pages = mmap.mmap(self._file, 4 * rows * self._dimension, prot=mmap.PROT_READ)
        self._map = np.frombuffer(pages, np.float32).reshape(rows, self._dimension)
