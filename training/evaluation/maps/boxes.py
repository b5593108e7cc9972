"""Boxes of findings, by image: those of phantoms, of a COCO file, or of a studies table."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from contract.errors import InputError
from contract.image.frame import Corners, Frame
from contract.labels import LABEL_INDEX, LABEL_NAMES

_KEYS: Final = {name.lower(): key for key, name in LABEL_NAMES.items()} | {key: key for key in LABEL_INDEX}


@dataclass(frozen=True)
class FindingBox:
    """One box of a finding.

    Attributes:
        category: Key of the label.
        corners: Its corners, in pixels of an image of `columns` x `rows`.
        columns: Width of the image that the corners count in; None: the stored image.
        rows: Height of that image; None: the stored image.
    """

    category: str
    corners: Corners
    columns: float | None = None
    rows: float | None = None

    def place(self, frame: Frame) -> Corners:
        """Return the box in the square that the model reads, in its pixels."""
        across = frame.columns / (self.columns or frame.columns)
        down = frame.rows / (self.rows or frame.rows)
        x0, y0, x1, y1 = self.corners
        return frame.place_box((x0 * across, y0 * down, x1 * across, y1 * down))


Boxes = dict[str, list[FindingBox]]  # image id -> its boxes


def read_boxes(path: Path) -> Boxes:
    """Read a file of boxes: boxes.json of a phantom data set, or the annotations of a COCO file.

    The categories of a COCO file are keys or names of the labels. Its images are found by the name of their file
    without its suffix. Boxes of other categories are left out.

    Raises:
        InputError: The file cannot be read, is neither of both, or has no box of a known category.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a file of boxes ({type(error).__name__}).") from error
    try:
        boxes = _read_coco(content) if "annotations" in content else _read_phantom(content)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"{path} is neither boxes.json of a phantom data set nor a COCO file with images, annotations and "
            "categories."
        ) from error
    if not boxes:
        raise InputError(
            f"{path} has no box of a known category. Known are the keys of the labels, such as "
            f"{', '.join(list(LABEL_INDEX)[:3])}, and their names."
        )
    return boxes


def _read_phantom(content: Mapping[str, Any]) -> Boxes:
    boxes: Boxes = {}
    for image_id, entries in content.items():
        found = []
        for entry in entries:
            x0, y0, x1, y1 = (float(edge) for edge in entry["box"])
            if entry["category"] in LABEL_INDEX:
                found.append(FindingBox(entry["category"], (x0, y0, x1, y1)))
        if found:
            boxes[image_id] = found
    return boxes


def _read_coco(content: Mapping[str, Any]) -> Boxes:
    names = {entry["id"]: _KEYS.get(str(entry["name"]).lower()) for entry in content["categories"]}
    images = {entry["id"]: entry for entry in content["images"]}
    boxes: Boxes = defaultdict(list)
    for entry in content["annotations"]:
        image, category = images[entry["image_id"]], names[entry["category_id"]]
        if category is None:
            continue
        x, y, width, height = (float(edge) for edge in entry["bbox"])
        corners = (x, y, x + width, y + height)
        name = Path(str(image["file_name"])).name
        stem = name[: -len(Path(name).suffix)] if Path(name).suffix else name
        boxes[stem].append(FindingBox(category, corners, float(image["width"]), float(image["height"])))
    return dict(boxes)


def read_table_boxes(rows: Sequence[Mapping[str, Any]]) -> Boxes:
    """Return the boxes of the rows of a studies table; see `training.data.openi.BOX`."""
    boxes: Boxes = defaultdict(list)
    for row in rows:
        for box in row.get("boxes") or ():
            if box["category"] not in LABEL_INDEX:
                continue
            x, y = box["x"], box["y"]
            corners = (x, y, x + box["width"], y + box["height"])
            boxes[box["image_id"]].append(
                FindingBox(box["category"], corners, box["image_width"], box["image_height"])
            )
    return dict(boxes)
