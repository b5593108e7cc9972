"""Open-i files -> one studies table: reports (XML), images (DICOM, PNG), labels by their MeSH headings.

Ids join as in the collection: `parentImage@id` CXR<n>_IM-... is the DICOM file <n>_IM-....dcm and the PNG
file CXR<n>_IM-....png or <n>_IM-....dcm.png; only report 1 repeats its number, CXR1_1_IM-0001-3001.
"""

import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from contract.errors import ArtifactError, ConfigError, InputError, ReportError
from contract.files import write_file
from contract.image.header import ImageHeader
from contract.image.view_clues import Projection
from contract.report.names import SECTIONS
from contract.report.text import Report, TextMode, collect_sections, select_text
from contract.report.xml import parse_xml
from contract.training_data import UNKNOWN, read_trained_on
from training.data.mesh import is_labelled, map_headings
from training.data.projections import read_projections

try:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from training.data.openi_views import order_images
    from training.data.studies_table import OPTIONAL, conform_table
except ModuleNotFoundError as error:
    raise ConfigError("Reading Open-i needs the 'train' extra: pip install 'cxr-serving[train]'.") from error

Progress = Callable[[int, int], None]

MAX_XML_BYTES = 4 * 2**20
IMAGE_SUFFIXES = {".dcm", ".png", ".jpg", ".jpeg"}

# <title> of a report -> name of the collection in a table's metadata and on a model card.
COLLECTIONS = {
    "Indiana University Chest X-ray Collection": "openi",
    "Phantom Chest X-ray Collection": "phantom",
}
COLLECTION_KEY = b"collection"

# One field per field of `ImageHeader`. The view has its own column, and the clues are not stored.
_HEADER_TYPES: Mapping[Any, pa.DataType] = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
}
HEADER = pa.struct(
    [
        (field.name, _HEADER_TYPES[field.type])
        for field in fields(ImageHeader)
        if field.name not in {"view", "clues"}
    ]
)
# A box that a reader drew: x and y of its upper left corner and its size, in pixels of an image of this width and
# height, which are null if the collection does not state them.
BOX = pa.struct(
    [
        ("image_id", pa.string()),
        ("label", pa.string()),  # as the collection writes it
        ("category", pa.string()),  # one of the 22; null if the label is none of them
        ("reader", pa.string()),  # null if the collection does not state the reader
        *((name, pa.float64()) for name in ("x", "y", "width", "height")),
        *((name, pa.int64()) for name in ("image_width", "image_height")),
    ]
)
SCHEMA = pa.schema(
    [
        ("study_id", pa.string()),
        ("patient_id", pa.string()),
        ("image_ids", pa.list_(pa.string())),
        ("image_paths", pa.list_(pa.string())),
        ("views", pa.list_(pa.string())),
        ("headers", pa.list_(HEADER)),  # like views, one for each of image_paths
        *((name, pa.string()) for name in SECTIONS),
        ("mesh_major", pa.list_(pa.string())),
        ("mesh_automatic", pa.list_(pa.string())),
        ("labels", pa.list_(pa.string())),
        ("labelled", pa.bool_()),
        (
            "unknown_labels",
            pa.list_(pa.string()),
        ),  # labels that the collection does not state, for a labelled study
        ("boxes", pa.list_(BOX)),
        ("split", pa.string()),  # the collection's own part: "train", "validation", "test"; null without one
    ]
)


@dataclass(frozen=True)
class Study:
    """One report with the ids of its images and its MeSH headings."""

    study_id: str
    patient_id: str
    report: Report
    mesh_major: tuple[str, ...]
    mesh_automatic: tuple[str, ...]
    image_ids: tuple[str, ...]
    labels: frozenset[str]
    labelled: bool
    collection: str = ""  # a value of `COLLECTIONS`, or "" if unknown


def read_reports(source: Path, progress: Progress | None = None) -> list[Study]:
    """Read all reports of a .tgz archive or a directory tree, ordered by number.

    Raises:
        ConfigError: The source has no reports.
        InputError: The directory or archive is missing, cannot be read or is damaged.
        ReportError: A file is not an Open-i report, or repeats one. The message names it.
    """
    files = list(_iterate_files(source))
    if not files:
        raise ConfigError(f"There are no XML reports in {source}.")
    studies: list[Study] = []
    study_ids: set[str] = set()
    for done, (name, data) in enumerate(files, start=1):
        studies.append(parse_study(data, name=name))
        if studies[-1].study_id in study_ids:
            raise ReportError(f"{name} repeats the report of another file.")
        study_ids.add(studies[-1].study_id)
        if progress and (done % 50 == 0 or done == len(files)):
            progress(done, len(files))
    studies.sort(
        key=lambda study: (int(study.patient_id) if study.patient_id.isdigit() else 0, study.study_id)
    )
    return studies


