"""Read label files of a published format into the studies table, with the images of a directory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from contract.errors import ConfigError, InputError
from contract.image.header import ImageHeader
from contract.image.view import VIEW_RANKS, View
from contract.image.view_clues import Projection
from contract.report.names import SECTIONS
from training.data.collections.chexpert import get_chexpert_key, read_chexpert
from training.data.collections.kermany import read_kermany
from training.data.collections.mimic_cxr import read_mimic_cxr
from training.data.collections.nih14 import read_nih14
from training.data.collections.own_csv import load_csv_mapping, read_own_csv
from training.data.collections.padchest import read_padchest
from training.data.collections.study import Box, PublishedStudy
from training.data.collections.vindr import read_vindr
from training.data.openi import (
    COLLECTION_KEY,
    IMAGE_SUFFIXES,
    SCHEMA,
    ImageCount,
    Progress,
    require_images,
)

try:
    import pyarrow as pa

    from training.data.openi_views import order_images
except ModuleNotFoundError as error:
    raise ConfigError(
        "Reading label files needs the 'train' extra: pip install 'cxr-serving[train]'."
    ) from error

CSV: Final = "csv"
# The view of a label file overrides the headers.
_PROJECTIONS: Final[dict[View, Projection]] = {"PA": "FRONTAL", "AP": "FRONTAL", "LATERAL": "LATERAL"}
_SUFFIXES: Final = {*IMAGE_SUFFIXES, ".dicom"}  # VinDr's DICOM files
_ROWS: Final = 1000  # studies that are converted to columns at a time


@dataclass(frozen=True)
class Format:
    """A published format: its reader, and the function that computes `PublishedImage.key` from an image path."""

    read: Callable[[Path], Iterable[PublishedStudy]]
    get_key: Callable[[Path], str] = lambda path: path.name.split(".")[0]


FORMATS: Final[dict[str, Format]] = {
    "nih14": Format(read_nih14),
    "chexpert": Format(read_chexpert, get_chexpert_key),
    "mimic-cxr": Format(read_mimic_cxr),
    "vindr": Format(read_vindr),
    "padchest": Format(read_padchest),
    "kermany": Format(read_kermany),
}


def build_collection_table(
    source: Path,
    name: str,
    images: Path | None,
    *,
    mapping: Path | None = None,
    progress: Progress | None = None,
    on_images: Callable[[ImageCount], None] | None = None,
) -> pa.Table:
    """Read label files and join their images.

    Args:
        source: The label file, or the directory of the published label files.
        name: One of `FORMATS`, or "csv".
        images: Directory tree of DICOM, PNG or JPEG files; None: no images.
        mapping: For "csv": description of the columns; see `training.data.collections.own_csv`.
        progress: Called with (done, done), because the total is known only at the end.
        on_images: Called once, if there are `images`.

    Raises:
        ConfigError: The format or the mapping cannot be used, there is no study, or none of the named images exists.
        InputError: A label file is not as published; the message names file, line and column.

    Returns:
        One row per study, as in `training.data.openi.SCHEMA`, with images in the order PA, frontal, AP, unknown,
        lateral. The metadata name the collection.
    """
    if (mapping is None) == (name == CSV):
        raise ConfigError("--mapping needs --format csv, and --format csv needs --mapping.")
    if not source.exists():
        raise InputError(f"There is no {source}.")
    collection = name
    if mapping is None:
        chosen = FORMATS[name]
        studies, get_key = chosen.read(source), chosen.get_key
        image_paths = _find_images(images, get_key) if images else {}
    else:
        csv_mapping = load_csv_mapping(mapping)
        studies, collection = read_own_csv(source, csv_mapping), csv_mapping.name
        image_paths = _find_by_path(images) if images else {}
    count = ImageCount(0, 0)
    batches: list[pa.RecordBatch] = []
    example = ""
    for rows in _collect(_check_ids(studies, source)):
        named = [image.image_id for study in rows for image in study.images]
        example = example or next(iter(named), "")
        rows_of_table = [_make_row(study, image_paths) for study in rows]
        batches.append(pa.RecordBatch.from_pylist(rows_of_table, schema=SCHEMA))
        count = ImageCount(
            count.named + len(named), count.found + sum(len(row["image_ids"]) for row in rows_of_table)
        )
        if progress:
            done = sum(batch.num_rows for batch in batches)
            progress(done, done)
    if not batches:
        raise ConfigError(f"{source} names no study.")
    if images:
        require_images(
            count, images, len(image_paths), f"{example} is searched by its name, in any folder below"
        )
        if on_images:
            on_images(count)
    metadata = {COLLECTION_KEY: collection.encode()} if collection else {}
    return pa.Table.from_batches(batches, schema=SCHEMA).replace_schema_metadata(metadata)


def _collect(studies: Iterable[PublishedStudy]) -> Iterator[list[PublishedStudy]]:
    batch: list[PublishedStudy] = []
    for study in studies:
        batch.append(study)
        if len(batch) == _ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _check_ids(studies: Iterable[PublishedStudy], source: Path) -> Iterator[PublishedStudy]:
    """Yield the studies. Raise InputError if one is repeated, or if a patient is in two parts of the split."""
    study_ids: set[str] = set()
    parts: dict[str, str] = {}
    for study in studies:
        if study.study_id in study_ids:
            raise InputError(
                f"{source} names a study twice, again in row {len(study_ids) + 1:,} of the table."
            )
        study_ids.add(study.study_id)
        if study.split and parts.setdefault(study.patient_id, study.split) != study.split:
            raise InputError(f"{source} puts studies of one patient into different parts of its split.")
        yield study


def _find_images(directory: Path, get_key: Callable[[Path], str]) -> dict[str, Path]:
    """Map the key of every image file below a directory to its path, with DICOM preferred to PNG and JPEG."""
    paths: dict[str, Path] = {}
    for path in sorted(_list_images(directory), key=lambda path: (not _is_dicom(path), path)):
        paths.setdefault(get_key(path), path)
    return paths


def _find_by_path(directory: Path) -> dict[str, Path]:
    return {path.relative_to(directory.absolute()).as_posix(): path for path in _list_images(directory)}


def _list_images(directory: Path) -> Iterator[Path]:
    if not directory.is_dir():
        raise ConfigError(f"There is no image directory {directory}.")
    paths = directory.absolute().rglob("*")  # the table may be read from another directory
    return (path for path in paths if path.suffix.lower() in _SUFFIXES and path.is_file())


def _is_dicom(path: Path) -> bool:
    return path.suffix.lower() in {".dcm", ".dicom"}


def _make_row(study: PublishedStudy, image_paths: dict[str, Path]) -> dict[str, Any]:
    available = [(image, path) for image in study.images if (path := image_paths.get(image.key))]
    stated = {image.image_id: image.view for image, _ in available}
    ordered = order_images(
        [(image.image_id, path) for image, path in available],
        [_PROJECTIONS.get(image.view, "") for image, _ in available],
    )
    viewed = [
        (image_id, path, header, header.view if stated[image_id] == "UNKNOWN" else stated[image_id])
        for image_id, path, header in ordered
    ]
    viewed.sort(key=lambda entry: VIEW_RANKS[entry[3]])
    sizes = {image_id: header for image_id, _, header, _ in viewed}
    return {
        "study_id": study.study_id,
        "patient_id": study.patient_id,
        "image_ids": [image_id for image_id, *_ in viewed],
        "image_paths": [str(path) for _, path, *_ in viewed],
        "views": [view for *_, view in viewed],
        "headers": [asdict(header) for _, _, header, _ in viewed],
        **{name: " ".join(getattr(study.report, name).split()) for name in SECTIONS},
        "mesh_major": [],
        "mesh_automatic": [],
        "labels": sorted(study.categories.present),
        "labelled": study.categories.labelled,
        "unknown_labels": sorted(study.categories.unknown) if study.categories.labelled else [],
        "boxes": [asdict(_add_size(box, sizes.get(box.image_id))) for box in study.boxes],
        "split": study.split,
    }


def _add_size(box: Box, header: ImageHeader | None) -> Box:
    """Add the image size to a box, if the image is the published DICOM file itself."""
    if box.image_width or header is None or header.format != "DICOM" or not header.columns:
        return box
    return replace(box, image_width=header.columns, image_height=header.rows)
