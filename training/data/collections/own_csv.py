"""Read a user's own table: a CSV file with one image per row, and a TOML file that describes its columns.

name = "my hospital"            name of the collection on a model card

[columns]
image = "file"                  path below the directory of the images
patient = "patient"             studies of one patient stay in one part of a split
study = "accession"             optional: the study of an image; without it each image is a study
view = "projection"             optional: PA, AP or LATERAL
split = "split"                 optional: train, validation or test
findings = "findings"           optional, like indication, comparison and impression: sections of the report
labels = "findings_list"        optional: a column with a list of labels; without it each label is a column
separator = "|"                 separator of that list

[values]                        values in label columns; these are the defaults
present = ["1", "1.0"]
absent = ["0", "0.0"]
uncertain = ["-1", "-1.0"]
unknown = [""]

[[labels]]                      like the rows of the tables in training/data/collections/mappings
label = "Cardiomegaly"
category = "cardiac"            if it is left out, the label is not used, and reason says why
if_present = "present"          or "unknown"
if_absent = "absent"            or "unknown"
reason = ""
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from contract.errors import ConfigError
from contract.report.names import SECTIONS
from contract.report.text import Report
from training.data.collections.csv_rows import CsvRow, read_csv_rows
from training.data.collections.mapping import Categories, LabelMap, MappingRow
from training.data.collections.study import PARTS, PublishedImage, PublishedStudy, read_view

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

_REQUIRED: Final = ("image", "patient")
_OPTIONAL: Final = ("study", "view", "split", "labels", *SECTIONS)
_VALUES: Final = {
    "present": ["1", "1.0"],
    "absent": ["0", "0.0"],
    "uncertain": ["-1", "-1.0"],
    "unknown": [""],
}
_MEANINGS: Final = {"present": True, "absent": False, "uncertain": None}


@dataclass(frozen=True)
class CsvMapping:
    """The TOML file: `columns` maps names to CSV columns, `values` maps cells to their meaning."""

    name: str
    columns: Mapping[str, str]
    separator: str
    values: Mapping[str, str]
    labels: LabelMap


def read_own_csv(source: Path, mapping: CsvMapping) -> Iterator[PublishedStudy]:
    """Yield the studies in the order of their first images.

    Raises:
        InputError: The file lacks a column, or a row does not fit the mapping. The message names line and column.
    """
    columns = [*mapping.columns.values()]
    if "labels" not in mapping.columns:
        columns += [label for label in mapping.labels.labels if label not in columns]
    studies: dict[str, PublishedStudy] = {}
    for row in read_csv_rows(source, columns):
        study = _read_row(row, mapping)
        earlier = studies.get(study.study_id)
        studies[study.study_id] = study if earlier is None else _join(row, mapping, earlier, study)
    yield from studies.values()


def _read_row(row: CsvRow, mapping: CsvMapping) -> PublishedStudy:
    columns = mapping.columns
    path = PurePosixPath(row.require(columns["image"]).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        row.refuse(columns["image"], "is not a path below the directory of the images")
    image = PublishedImage(
        str(path), str(path), read_view(row[columns["view"]]) if "view" in columns else "UNKNOWN"
    )
    return PublishedStudy(
        row.require(columns["study"]) if "study" in columns else str(path.with_suffix("")),
        row.require(columns["patient"]),
        (image,),
        _read_categories(row, mapping),
        split=_read_part(row, columns["split"]) if "split" in columns else None,
        report=Report(**{name: row[columns[name]] for name in SECTIONS if name in columns}),
    )


def _read_part(row: CsvRow, column: str) -> str | None:
    if not row[column]:
        return None
    return PARTS.get(row[column].lower()) or row.refuse(
        column, f"is {row.show(column)} instead of train, validation or test"
    )


def _read_categories(row: CsvRow, mapping: CsvMapping) -> Categories:
    labels = mapping.labels
    if column := mapping.columns.get("labels"):
        names = [name.strip() for name in row[column].split(mapping.separator) if name.strip()]
        if unknown := [name for name in names if name not in labels.labels]:
            row.refuse(column, f"names {unknown[0][:40]!r}, which the mapping does not")
        return labels.derive_listed(names) if names else labels.derive({})
    stated: dict[str, bool | None] = {}
    for label in labels.labels:
        meaning = mapping.values.get(row[label])
        if meaning is None:
            row.refuse(label, f"holds {row.show(label)}, which is none of the mapping's values")
        if meaning in _MEANINGS:
            stated[label] = _MEANINGS[meaning]
    return labels.derive(stated)


def _join(row: CsvRow, mapping: CsvMapping, earlier: PublishedStudy, study: PublishedStudy) -> PublishedStudy:
    """Add an image to its study. Every row of the study must have the same study values."""
    column = mapping.columns.get("study", mapping.columns["image"])
    for name in ("patient_id", "categories", "split", "report"):
        if getattr(earlier, name) != getattr(study, name):
            row.refuse(column, f"names a study whose other rows have another {name.removesuffix('_id')}")
    if study.images[0].key in {image.key for image in earlier.images}:
        row.refuse(mapping.columns["image"], "names an image that an earlier row has")
    return replace(earlier, images=earlier.images + study.images)


def load_csv_mapping(path: Path) -> CsvMapping:
    """Read the TOML file.

    Raises:
        ConfigError: The file is missing, not TOML, or has an unknown or wrong entry. The message names it.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the mapping {path}: {error.strerror or error}.") from error
    except (UnicodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"The mapping {path} is not valid TOML: {error}") from error
    _refuse_unknown(path, "mapping", settings, ("name", "columns", "values", "labels"))
    columns = dict(_take(path, settings, "columns", dict))
    separator = columns.pop("separator", "|")
    _refuse_unknown(path, "columns", columns, (*_REQUIRED, *_OPTIONAL))
    if missing := [name for name in _REQUIRED if name not in columns]:
        raise ConfigError(f"{path}: columns.{missing[0]} is missing.")
    if not all(isinstance(name, str) and name for name in (*columns.values(), separator)):
        raise ConfigError(f"{path}: the values under columns must be text.")
    values = {**_VALUES, **settings.get("values", {})}
    _refuse_unknown(path, "values", values, tuple(_VALUES))
    meanings = {str(cell): meaning for meaning, cells in values.items() for cell in cells}
    rows = (_read_label(path, entry) for entry in _take(path, settings, "labels", list))
    return CsvMapping(str(settings.get("name", "")), columns, separator, meanings, LabelMap(rows, str(path)))


def _read_label(path: Path, entry: Any) -> MappingRow:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise ConfigError(f"{path}: each entry of [[labels]] must be a table of text.")
    _refuse_unknown(path, "labels", entry, ("label", "category", "if_present", "if_absent", "reason"))
    defaults = {"if_present": "present", "if_absent": "absent"} if entry.get("category") else {}
    return MappingRow(
        **{"label": "", "category": "", "if_present": "", "if_absent": "", "reason": "", **defaults, **entry}
    )


def _take(path: Path, settings: Mapping[str, Any], name: str, kind: type) -> Any:
    value = settings.get(name)
    if not isinstance(value, kind):
        raise ConfigError(f"{path}: {'[[labels]]' if kind is list else f'[{name}]'} is missing.")
    return value


def _refuse_unknown(path: Path, where: str, table: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    if unknown := [name for name in table if name not in allowed]:
        raise ConfigError(f"{path}: {where} has no {unknown[0]!r}; it has {', '.join(allowed)}.")