def parse_study(data: bytes, *, name: str) -> Study:
    """Parse one XML report. `name` is its name in error messages.

    Raises:
        ReportError: The data is not an Open-i report, or too large.
        ConfigError: A MeSH heading is unknown.
    """
    _check_file_size(name, len(data))
    try:
        root = parse_xml(data)
    except ReportError as error:
        raise ReportError(f"{name} is not a readable XML report.") from error
    uid = root.find("uId")
    study_id = uid.get("id", "") if uid is not None else ""
    if root.tag != "eCitation" or not re.fullmatch(r"CXR[0-9]{1,12}", study_id):
        raise ReportError(f"{name} is not an Open-i report.")
    major = _texts(root, "MeSH/major")
    return Study(
        study_id=study_id,
        patient_id=study_id.removeprefix("CXR"),  # the number of the report; DICOM's Patient ID is the same
        report=Report(*(" ".join(body.split()) for body in astuple(collect_sections(root)))),
        mesh_major=major,
        mesh_automatic=_texts(root, "MeSH/automatic"),
        image_ids=tuple(image.get("id", "") for image in root.iter("parentImage")),
        labels=map_headings(major),
        labelled=is_labelled(major),
        collection=COLLECTIONS.get("".join(_texts(root, "title")), ""),
    )


def _texts(root: Element, path: str) -> tuple[str, ...]:
    return tuple(text for element in root.iterfind(path) if (text := (element.text or "").strip()))


def _iterate_files(source: Path) -> Iterator[tuple[str, bytes]]:
    try:
        yield from _iterate_directory(source) if source.is_dir() else _iterate_archive(source)
    except InputError:
        raise
    except Exception as error:  # tarfile and the decompressors raise many error types for damaged archives
        raise InputError(f"{source} cannot be read as a directory or archive of reports.") from error


