"""MIMIC-CXR (Johnson et al. 2019): the tables of MIMIC-CXR-JPG 2.x and the report files of MIMIC-CXR.

    mimic-cxr-2.*-chexpert.csv[.gz]    labels per study, like CheXpert's: 1, 0, -1 or empty
    mimic-cxr-2.*-metadata.csv[.gz]    images with their views
    mimic-cxr-2.*-split.csv[.gz]       the published split
    files/p10/p10000032/s50414267.txt  reports; also in mimic-cxr-reports.zip, or in a directory mimic-cxr-reports

A study without labels is in the table, as unlabelled.
"""

import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from contract.errors import InputError, ReportError
from contract.report.text import Report, parse_report
from training.data.collections.csv_rows import CsvRow, read_csv_rows
from training.data.collections.mapping import NOTHING_KNOWN, Categories, LabelMap, load_label_map
from training.data.collections.study import (
    PARTS,
    PublishedImage,
    PublishedStudy,
    read_statement,
    read_view,
    require_file,
)

_ARCHIVE: Final = "mimic-cxr-reports.zip"
_MAX_REPORT_BYTES: Final = 2**20
_TAKEN_OUT: Final = re.compile(rb"_{3,}")
Key = tuple[str, str]  # patient, study


def read_mimic_cxr(source: Path) -> Iterator[PublishedStudy]:
    """Yield the studies in the order of the metadata.

    Args:
        source: The directory of the tables, with the reports, if any, below it.

    Raises:
        InputError: A table is missing or not as published, or they contradict each other; the message names file, line
            and column. A report that cannot be read is an error too. A missing report leaves its study without report.
    """
    paths = {
        name: require_file(source, (f"mimic-cxr-2.*-{name}.csv", f"mimic-cxr-2.*-{name}.csv.gz"))
        for name in ("chexpert", "metadata", "split")
    }
    labels = load_label_map("mimic-cxr")
    images, labelled = _read_images(paths["metadata"]), _read_labels(paths["chexpert"], labels)
    parts = _read_parts(paths["split"], images)
    if strangers := labelled.keys() - images.keys():
        raise InputError(
            f"{paths['chexpert']} names {len(strangers):,} studies that {paths['metadata'].name} lacks."
        )
    with closing(_Reports(source)) as reports:
        for (patient, study), study_images in images.items():
            yield PublishedStudy(
                f"s{study}",
                f"p{patient}",
                tuple(study_images),
                labelled.get((patient, study), NOTHING_KNOWN),
                split=parts.get((patient, study)),
                report=_read_report(reports, patient, study),
            )


def _read_images(path: Path) -> dict[Key, list[PublishedImage]]:
    images: dict[Key, list[PublishedImage]] = defaultdict(list)
    for row in read_csv_rows(path, ("dicom_id", "subject_id", "study_id", "ViewPosition")):
        name = row.require("dicom_id")
        images[_read_key(row)].append(PublishedImage(name, name, read_view(row["ViewPosition"])))
    patients: dict[str, str] = {}
    for patient, study in images:
        if patients.setdefault(study, patient) != patient:
            raise InputError(f"{path}: study_id {study} belongs to two patients.")
    return images


def _read_labels(path: Path, labels: LabelMap) -> dict[Key, Categories]:
    categories: dict[Key, Categories] = {}
    for row in read_csv_rows(path, ("subject_id", "study_id", *labels.labels)):
        key = _read_key(row)
        if key in categories:
            row.refuse("study_id", "is in an earlier row already")
        stated = {
            label: value for name in labels.labels for label, value in read_statement(row, name).items()
        }
        categories[key] = labels.derive(stated)
    return categories


def _read_parts(path: Path, images: dict[Key, list[PublishedImage]]) -> dict[Key, str]:
    parts: dict[Key, str] = {}
    for row in read_csv_rows(path, ("dicom_id", "subject_id", "study_id", "split")):
        key = _read_key(row)
        part = PARTS.get(row.require("split").lower())
        if part is None:
            row.refuse("split", f"is {row.show('split')} instead of train, validate or test")
        if key in images and parts.setdefault(key, part) != part:
            row.refuse("split", "puts an image into another part than the rest of its study")
    return parts


def _read_key(row: CsvRow) -> Key:
    for column in ("subject_id", "study_id"):
        if not row.require(column).isdigit():
            row.refuse(column, "is not a number")
    return row["subject_id"], row["study_id"]


class _Reports:
    """The report files, in the archive or in a directory."""

    def __init__(self, source: Path) -> None:
        """Open the archive if it exists. Raise InputError if it is damaged."""
        self._directories = (source, source / _ARCHIVE.removesuffix(".zip"))
        self._archive: zipfile.ZipFile | None = None
        if (path := source / _ARCHIVE).is_file():
            try:
                self._archive = zipfile.ZipFile(path)
            except (zipfile.BadZipFile, OSError) as error:
                raise InputError(f"{path} cannot be read as a ZIP archive.") from error
        self._names = frozenset(self._archive.namelist()) if self._archive else frozenset()

    def close(self) -> None:
        """Close the archive."""
        if self._archive:
            self._archive.close()

    def read(self, name: str) -> bytes:
        """Return the bytes of a report by its path; b"" if there is none."""
        if self._archive and name in self._names:
            return self._archive.read(name)
        path = next(
            (candidate for folder in self._directories if (candidate := folder / name).is_file()), None
        )
        return path.read_bytes() if path else b""


def _read_report(reports: _Reports, patient: str, study: str) -> Report:
    """Return a report, or an empty one if it is missing. De-identified words are marked as in Open-i."""
    name = f"files/p{patient[:2]}/p{patient}/s{study}.txt"
    try:
        data = reports.read(name)
        if len(data) > _MAX_REPORT_BYTES:
            raise InputError(f"The report {name} is larger than 1 MB, so it is no report.")
        return parse_report(_TAKEN_OUT.sub(b"XXXX", data)) if data.strip() else Report()
    except ReportError as error:
        raise InputError(f"The report {name} cannot be read: {error}") from error
    except (OSError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise InputError(f"The report {name} cannot be read.") from error
