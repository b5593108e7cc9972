"""Boxes of findings, by image: those of phantoms, COCO, CheXlocalize or ChestX-ray14, or of a studies table."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from contract.errors import InputError
from contract.image.frame import Corners, Frame
from contract.labels import LABEL_INDEX, LABEL_NAMES
from training.data.collections.mapping import load_label_map
from training.data.collections.nih14 import read_nih14_boxes

_SIZE: Final = "img_size"  # of CheXlocalize
_CHEXPERT: Final = {
    "Airspace Opacity": "Lung Opacity"
}  # names of CheXlocalize that CheXpert writes otherwise
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
    """Read a file of boxes.

    - boxes.json of a phantom data set;
    - the annotations of a COCO file, whose categories are keys or names of the labels, and whose images are found by
      the name of their file without its suffix;
    - gt_annotations_*.json of CheXlocalize (Saporta et al. 2022): each polygon becomes the box around it;
    - BBox_List_2017.csv of ChestX-ray14.

    Boxes of other categories are left out, and those of labels that stand for more than one category.

    Raises:
        InputError: The file cannot be read, is none of these, or has no box of a known category.
    """
    boxes = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)
    if not boxes:
        raise InputError(
            f"{path} has no box of a known category. Known are the keys of the labels, such as "
            f"{', '.join(list(LABEL_INDEX)[:3])}, and their names."
        )
    return boxes


def _read_csv(path: Path) -> Boxes:
    found = read_nih14_boxes(path, load_label_map("nih14"))
    return read_table_boxes([{"boxes": [vars(box) for box in boxes]} for boxes in found.values()])


def _read_json(path: Path) -> Boxes:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a file of boxes ({type(error).__name__}).") from error
    try:
        if "annotations" in content:
            return _read_coco(content)
        if any(_SIZE in entry for entry in content.values()):
            return _read_chexlocalize(content)
        return _read_phantom(content)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"{path} is neither boxes.json of a phantom data set, nor a COCO file with images, annotations and "
            "categories, nor gt_annotations_*.json of CheXlocalize."
        ) from error


def _read_chexlocalize(content: Mapping[str, Any]) -> Boxes:
    """Return the boxes around the polygons of patient1_study1_view1_frontal -> finding -> polygons (x, y)."""
    labels = load_label_map("chexpert")
    boxes: Boxes = {}
    for name, entry in content.items():
        rows, columns = (float(side) for side in entry[_SIZE])
        found = []
        for finding, polygons in entry.items():
            category = labels.find_category(_CHEXPERT.get(finding, finding))
            if finding == _SIZE or category is None:
                continue
            for polygon in polygons:
                across, down = zip(*((float(x), float(y)) for x, y in polygon), strict=True)
                corners = (min(across), min(down), max(across), max(down))
                found.append(FindingBox(category, corners, columns, rows))
        if found:
            boxes["/".join(name.split("_", 2))] = found  # as `training.data.collections.chexpert` names it
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
