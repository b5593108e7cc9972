"""Read CSV files, plain or gzip, row by row. Errors name the file, the line and the column."""

import csv
import gzip
import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from contract.errors import InputError

_SHOWN_CHARS = 40


@dataclass(frozen=True)
class CsvRow:
    """One row: column name -> cell, without surrounding blanks."""

    path: Path
    line: int
    cells: dict[str, str] = field(repr=False)

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def require(self, column: str) -> str:
        """Return a cell. Raise InputError if it is empty."""
        return self.cells[column] or self.refuse(column, "is empty")

    def read_number(self, column: str) -> float:
        """Return a cell as a finite number. Raise InputError if it is not one."""
        try:
            value = float(self.cells[column])
        except ValueError:
            value = math.nan
        return value if math.isfinite(value) else self.refuse(column, f"is not a number: {self.show(column)}")

    def show(self, column: str) -> str:
        """Return the start of a cell, for a message."""
        return repr(self.cells[column][:_SHOWN_CHARS])

    def refuse(self, column: str, problem: str) -> NoReturn:
        """Raise InputError for a cell of this row."""
        raise InputError(f"{self.path}, line {self.line}, column {column!r} {problem}.")


def read_csv_rows(path: Path, columns: Sequence[str]) -> Iterator[CsvRow]:
    """Yield the rows of a CSV file, without empty lines.

    Args:
        path: A file in UTF-8, with or without byte order mark; gzip if the name ends in .gz.
        columns: Required columns. The file may have others.

    Raises:
        InputError: The file cannot be read, lacks a column, or a row has more or fewer cells than the first line.
    """
    reader = None
    try:
        with _open_text(path) as file:
            reader = csv.reader(file, strict=True)
            header = _read_header(path, next(reader, []), columns)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield _make_row(path, reader.line_num, header, cells)
    except (csv.Error, UnicodeError) as error:
        line = f", line {reader.line_num + 1}" if reader else ""
        raise InputError(f"{path}{line}: this is not a CSV file in UTF-8.") from error
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "it is damaged"
        raise InputError(f"{path} cannot be read: {reason}.") from error


def read_columns(path: Path) -> list[str]:
    """Return the column names of a CSV file; for errors see `read_csv_rows`."""
    try:
        with _open_text(path) as file:
            return [name.strip() for name in next(csv.reader(file, strict=True), [])]
    except (csv.Error, UnicodeError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read as a CSV file in UTF-8.") from error


@contextmanager
def _open_text(path: Path) -> Iterator[io.TextIOWrapper]:
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        yield text


def _read_header(path: Path, cells: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return the names of the columns, without empty ones at the end."""
    names = [cell.strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    if missing := [name for name in columns if name not in names]:
        raise InputError(f"{path}, line 1: there is no column {', '.join(map(repr, missing))}.")
    if twice := [name for name in columns if names.count(name) > 1]:
        raise InputError(f"{path}, line 1: the column {twice[0]!r} appears twice.")
    return names


def _make_row(path: Path, line: int, header: Sequence[str], cells: Sequence[str]) -> CsvRow:
    extra = cells[len(header) :]
    if len(cells) < len(header) or any(cell.strip() for cell in extra):
        raise InputError(
            f"{path}, line {line}: {len(cells)} cells, while line 1 names {len(header)} columns, the last of them "
            f"{header[-1]!r}."
        )
    return CsvRow(path, line, dict(zip(header, (cell.strip() for cell in cells), strict=False)))
