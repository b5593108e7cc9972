"""ChestX-ray14 of the NIH Clinical Center (Wang et al. 2017): `Data_Entry_2017*.csv` and the files beside it.

    Data_Entry_2017*.csv                 one image per row, its findings joined by |
    train_val_list.txt, test_list.txt    the published split, one image per line; read if both exist
    BBox_List_2017.csv                   boxes in pixels of 1024 x 1024; optional

Each image is a study, because the collection does not state which images were taken together.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from contract.errors import InputError
from training.data.collections.csv_rows import CsvRow, read_columns, read_csv_rows
from training.data.collections.mapping import NORMAL, LabelMap, load_label_map
from training.data.collections.study import (
    Box,
    PublishedImage,
    PublishedStudy,
    find_file,
    read_box,
    read_view,
    require_file,
)

SIDE: Final = 1024  # side of the published images, in pixels
_ENTRY: Final = ("Data_Entry_2017*.csv",)
_LISTS: Final = {"train_val_list.txt": "train", "test_list.txt": "test"}
_VIEWS: Final = ("PA", "AP")
_CORNER, _SIZE = ("Bbox [x", "y"), ("w", "h]")


def read_nih14(source: Path) -> Iterator[PublishedStudy]:
    """Yield a study for each image, in the order of the file.

    Args:
        source: The directory of the label files, or the file `Data_Entry_2017*.csv` itself.

    Raises:
        InputError: A file is missing or not as published; the message names file, line and column.
    """
    entry = source if source.is_file() else require_file(source, _ENTRY)
    labels = load_label_map("nih14")
    boxes, parts = _read_boxes(source, labels), _read_lists(source)
    for row in read_csv_rows(entry, ("Image Index", "Finding Labels", "Patient ID", "View Position")):
        name = row.require("Image Index")
        image_id = name.removesuffix(".png")
        patient = row.require("Patient ID")
        if not patient.isdigit() or image_id.split("_")[0].lstrip("0") != patient.lstrip("0"):
            row.refuse("Patient ID", "is not the number that the image's name begins with")
        if row["View Position"] not in _VIEWS:
            row.refuse("View Position", f"is {row.show('View Position')} instead of PA or AP")
        if parts and name not in parts:
            row.refuse("Image Index", f"names an image that neither {' nor '.join(_LISTS)} names")
        yield PublishedStudy(
            image_id,
            patient,
            (PublishedImage(image_id, image_id, read_view(row["View Position"])),),
            labels.derive_listed(_read_findings(row, labels)),
            tuple(boxes.get(image_id, ())),
            parts.get(name),
        )


def _read_findings(row: CsvRow, labels: LabelMap) -> list[str]:
    findings = row.require("Finding Labels").split("|")
    if unknown := [name for name in findings if name not in labels.labels]:
        row.refuse("Finding Labels", f"names {unknown[0][:40]!r}, which is none of the collection's labels")
    normal = [entry.label for entry in labels.rows if entry.category == NORMAL]
    if len(findings) > 1 and not set(normal).isdisjoint(findings):
        row.refuse("Finding Labels", f"names {normal[0]!r} beside a finding")
    return findings


def _read_boxes(source: Path, labels: LabelMap) -> dict[str, list[Box]]:
    """Return image -> boxes, also for images that are not in the label file."""
    path = find_file(source, ("BBox_List_2017.csv",))
    return {} if path is None else read_nih14_boxes(path, labels)


def read_nih14_boxes(path: Path, labels: LabelMap) -> dict[str, list[Box]]:
    """Read a file like BBox_List_2017.csv: image -> boxes, in pixels of 1024 x 1024.

    Args:
        path: The file.
        labels: The table of the collection.

    Raises:
        InputError: The file is not as published; the message names file, line and column.
    """
    boxes: dict[str, list[Box]] = defaultdict(list)
    if read_columns(path)[2:6] != [*_CORNER, *_SIZE]:
        raise InputError(f"{path}, line 1: the columns 3 to 6 are not Bbox [x,y,w,h].")
    for row in read_csv_rows(path, ("Image Index", "Finding Label", *_CORNER, *_SIZE)):
        label = row.require("Finding Label")
        if label not in labels.labels:
            row.refuse("Finding Label", f"names {label[:40]!r}, which is none of the collection's labels")
        image_id = row.require("Image Index").removesuffix(".png")
        columns = {
            "image_id": image_id,
            "label": label,
            "category": labels.find_category(label),
            "reader": None,
        }
        boxes[image_id].append(read_box(row, _CORNER, _SIZE, **columns, image_width=SIDE, image_height=SIDE))
    return boxes


def _read_lists(source: Path) -> dict[str, str]:
    """Return image -> part of the published split; empty unless both lists exist."""
    paths = {part: find_file(source, (name,)) for name, part in _LISTS.items()}
    parts: dict[str, str] = {}
    for part, path in paths.items():
        if path is None:
            return {}
        try:
            names = path.read_text(encoding="utf-8").split()
        except (OSError, UnicodeError) as error:
            raise InputError(f"{path} cannot be read as a list of images.") from error
        if twice := next((line for line, name in enumerate(names, start=1) if name in parts), None):
            raise InputError(f"{path}, line {twice}: the image is in a list already.")
        parts |= dict.fromkeys(names, part)
    return parts