def _iterate_directory(source: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(source.rglob("*.xml")):
        if not path.is_dir():
            _check_file_size(path.name, path.stat().st_size)
            yield path.name, path.read_bytes()


def _iterate_archive(source: Path) -> Iterator[tuple[str, bytes]]:
    """Read the regular XML files of an archive. Nothing is unpacked, so a member's path is harmless."""
    with tarfile.open(source, "r:*") as archive:
        for member in archive:
            if archive.offset <= member.offset:  # a negative size; tarfile would loop for ever
                raise tarfile.ReadError("A file of the archive ends before it begins.")
            if member.isfile() and member.name.endswith(".xml"):
                _check_file_size(member.name, member.size)
                file = archive.extractfile(member)
                if file is not None:
                    yield member.name, file.read()
        _check_end(archive)


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise unless only zeros follow, because tarfile takes a damaged header for the end of the archive.

    Reading to the end also checks the checksum of a compressed archive.
    """
    file = archive.fileobj
    if file is not None:
        file.seek(archive.offset)
        while block := file.read(2**20):
            if any(block):
                raise tarfile.ReadError("The archive has data after its last file.")


def _check_file_size(name: str, size: int) -> None:
    if size > MAX_XML_BYTES:
        raise ReportError(f"{name} is larger than {MAX_XML_BYTES // 2**20} MB, so it is not a report.")


def get_image_key(image_id: str) -> str:
    """Return the common key of the names of one image: `CXR12_IM-0034-1001` and `12_IM-0034-1001.dcm.png` agree."""
    stem = re.sub(r"(\.(dcm|png|jpe?g))+$", "", image_id, flags=re.IGNORECASE)
    key = re.sub(r"^CXR", "", stem)
    return re.sub(r"^(\d+)_\1_IM", r"\1_IM", key)


def find_images(directory: Path) -> dict[str, Path]:
    """Map the key of every image file below a directory to its path, with DICOM preferred to PNG and JPEG."""
    if not directory.is_dir():
        raise ConfigError(f"There is no image directory {directory}.")
    paths = (
        path for path in directory.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    ordered = sorted(paths, key=lambda path: (path.suffix.lower() != ".dcm", path))
    found: dict[str, Path] = {}
    for path in ordered:
        found.setdefault(get_image_key(path.name), path)
    return found


@dataclass(frozen=True)
class ImageCount:
    """The number of images that the reports name, and of those that were found."""

    named: int
    found: int
    listed: int | None = None  # found images that are in the list of projections; None without a list


def build_table(
    reports: Path,
    images: Path | None,
    progress: Progress | None = None,
    on_images: Callable[[ImageCount], None] | None = None,
    projections: Path | None = None,
) -> pa.Table:
    """Read reports and join their images.

    Args:
        reports: A .tgz archive or a directory tree with XML files.
        images: A directory tree of DICOM, PNG or JPEG files; None: no images. The table holds absolute paths.
        progress: Called with (done, total).
        on_images: Called once, if there are `images`.
        projections: A published list of projections (`training.data.projections`), which overrides headers.

    Raises:
        ConfigError: None of the images that the reports name is found, or none of the found ones is in the list; see
            also `read_reports` and `read_projections`.

    Returns:
        One row per study, columns as in `SCHEMA`, with the likeliest frontal image first (`contract.image.view`). The
        metadata name the collection if all reports are from the same known one (`read_collection`).
    """
    if projections and not images:
        raise ConfigError("A list of projections needs images. Give their directory with --images.")
    listed = _read_listed(projections)
    studies = read_reports(reports, progress)
    image_paths = find_images(images.absolute()) if images else {}  # the table is read from elsewhere, too
    rows = []
    for done, study in enumerate(studies, start=1):
        rows.append(_make_row(study, image_paths, listed))
        if progress and image_paths and (done % 50 == 0 or done == len(studies)):
            progress(done, len(studies))
    if images:
        count = _count_images(studies, rows, listed if projections else None)
        example = next((study.image_ids[0] for study in studies if study.image_ids), "")
        file_name = f"{get_image_key(example)}.dcm, {example}.png or .jpg"
        expected_name = f"{example} must be named {file_name}, in any folder below"
        require_images(count, images, len(image_paths), expected_name)
        if projections and not count.listed:
            raise ConfigError(f"{projections} names none of the {count.found:,} images under {images}.")
        if on_images:
            on_images(count)
    collections = {study.collection for study in studies}
    metadata = {COLLECTION_KEY: collections.pop().encode()} if len(collections) == 1 else {}
    return pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))


def _read_listed(projections: Path | None) -> dict[str, Projection]:
    """Return image key -> projection for a list."""
    if projections is None:
        return {}
    return {get_image_key(Path(name).name): shown for name, shown in read_projections(projections).items()}


def _count_images(
    studies: Sequence[Study], rows: Sequence[dict[str, Any]], listed: Mapping[str, Projection] | None
) -> ImageCount:
    image_keys = [get_image_key(image_id) for row in rows for image_id in row["image_ids"]]
    listed_count = None if listed is None else sum(key in listed for key in image_keys)
    return ImageCount(sum(len(study.image_ids) for study in studies), len(image_keys), listed_count)


def require_images(count: ImageCount, directory: Path, files: int, sought: str) -> None:
    """Raise ConfigError if images are named but none was found. `sought` describes the expected name of one."""
    if count.found or not count.named:
        return
    raise ConfigError(
        f"None of {count.named:,} images that the reports name was found under {directory} ({files:,} image files): "
        f"{sought}."
    )


def read_collection(path: Path) -> str | None:
    """Return the name of the collection of a studies table; None if the table does not state one."""
    named = read_trained_on(
        (pq.read_schema(path).metadata or {}).get(COLLECTION_KEY, b"").decode(errors="replace")
    )
    return None if named == UNKNOWN else named


def _make_row(study: Study, found: dict[str, Path], listed: Mapping[str, Projection]) -> dict[str, Any]:
    images = [
        (image_id, found[key]) for image_id in study.image_ids if (key := get_image_key(image_id)) in found
    ]
    projections = [listed.get(get_image_key(image_id), "") for image_id, _ in images]
    viewed = order_images(images, projections)
    return {
        "study_id": study.study_id,
        "patient_id": study.patient_id,
        "image_ids": [image_id for image_id, *_ in viewed],
        "image_paths": [str(path) for _, path, _ in viewed],
        "views": [header.view for *_, header in viewed],
        "headers": [{field.name: getattr(header, field.name) for field in HEADER} for *_, header in viewed],
        **{name: getattr(study.report, name) for name in SECTIONS},
        "mesh_major": list(study.mesh_major),
        "mesh_automatic": list(study.mesh_automatic),
        "labels": sorted(study.labels),
        "labelled": study.labelled,
        "unknown_labels": [],
        "boxes": [],
        "split": None,
    }


def read_text(row: Mapping[str, Any], mode: TextMode) -> str:
    """Return the part of a row's report that text mode `mode` reads; "" if it has no words."""
    try:
        return select_text(Report(**{name: row[name] or "" for name in SECTIONS}), mode)
    except ReportError:
        return ""


def write_table(table: pa.Table, path: Path) -> None:
    """Write a studies table as Parquet, completely or not at all.

    Raises:
        ConfigError: The path is a directory.
        ArtifactError: The disk is full, or the file cannot be written.
    """
    content = pa.BufferOutputStream()
    pq.write_table(table, content, write_page_checksum=True)
    write_file(path, memoryview(content.getvalue()))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a studies table, also one that pandas, polars or DuckDB wrote; see `training.data.studies_table`.

    Raises:
        ConfigError: The file does not exist.
        ArtifactError: The file is damaged or not a studies table.
    """
    if not path.is_file():
        raise ConfigError(f"There is no studies table {path}. Make one with `cxr data table`.")
    columns_schema = pa.schema([SCHEMA.field(name) for name in columns or SCHEMA.names])
    try:
        names = pq.read_schema(path).names
        present = [name for name in columns_schema.names if name in names or name not in OPTIONAL]
        wrong = [name for name in present if names.count(name) != 1]
        table = None
        if not wrong:
            table = pq.read_table(path, columns=present, page_checksum_verification=True)
            table.validate(full=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} is not a Parquet file, or is damaged.") from error
    if table is None:
        raise _refuse_table(path, f"{', '.join(wrong)} missing or of another type")
    try:
        return conform_table(table, columns_schema)
    except ValueError as error:
        raise _refuse_table(path, str(error)) from error


def _refuse_table(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is not a studies table: {reason}. If an older version made it, make it again with `cxr data table`."
    )
