"""PadChest (Bustos et al. 2020): `PADCHEST_chest_x_ray_images_labels_160K*.csv`, one image per row, with its labels.

A study has the labels of all its images. They come from the whole report, so a label that is not listed is absent, as
with Open-i's headings. The reports are Spanish and reduced to word stems. The text side reads English, so they are
not used.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from training.data.collections.csv_rows import CsvRow, read_csv_rows
from training.data.collections.mapping import NOTHING_KNOWN, Categories, LabelMap, load_label_map
from training.data.collections.study import PublishedImage, PublishedStudy, read_view, require_file

_FILES: Final = (
    "PADCHEST_chest_x_ray_images_labels_160K*.csv",
    "PADCHEST_chest_x_ray_images_labels_160K*.csv.gz",
)
_EXCLUDE: Final = "exclude"  # as a label or projection: not a usable chest radiograph
_MISSING: Final = {"", "nan"}


@dataclass
class _Study:
    patient: str
    images: list[PublishedImage] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)


def read_padchest(source: Path) -> Iterator[PublishedStudy]:
    """Yield the studies in the order of their first images.

    Args:
        source: The label file, or its directory.

    Raises:
        InputError: It is missing or not as published; the message names file, line and column.
    """
    path = source if source.is_file() else require_file(source, _FILES)
    labels = load_label_map("padchest")
    names = {label.lower(): label for label in labels.labels}
    studies: dict[str, _Study] = {}
    for row in read_csv_rows(path, ("ImageID", "StudyID", "PatientID", "Projection", "Labels")):
        patient = row.require("PatientID")
        study = studies.setdefault(row.require("StudyID"), _Study(patient))
        if study.patient != patient:
            row.refuse("PatientID", "differs from that of the study's other images")
        study.labels |= _read_labels(row, names)
        if row["Projection"].lower() != _EXCLUDE:
            image_id = row.require("ImageID").removesuffix(".png")
            study.images.append(PublishedImage(image_id, image_id, read_view(row["Projection"])))
    for study_id, study in studies.items():
        yield PublishedStudy(study_id, study.patient, tuple(study.images), _derive(study.labels, labels))


def _read_labels(row: CsvRow, known: dict[str, str]) -> set[str]:
    if row["Labels"].lower() in _MISSING:
        return set()
    try:
        listed = ast.literal_eval(row["Labels"])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        listed = None
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        row.refuse("Labels", "is not a list of labels, such as ['cardiomegaly', 'scoliosis']")
    names = {name.strip().lower() for name in listed} - {""}
    if unknown := sorted(names - known.keys()):
        row.refuse("Labels", f"names {unknown[0][:40]!r}, which is none of the collection's labels")
    return {known[name] for name in names}


def _derive(listed: set[str], labels: LabelMap) -> Categories:
    """Return the categories of a study; all unknown if no label states a finding or its absence."""
    mapped = {row.label for row in labels.rows if row.category}
    return labels.derive_listed(listed) if listed & mapped and _EXCLUDE not in listed else NOTHING_KNOWN
