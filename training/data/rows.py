"""Rows of a studies table, one dict per study, with helpers for their image and report."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from contract.errors import ConfigError, InputError
from contract.report.names import SECTIONS
from contract.report.text import Report, format_report, read_report
from training.data.openi import read_table
from training.data.split_file import read_split_file

Row = dict[str, Any]


def read_rows(table: Path, *, study_ids: Collection[str] | None = None) -> list[Row]:
    """Read a studies table (Parquet) as one dict per study, optionally only some studies.

    Raises:
        ConfigError: The table does not exist.
    """
    if not table.is_file():
        raise ConfigError(f"There is no studies table {table}. Make one with `cxr data table`.")
    rows = read_table(table).to_pylist()
    chosen = None if study_ids is None else set(study_ids)
    return [row for row in rows if chosen is None or row["study_id"] in chosen]


def choose_rows(rows: Sequence[Row], split: Path, part: str) -> list[Row]:
    """Return the rows of one part (train, validation, test) of a split file; see `training.data.split_file`.

    Raises:
        ConfigError: The split belongs to another table, or names no study for this part.
    """
    chosen = set(read_split_file(split, [row["study_id"] for row in rows])[part])
    if not chosen:
        raise ConfigError(f"{split} names no study for {part}.")
    return [row for row in rows if row["study_id"] in chosen]


def get_report(row: Row) -> str:
    """Return the whole report of a row, section by section; "" if no section has text."""
    sections = (row[name] or "" for name in SECTIONS)
    return format_report(Report(*sections))


def get_image(row: Row) -> Path | None:
    """Return the file of the row's first (frontal) image."""
    return Path(row["image_paths"][0]) if row["image_paths"] else None


def is_readable(row: Row, text_mode: str) -> bool:
    """Whether the row holds text that the model can read or an image."""
    return get_image(row) is not None or has_text(row, text_mode)


def has_text(row: Row, text_mode: str) -> bool:
    """Whether a server would read the row's report: it can be parsed, and the part that the model reads holds words."""
    try:
        return bool(read_report(get_report(row), text_mode))  # type: ignore[arg-type]
    except InputError:
        return False
