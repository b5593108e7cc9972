"""Rows of a studies table as the cases that the exporter checks and the client indexes."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contract.errors import ConfigError, InputError
from contract.text import SECTIONS, Report, format_report

if TYPE_CHECKING:
    from client.results import CaseInput
    from export.parity import ParityCase

Row = dict[str, Any]


def read_rows(table: Path, *, study_ids: Collection[str] | None = None) -> list[Row]:
    """Read a studies table (Parquet) as one dict per study, optionally only some studies.

    Raises:
        ConfigError: There is no such table.
    """
    from training.data.openi import read_table

    if not table.is_file():
        raise ConfigError(f"There is no studies table {table}; make one with `cxr data table`.")
    rows = read_table(table).to_pylist()
    wanted = None if study_ids is None else set(study_ids)
    return [row for row in rows if wanted is None or row["study_id"] in wanted]


def choose_rows(rows: Sequence[Row], split: Path, part: str) -> list[Row]:
    """Return the rows of one part (train, validation, test) of a split file; see `training.data.split_file`.

    Raises:
        ConfigError: It is no split of this table, or names no study for this part.
    """
    from training.data.split_file import read_split_file

    chosen = set(read_split_file(split, [row["study_id"] for row in rows])[part])
    if not chosen:
        raise ConfigError(f"{split} names no study for {part}.")
    return [row for row in rows if row["study_id"] in chosen]


def get_report(row: Row) -> str:
    """Return the whole report of a row, section by section; empty when no section holds text."""
    sections = (row[name] or "" for name in SECTIONS)
    return format_report(Report(*sections))


def get_image(row: Row) -> Path | None:
    """Return the file of the row's first (frontal) image."""
    return Path(row["image_paths"][0]) if row["image_paths"] else None


def is_readable(row: Row, text_mode: str) -> bool:
    """Whether the row holds text that the model can read or an image."""
    return get_image(row) is not None or has_text(row, text_mode)


def has_text(row: Row, text_mode: str) -> bool:
    """Whether the part of the report that the model reads holds words."""
    return bool(_read_text(row, text_mode))


def _read_text(row: Row, text_mode: str) -> str:
    """Return the part of the report that the model reads; empty where it holds no words."""
    from contract.text import read_report

    try:
        return read_report(get_report(row), text_mode)  # type: ignore[arg-type]
    except InputError:
        return ""


def make_cases(rows: Sequence[Row], text_mode: str) -> Iterator["CaseInput"]:
    """Yield what the client indexes: each study once, with its frontal image and its report.

    The client reads an image file when the turn of its case comes; one that cannot be read is refused alone.
    """
    from client.results import CaseInput

    for row in rows:
        if not is_readable(row, text_mode):
            continue
        image = get_image(row)
        yield CaseInput(
            id=row["study_id"],
            study_id=row["study_id"],
            image=image,
            report=get_report(row) if has_text(row, text_mode) else None,
            labels=tuple(row["labels"]),
            image_ref=str(image) if image else "",
        )


def make_parity_cases(
    rows: Sequence[Row], text_mode: str, image_size: int, *, count: int = 8
) -> list["ParityCase"]:
    """Decode real cases for the parity gate: the shortest, the longest and evenly spaced reports between."""
    readable = [row for row in rows if is_readable(row, text_mode)]
    readable.sort(key=lambda row: (not row["image_paths"], len(get_report(row))))
    with_image = [row for row in readable if row["image_paths"]] or readable
    return [_make_case(row, text_mode, image_size) for row in _space(with_image, count)]


def make_precision_cases(
    rows: Sequence[Row],
    test_ids: Collection[str],
    text_mode: str,
    image_size: int,
    *,
    least: int = 64,
    most: int = 256,
) -> list["ParityCase"]:
    """Decode the cases that a precision profile is held to: the test split, with what is known of each.

    Args:
        rows: Of a studies table.
        test_ids: Study ids of the model's test split.
        text_mode: The part of a report that the model reads.
        image_size: Side of the pixels.
        least: A test split of fewer is filled up with evenly spaced other studies: few decisions show no flips, and
            AUROC and AP are measured from 50 cases on.
        most: Evenly spaced ones of more.
    """
    readable = [row for row in rows if is_readable(row, text_mode)]
    held_out = [row for row in readable if row["study_id"] in test_ids]
    others = [row for row in readable if row["study_id"] not in test_ids]
    chosen = [*held_out, *_space(others, max(least - len(held_out), 0))]
    return [_make_case(row, text_mode, image_size) for row in _space(chosen, most)]


def _space(rows: Sequence[Row], count: int) -> list[Row]:
    """Return `count` evenly spaced rows, the first and the last among them; all where there are no more."""
    if len(rows) <= count:
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / max(count - 1, 1))] for index in range(count)]


def _make_case(row: Row, text_mode: str, image_size: int) -> "ParityCase":
    from client.inputs import read_image_file
    from contract.dicom import load_pixels
    from contract.labels import LABELS
    from export.parity import ParityCase

    image = get_image(row)
    there, unknown = (
        np.array([label.key in row[name] for label in LABELS]) for name in ("labels", "unknown_labels")
    )
    return ParityCase(
        pixels=load_pixels(read_image_file(image), size=image_size) if image else None,
        text=_read_text(row, text_mode) or None,
        labels=there if row["labelled"] else None,
        known=~unknown,
    )
