"""VinDr-CXR (Nguyen et al. 2022), as PhysioNet publishes it: labels of each reader, and boxes.

    image_labels_train.csv   one image and reader (rad_id) per row, 1 or 0 for each label; three readers per image
    image_labels_test.csv    one image per row: the consensus of five readers
    annotations_*.csv        boxes in pixels of the DICOM image; optional

A label is present if most readers of an image give it, absent if none does, and uncertain otherwise. The collection
does not name patients, so each image counts as a patient.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from contract.errors import InputError
from training.data.collections.csv_rows import CsvRow, read_columns, read_csv_rows
from training.data.collections.mapping import LabelMap, load_label_map
from training.data.collections.study import Box, PublishedImage, PublishedStudy, find_file

_PARTS: Final = ("train", "test")
_READERS: Final = ("rad_id", "rad_ID")
_ALIASES: Final = {"Other diseases": "Other disease"}  # name of a label in the test file
_EDGES: Final = ("x_min", "y_min", "x_max", "y_max")


def read_vindr(source: Path) -> Iterator[PublishedStudy]:
    """Yield a study for each image, the training part first.

    Args:
        source: The directory of the label files, or the one above its `annotations`.

    Raises:
        InputError: A file is missing or not as published; the message names file, line and column.
    """
    labels = load_label_map("vindr")
    paths = {part: find_file(source, (f"image_labels_{part}.csv",)) for part in _PARTS}
    if not any(paths.values()):
        raise InputError(f"{source} holds neither image_labels_train.csv nor image_labels_test.csv.")
    for part, path in paths.items():
        if path is None:
            continue
        boxes = _read_boxes(find_file(source, (f"annotations_{part}.csv",)), labels)
        for image_id, votes in _read_votes(path, labels).items():
            yield PublishedStudy(
                image_id,
                image_id,
                (PublishedImage(image_id, image_id, "PA"),),  # the collection has no other view
                labels.derive({label: _decide(readers) for label, readers in votes.items()}),
                tuple(boxes.get(image_id, ())),
                part,
            )


def _decide(votes: list[bool]) -> bool | None:
    return True if 2 * sum(votes) > len(votes) else None if any(votes) else False


def _read_votes(path: Path, labels: LabelMap) -> dict[str, dict[str, list[bool]]]:
    """Return image -> label -> vote of each reader."""
    present = read_columns(path)
    reader = next((name for name in _READERS if name in present), None)
    names = {label: label if label in present else _ALIASES.get(label, label) for label in labels.labels}
    votes: dict[str, dict[str, list[bool]]] = {}
    readers: dict[str, set[str]] = defaultdict(set)
    for row in read_csv_rows(path, ("image_id", *names.values())):
        image_id = row.require("image_id")
        who = row.require(reader) if reader else ""
        if who in readers[image_id]:
            row.refuse(reader or "image_id", "is in an earlier row for this image already")
        readers[image_id].add(who)
        image_votes = votes.setdefault(image_id, {label: [] for label in names})
        for label, column in names.items():
            image_votes[label].append(_read_vote(row, column))
    return votes


def _read_vote(row: CsvRow, column: str) -> bool:
    cell = row[column].removesuffix(".0")
    if cell not in {"0", "1"}:
        row.refuse(column, f"holds {row.show(column)} instead of 0 or 1")
    return cell == "1"


def _read_boxes(path: Path | None, labels: LabelMap) -> dict[str, list[Box]]:
    boxes: dict[str, list[Box]] = defaultdict(list)
    if path is None:
        return boxes
    reader = next((name for name in _READERS if name in read_columns(path)), None)
    names = {**dict.fromkeys(labels.labels), **{alias: label for label, alias in _ALIASES.items()}}
    for row in read_csv_rows(path, ("image_id", "class_name", *_EDGES)):
        label = row.require("class_name")
        if label not in names:
            row.refuse("class_name", f"names {label[:40]!r}, which is none of the collection's labels")
        if any(row[edge] for edge in _EDGES):
            boxes[row.require("image_id")].append(
                _read_box(row, label, labels, row[reader] if reader else "")
            )
    return boxes


def _read_box(row: CsvRow, label: str, labels: LabelMap, reader: str) -> Box:
    left, top, right, bottom = (row.read_number(edge) for edge in _EDGES)
    for edge, wrong in zip(_EDGES, (left < 0, top < 0, right <= left, bottom <= top), strict=True):
        if wrong:
            row.refuse(edge, f"is not the edge of a box: {row.show(edge)}")
    return Box(
        row["image_id"],
        label,
        labels.find_category(label),
        reader or None,
        left,
        top,
        right - left,
        bottom - top,
    )
