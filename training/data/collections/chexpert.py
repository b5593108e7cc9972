"""CheXpert (Irvin et al. 2019): `train.csv` and `valid.csv`, one image per row, with the views of a study together.

1: present, 0: absent, -1: uncertain, empty: not mentioned. Uncertain and unmentioned labels are unknown.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from training.data.collections.csv_rows import CsvRow, read_csv_rows
from training.data.collections.mapping import LabelMap, load_label_map
from training.data.collections.study import (
    PublishedImage,
    PublishedStudy,
    find_file,
    read_statement,
    read_view,
    require_file,
)

_FILES: Final = {"train.csv": "train", "valid.csv": "validation"}
_PATH: Final = re.compile(r"(?:.*/)?(patient[0-9]+)/(study[0-9]+)/(view[0-9]+_(?:frontal|lateral))\.[a-z]+")


def read_chexpert(source: Path) -> Iterator[PublishedStudy]:
    """Yield the studies in the order of their first images. The images of a study need not be in adjacent rows.

    Args:
        source: The directory with train.csv and, optionally, valid.csv; or one of these files, as the part that it is
            named after.

    Raises:
        InputError: A file is missing or not as published. The message names file, line and column.
    """
    labels = load_label_map("chexpert")
    if source.is_file():
        paths = {source: _FILES.get(source.name)}
    else:
        paths = {require_file(source, ("train.csv",)): "train"}
        if valid := find_file(source, ("valid.csv",)):
            paths[valid] = "validation"
    for path, part in paths.items():
        yield from _read_part(path, part, labels)


def _read_part(path: Path, part: str | None, labels: LabelMap) -> Iterator[PublishedStudy]:
    studies: dict[str, PublishedStudy] = {}
    for row in read_csv_rows(path, ("Path", "Frontal/Lateral", "AP/PA", *labels.labels)):
        study = _read_row(row, part, labels)
        earlier = studies.get(study.study_id)
        if earlier is None:
            studies[study.study_id] = study
            continue
        if earlier.categories != study.categories:
            row.refuse("Path", "names a study whose other images have other labels")
        if study.images[0].key in {image.key for image in earlier.images}:
            row.refuse("Path", "names an image that an earlier row has")
        studies[study.study_id] = replace(earlier, images=earlier.images + study.images)
    yield from studies.values()


def _read_row(row: CsvRow, part: str | None, labels: LabelMap) -> PublishedStudy:
    match = _PATH.fullmatch(row.require("Path"))
    if match is None:
        row.refuse("Path", "is not like .../patient00001/study1/view1_frontal.jpg")
    patient, study, view = match.groups()
    side = row.require("Frontal/Lateral")
    if side not in {"Frontal", "Lateral"} or view.rsplit("_", 1)[1] != side.lower():
        row.refuse("Frontal/Lateral", f"is {row.show('Frontal/Lateral')}, while the file is named {view}")
    stated = {label: value for name in labels.labels for label, value in read_statement(row, name).items()}
    key = "/".join(match.groups())
    image = PublishedImage(key, key, read_view(side if side == "Lateral" else row["AP/PA"]))
    return PublishedStudy(f"{patient}_{study}", patient, (image,), labels.derive(stated), split=part)


def get_chexpert_key(path: Path) -> str:
    """Return the last parts of the path of an image file, such as patient00001/study1/view1_frontal."""
    return "/".join((*path.parts[-3:-1], path.name.split(".")[0]))
