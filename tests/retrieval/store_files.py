"""Read all of a case store, and change the file of a closed one behind its back, as damage does."""

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.store import CaseStore


def read_all(store: CaseStore) -> tuple[list[str], NDArray[np.float32] | None]:
    """Return the ids of all cases in their order, and the embeddings (N, D) float32; None without a case."""
    parts = list(store.read_vectors())
    ids = [name for part in parts for name in part.ids]
    return ids, np.concatenate([part.embeddings for part in parts]) if parts else None


def change(path: Path, statement: str, values: Sequence[Any] = ()) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)
