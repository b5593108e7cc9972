"""The studies table in memory: pixels (uint8, decoded or from a cache), texts, targets."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError
from contract.image.view import is_trusted
from contract.labels import LABEL_INDEX, LABELS
from contract.report.text import TextMode
from training.data.cache import open_cache
from training.data.decode import DecodedFile, decode_file
from training.data.openi import read_table, read_text

Progress = Callable[[int, int], None]
logger = logging.getLogger(__name__)
_NAMED_REFUSALS = 5


@dataclass(frozen=True)
class StudySet:
    """All studies of a table: M studies, P images.

    Attributes:
        study_ids: M study ids.
        patient_ids: M patient ids.
        texts: The part of each report that the model reads; "" if it has no words.
        impressions: The same part, read as if the report had no findings section. It is often short, like a query.
        indications: The reason for each examination; "" if it is not stated.
        wordings: Two lists of M texts, from `read_wordings`.
        views: For each study its rows of `pixels`, frontal first; empty without images.
        laterals: For each study whether each of its `views` is a lateral; None without a trusted header.
        pixels: (P, 1, S, S) uint8. From a cache, they stay on the disk and include images of other studies.
        targets: (M, K) bool; False if unknown.
        known: (M, K) bool; False if the collection does not state the label for the study.
        unreadable: Number of image files that could not be read.
    """

    study_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    texts: tuple[str, ...]
    impressions: tuple[str, ...]
    indications: tuple[str, ...]
    wordings: tuple[tuple[str, ...], ...]
    views: tuple[tuple[int, ...], ...]
    laterals: tuple[tuple[bool | None, ...], ...]
    pixels: NDArray[np.uint8]
    targets: NDArray[np.bool_]
    known: NDArray[np.bool_]
    unreadable: int = 0

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(M,) bool; False if no label is known, for example if nobody indexed the report."""
        return np.asarray(self.known.any(1), dtype=bool)

    def __len__(self) -> int:
        return len(self.study_ids)

    def has(self, kind: str) -> NDArray[np.bool_]:
        """Return (M,) bool: whether a study can be read as "image", "text" or "study" (both)."""
        image = np.array([bool(rows) for rows in self.views], dtype=bool)
        text = np.array([bool(words) for words in self.texts], dtype=bool)
        return {"image": image, "text": text, "study": image & text}[kind]


def read_studies(
    table: Path, mode: TextMode, size: int, progress: Progress | None = None, *, cache: Path | None = None
) -> StudySet:
    """Read a studies table and every image it names.

    Args:
        table: Parquet file made by `training.data.openi.write_table`.
        mode: The part of the reports that the model reads.
        size: Side of the square images, in pixels.
        progress: Called with the number of images read and their total.
        cache: Directory of `training.data.cache.fill_cache`, to map images from instead of decoding them.

    Raises:
        ConfigError: No study has an image or a text, none of the images can be read, or the cache lacks an image.
        ArtifactError: The table or the cache is damaged.
    """
    rows = [row for row in read_texts(table, mode) if row["image_paths"] or row["text"]]
    if not rows:
        raise ConfigError(f"{table} holds no study with an image or a report.")
    paths = [path for row in rows for path in row["image_paths"]]
    if cache is None:
        pixels, rows_of_paths = load_images(paths, size, progress)
    else:
        opened = open_cache(cache, size)
        pixels, rows_of_paths = opened.pixels, opened.find_rows(paths)
    if paths and all(pixel_row is None for pixel_row in rows_of_paths):
        raise ConfigError(
            f"None of the {len(paths):,} images of {table} can be read. The first one is {paths[0]}."
        )
    remaining_rows = iter(rows_of_paths)
    views = [[next(remaining_rows) for _ in row["image_paths"]] for row in rows]
    return StudySet(
        study_ids=tuple(row["study_id"] for row in rows),
        patient_ids=tuple(row["patient_id"] for row in rows),
        texts=tuple(row["text"] for row in rows),
        impressions=tuple(read_text({**row, "findings": ""}, mode) for row in rows),
        indications=tuple(read_text(row, "indication") for row in rows),
        wordings=read_wordings(rows),
        views=tuple(tuple(pixel_row for pixel_row in study if pixel_row is not None) for study in views),
        laterals=tuple(
            tuple(
                lateral
                for pixel_row, lateral in zip(study, read_laterals(row), strict=True)
                if pixel_row is not None
            )
            for study, row in zip(views, rows, strict=True)
        ),
        pixels=pixels,
        targets=make_targets([row["labels"] for row in rows]),
        known=make_known(rows),
        unreadable=sum(pixel_row is None for pixel_row in rows_of_paths),
    )


