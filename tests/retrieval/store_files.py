"""Change the file of a closed store behind its back, as damage does."""

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def change(path: Path, statement: str, values: Sequence[Any] = ()) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)
