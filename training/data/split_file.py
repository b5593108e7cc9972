"""Read split files, of a bundle or a publication, with the studies for training, validation and test.

    JSON        {"train": ["CXR1", ...], "validation": [...], "test": [...]}, as split.json of a bundle
    CSV, TSV    a column id, study_id, uid or filename and a column split; other columns are ignored

An id may be the study's id (CXR123), its number (123), its report (123.xml) or one of its images in any form that the
collection uses (CXR123_IM-0001-1001.png, 123_IM-0001-1001.dcm.png).
"""

import csv
import io
import json
import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from contract.bundle import PARTS
from contract.errors import ConfigError

_PART_OF: Final = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "validate", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_ID_COLUMNS: Final = ("study_id", "uid", "id", "filename", "image_id", "image")
_SPLIT_COLUMNS: Final = ("split", "part", "subset")
# CXR123, 123, 123.0 (a number from a spreadsheet), 123.xml, 123_IM-0001-1001.dcm.png
_ID: Final = re.compile(r"(?:CXR)?0*([0-9]+)(?:\.0|\.xml|_.*)?", re.IGNORECASE | re.ASCII)

logger = logging.getLogger(__name__)


def read_split_file(path: Path, study_ids: Collection[str] | None = None) -> dict[str, list[str]]:
    """Read a split.

    Args:
        path: JSON, CSV or TSV file; the content decides which.
        study_ids: The existing studies. None: accept every id as it is.

    Returns:
        "train", "validation" and "test" -> study ids as the studies table writes them, each once, in the order of
        the file. A part that the file does not name is empty.

    Raises:
        ConfigError: The file cannot be read, names a study in two parts, or names an unknown study.
    """
    text = _read_text(path)
    is_json = path.suffix.lower() == ".json" or text.lstrip()[:1] in {"{", "["}
    entries = _read_json(path, text) if is_json else _read_table(path, text)
    existing = None if study_ids is None else set(study_ids)
    parts_of: dict[str, dict[str, None]] = defaultdict(
        dict
    )  # study -> its parts, as a dict to keep the order
    unknown: dict[str, None] = {}
    for name, part in entries:
        study_id = get_study_id(name, existing)
        if existing is not None and study_id not in existing:
            unknown[name] = None
        parts_of[study_id][_find_part(path, part)] = None
    if unknown:
        raise ConfigError(
            f"{path} names {len(unknown):,} studies that the table does not hold: {_list_first(unknown)}."
        )
    if twice := [study_id for study_id, parts in parts_of.items() if len(parts) > 1]:
        raise ConfigError(f"{path} puts {len(twice):,} studies into two parts: {_list_first(twice)}.")
    split: dict[str, list[str]] = {part: [] for part in PARTS}
    for study_id, parts in parts_of.items():
        split[next(iter(parts))].append(study_id)
    return split


def find_split_rows(path: Path, study_ids: Sequence[str], patients: dict[str, str]) -> dict[str, list[int]]:
    """Read the split for a training run.

    Studies that the file does not mention, or that cannot be read, are left out. Their number is logged.

    Args:
        path: See `read_split_file`.
        study_ids: M ids of the readable studies.
        patients: Study id -> patient, of every study of the table.

    Returns:
        Part -> rows (0 to M - 1), ascending.

    Raises:
        ConfigError: See `read_split_file`; or a patient is in two parts, or a part is empty.
    """
    parts = read_split_file(path, patients)
    parts_of: dict[str, set[str]] = defaultdict(set)
    for part, ids in parts.items():
        for study_id in ids:
            parts_of[patients[study_id]].add(part)
    if shared := sum(len(members) > 1 for members in parts_of.values()):
        raise ConfigError(
            f"{path} puts studies of one patient into different parts, for {shared:,} of {len(parts_of):,} patients."
        )
    part_of = {study_id: part for part, ids in parts.items() for study_id in ids}
    rows: dict[str, list[int]] = {part: [] for part in PARTS}
    for row, study_id in enumerate(study_ids):
        if study_id in part_of:
            rows[part_of[study_id]].append(row)
    if empty := [part for part, members in rows.items() if not members]:
        raise ConfigError(f"{path} leaves no readable study for {', '.join(empty)}.")
    _report_left_out(path, len(part_of) - sum(map(len, rows.values())), len(patients) - len(part_of))
    return rows


def get_study_id(name: str, known: Collection[str] | None = None) -> str:
    """Return the study id for an id, a number or an image name; another name unchanged."""
    name = name.strip()
    if known is not None and name in known:
        return name
    match = _ID.fullmatch(re.split(r"[/\\]", name)[-1])
    return f"CXR{match[1]}" if match else name


def _report_left_out(path: Path, unreadable: int, unmentioned: int) -> None:
    if unmentioned:
        logger.warning(
            "Leaving out %d studies of the table that %s does not mention.", unmentioned, path.name
        )
    if unreadable:
        logger.warning(
            "Leaving out %d studies of %s without an image or a text to read.", unreadable, path.name
        )


def _find_part(path: Path, name: str) -> str:
    part = _PART_OF.get(name.strip().lower())
    if part is None:
        raise ConfigError(f"{path} names a part {name[:40]!r}; the parts are {', '.join(PARTS)}.")
    return part


def _list_first(names: Iterable[str]) -> str:
    listed = [name[:40] for name in names]
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"Cannot read the split file {path}: {error.strerror or error}.") from error
    except UnicodeError as error:
        raise ConfigError(f"{path} is not a split file: it is not UTF-8 text.") from error


def _read_json(path: Path, text: str) -> Iterator[tuple[str, str]]:
    try:
        parts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a split file: it is not valid JSON.") from error
    if not isinstance(parts, dict) or not all(isinstance(ids, list) for ids in parts.values()):
        raise ConfigError(f'{path} is not a split file: it is not like {{"train": ["CXR1"], ...}}.')
    for part, ids in parts.items():
        if not all(isinstance(name, str | int) for name in ids):
            raise ConfigError(
                f"{path} is not a split file: {part[:40]!r} holds a value that is not a list of ids."
            )
        yield from ((str(name), part) for name in ids)


def _read_table(path: Path, text: str) -> Iterator[tuple[str, str]]:
    first = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text), delimiter=max("\t;,", key=first.count))
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        id_column, split_column = (
            next((header.index(name) for name in names if name in header), None)
            for names in (_ID_COLUMNS, _SPLIT_COLUMNS)
        )
        if id_column is None or split_column is None:
            raise ConfigError(
                f"{path} is not a split file: its first line names no column "
                f"{' or '.join(_ID_COLUMNS[:4])} and no column split."
            )
        for row in reader:
            if any(cell.strip() for cell in row):
                if len(row) <= max(id_column, split_column):
                    raise ConfigError(f"{path} is not a split file: line {reader.line_num} is too short.")
                yield row[id_column], row[split_column]
    except csv.Error as error:
        raise ConfigError(f"{path} is not a split file: line {reader.line_num} cannot be read.") from error