def read_laterals(row: Mapping[str, Any]) -> list[bool | None]:
    """Return whether each image of a table row is a lateral; None without a trusted header."""
    if not (row["views"] and row["headers"]):
        return [None] * len(row["image_paths"])
    return [
        view == "LATERAL"
        if header and is_trusted(view, header["view_confidence"] or 0.5, header["view_source"] or "")
        else None
        for view, header in zip(row["views"], row["headers"], strict=True)
    ]


def read_wordings(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the findings and the whole reports of rows of a studies table.

    Studies that are nearly equal in one of them belong in the same part of a split, whatever the model reads: equal
    findings are equal inputs, and equal reports come from one template.
    """
    return (
        tuple(read_text(row, "findings") for row in rows),
        tuple(read_text(row, "full") for row in rows),
    )


def load_images(
    paths: Sequence[str], size: int, progress: Progress | None = None
) -> tuple[NDArray[np.uint8], list[int | None]]:
    """Read images in parallel.

    It uses threads, because NumPy, OpenCV and the codecs release the interpreter lock, and threads need no copies
    between processes.

    Returns:
        (P, 1, size, size) uint8 of the readable images, and for each path its row, or None. The first few unreadable
        images are logged.
    """
    pixels = np.zeros((len(paths), 1, size, size), dtype=np.uint8)
    rows: list[int | None] = []
    refused: list[DecodedFile] = []
    with ThreadPoolExecutor() as pool:
        for done, file in enumerate(pool.map(lambda path: decode_file(path, size), paths), start=1):
            if file.pixels is None:
                refused.append(file)
                rows.append(None)
            else:
                rows.append(done - 1 - len(refused))
                pixels[done - 1 - len(refused)] = file.pixels
            if progress is not None:
                progress(done, len(paths))
    for file in refused[:_NAMED_REFUSALS]:
        logger.warning("Leaving out %s: %s", file.path, file.reason)
    if len(refused) > _NAMED_REFUSALS:
        logger.warning("Leaving out %d more images.", len(refused) - _NAMED_REFUSALS)
    return pixels[: len(paths) - len(refused)], rows


def make_targets(labels: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
    """Return the label keys of M studies as (M, K) bool."""
    targets = np.zeros((len(labels), len(LABELS)), dtype=bool)
    for row, keys in enumerate(labels):
        targets[row, [LABEL_INDEX[key] for key in keys]] = True
    return targets


def make_known(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """Return (M, K) bool: whether a table row states the label, as present or as absent."""
    stated = ~make_targets([row["unknown_labels"] for row in rows])
    stated[[not row["labelled"] for row in rows]] = False
    return stated


def forget_undeniable(studies: StudySet, rows: NDArray[np.int64]) -> tuple[StudySet, tuple[str, ...]]:
    """Mark each label as unknown that some training studies (`rows`) have, others do not state, and none lacks.

    A model that learns only from positives would predict the finding for everyone.

    Returns:
        The studies, and the keys of these labels.
    """
    targets, known = studies.targets[rows], studies.known[rows]
    undeniable = (targets & known).any(0) & ~(~targets & known).any(0) & ~known.all(0)
    if not undeniable.any():
        return studies, ()
    still_known = studies.known & ~undeniable
    keys = tuple(LABELS[k].key for k in np.flatnonzero(undeniable))
    return replace(studies, known=still_known, targets=studies.targets & still_known), keys


def hold_out(studies: StudySet, keys: Collection[str]) -> StudySet:
    """Mark labels as unknown in every study, so that neither losses nor calibration, thresholds or scores use them.

    Args:
        studies: Any studies.
        keys: Keys of the labels; see `DataConfig.held_out`.
    """
    is_used = np.array([label.key not in keys for label in LABELS])  # (K,)
    return replace(studies, known=studies.known & is_used, targets=studies.targets & is_used)


def read_texts(table: Path, mode: TextMode) -> list[dict[str, Any]]:
    """Return the rows of a studies table, each with "text": the part of its report that the model reads, or ""."""
    return [{**row, "text": read_text(row, mode)} for row in read_table(table).to_pylist()]
