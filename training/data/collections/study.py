"""The studies that the reader of every format yields, with labels, images, boxes and published split."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from contract.errors import InputError
from contract.image.view import View
from contract.report.text import Report
from training.data.collections.csv_rows import CsvRow
from training.data.collections.mapping import Categories

PARTS: Final = {
    **dict.fromkeys(("train", "training", "train_val"), "train"),
    **dict.fromkeys(("validation", "validate", "val", "valid"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_VIEWS: Final[dict[str, View]] = {
    "PA": "PA",
    "AP": "AP",
    "AP_HORIZONTAL": "AP",
    **dict.fromkeys(("LATERAL", "L", "LL", "RL"), "LATERAL"),
}


@dataclass(frozen=True)
class PublishedImage:
    """One image as a label file names it.

    Attributes:
        image_id: Id as in the collection, without a file suffix.
        key: Key that the format's function also computes from the file's path; see
            `training.data.collections.table.Format`.
        view: View by the label file; "UNKNOWN" if it does not state one.
    """

    image_id: str
    key: str
    view: View = "UNKNOWN"


@dataclass(frozen=True)
class Box:
    """A box that a reader drew, in pixels; for the fields see `training.data.openi.BOX`."""

    image_id: str
    label: str
    category: str | None
    reader: str | None
    x: float
    y: float
    width: float
    height: float
    image_width: int | None = None
    image_height: int | None = None


@dataclass(frozen=True)
class PublishedStudy:
    """One study. `split` is its part of the published split, or None."""

    study_id: str
    patient_id: str
    images: tuple[PublishedImage, ...]
    categories: Categories
    boxes: tuple[Box, ...] = ()
    split: str | None = None
    report: Report = field(default=Report(), repr=False)


def read_view(name: str) -> View:
    """Return the view that a label file names; "UNKNOWN" for another name, which only orders the images."""
    return _VIEWS.get(name.strip().upper(), "UNKNOWN")


def read_statement(row: CsvRow, column: str) -> dict[str, bool | None]:
    """Return the statement of a CheXpert cell: 1 present, 0 absent, -1 uncertain, empty not stated.

    Raises:
        InputError: The cell holds another value.
    """
    values = {"1": True, "0": False, "-1": None}
    cell = row[column].removesuffix(".0")
    if not cell:
        return {}
    if cell not in values:
        row.refuse(column, f"holds {row.show(column)} instead of 1, 0, -1 or nothing")
    return {column: values[cell]}


def read_box(row: CsvRow, corner: Sequence[str], size: Sequence[str], **fields: Any) -> Box:
    """Return a box from the columns of its upper left corner (x, y) and of its width and height.

    Raises:
        InputError: A value is not a number, or the box is empty or begins outside the image.
    """
    x, y = (row.read_number(column) for column in corner)
    width, height = (row.read_number(column) for column in size)
    for column, value in zip((*corner, *size), (x, y, width, height), strict=True):
        if value < 0 or (column in size and value == 0):
            row.refuse(column, f"is not the edge of a box: {row.show(column)}")
    return Box(x=x, y=y, width=width, height=height, **fields)


def find_file(source: Path, names: Sequence[str]) -> Path | None:
    """Return the only file of a directory, or of a sub-directory, with one of these names (patterns); None without one.

    Raises:
        InputError: There are several such files.
    """
    directory = source if source.is_dir() else source.parent
    paths: list[Path] = sorted({path for name in names for path in _list_files(directory, name)})
    if len(paths) > 1:
        raise InputError(
            f"{directory} holds several label files: {', '.join(path.name for path in paths[:4])}."
        )
    return paths[0] if paths else None


def require_file(source: Path, names: Sequence[str]) -> Path:
    """Return the only label file with one of these names. Raise InputError if there is none."""
    path = find_file(source, names)
    if path is None:
        raise InputError(f"{source} holds no file {' or '.join(names)}.")
    return path


def _list_files(directory: Path, name: str) -> Iterable[Path]:
    return (
        path
        for pattern in (name, f"annotations/{name}")
        for path in directory.glob(pattern)
        if path.is_file()
    )
