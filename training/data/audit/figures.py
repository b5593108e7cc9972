"""Compute the figures of an audit of a studies table.

The figures hold only counts and study ids, no report text, so an audit can be shared where the table cannot.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom.config import IGNORE
from pydicom.uid import UID

from contract.bundle import PARTS
from contract.errors import ConfigError
from contract.labels import LABELS
from contract.report.names import SECTIONS
from contract.report.text import clean_text
from training.data.duplicates import SIMILARITY, group_texts
from training.data.mesh import UNMAPPED, map_heading, split_heading
from training.data.openi import read_table, read_text
from training.data.split_file import read_split_file

Row = Mapping[str, Any]
Audit = dict[str, Any]
Groups = Mapping[str, Sequence[Sequence[int]]]  # "equal", "near" -> groups of rows

_UNKNOWN: Final = "training/data/mesh.csv has no rule for it."
_LISTED_GROUPS: Final = 8
_LISTED_SIZES: Final = 12
_LENGTH_STEP: Final = 10  # words per bar of the histogram
_LONGEST: Final = 150  # words; the last bar holds all longer texts
# A run of Xs replaces de-identified words.
_MARK: Final = re.compile(r"X{3,}")


def audit_table(table: Path, split_path: Path | None = None) -> Audit:
    """Measure a studies table.

    Args:
        table: Parquet file made by `training.data.openi.write_table`.
        split_path: Split file whose parts are compared; see `training.data.split_file`. Default: the table's own split.

    Returns:
        JSON-ready figures. Shares are from 0 to 1, and words are those of findings and impression.

    Raises:
        ConfigError: The table or split file does not exist, or the split names studies that the table does not have.
        ArtifactError: The table is damaged or not a studies table.
    """
    rows = read_table(table).to_pylist()
    if not rows:
        raise ConfigError(f"{table} holds no study.")
    ids = [row["study_id"] for row in rows]
    parts = read_split_file(split_path, ids) if split_path else _read_own_split(rows)
    labelled = [row for row in rows if row["labelled"]]
    texts = [read_text(row, "full") for row in rows]
    groups = {"equal": group_texts(texts, 1), "near": group_texts(texts)}
    return {
        "table": table.name,
        "split": split_path.name if split_path else "the table's own" if parts else None,
        "studies": len(rows),
        "patients": len({row["patient_id"] for row in rows}),
        "images": sum(len(row["image_paths"]) for row in rows),
        "labelled": len(labelled),
        "labels": _count_labels(labelled),
        "together": _count_together(labelled, lambda row, key: key in row["labels"]),
        "together_known": _count_together(labelled, lambda row, key: key not in row["unknown_labels"]),
        "labels_per_study": _count(len(row["labels"]) for row in labelled),
        "images_per_study": _count(len(row["image_paths"]) for row in rows),
        "headings": _audit_headings(rows),
        "headers": _audit_headers(rows),
        "sections": _audit_sections(rows, texts),
        "words": _audit_lengths(texts),
        "duplicates": _audit_duplicates(ids, groups),
        "parts": _audit_parts(rows, groups, parts) if parts else None,
    }


def _count(values: Iterable[Any]) -> dict[str, int]:
    """Count values, in their order."""
    return {str(value): count for value, count in sorted(Counter(values).items())}


def _rank(values: Iterable[str]) -> dict[str, int]:
    """Count values, the commonest first."""
    return dict(sorted(Counter(values).items(), key=lambda entry: (-entry[1], entry[0])))


def _read_own_split(rows: Sequence[Row]) -> dict[str, list[str]] | None:
    """Return part -> study ids of the table's own split; None without one."""
    parts = {part: [row["study_id"] for row in rows if row["split"] == part] for part in PARTS}
    return parts if any(parts.values()) else None


def _count_labels(labelled: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return for each label the number of studies with it and with a known value, and the share of the first."""
    counts = Counter(key for row in labelled for key in row["labels"])
    unknown = Counter(key for row in labelled for key in row["unknown_labels"])
    return {
        label.key: {
            "name": label.name,
            "studies": counts[label.key],
            "known": len(labelled) - unknown[label.key],
            "share": _divide(counts[label.key], len(labelled) - unknown[label.key]),
        }
        for label in LABELS
    }


def _divide(count: int, total: int) -> float:
    return count / total if total else 0.0


def _count_together(labelled: Sequence[Row], is_counted: Callable[[Row, str], bool]) -> list[list[int]]:
    """Return (K, K): the number of studies with the row's label that `is_counted` for the column's label."""
    shape = (len(labelled), len(LABELS))
    has = np.array([[label.key in row["labels"] for label in LABELS] for row in labelled], np.int64)
    counted = np.array([[is_counted(row, label.key) for label in LABELS] for row in labelled], np.int64)
    return (has.reshape(shape).T @ counted.reshape(shape)).tolist()


def _audit_headings(rows: Sequence[Row]) -> dict[str, Any]:
    """Count MeSH headings; list those without a label, with the reason."""
    studies: Counter[str] = Counter()
    for row in rows:
        studies.update(set(row["mesh_major"] or ()))
    unmapped = [
        {"heading": heading, "studies": count, "reason": reason}
        for heading, count in studies.most_common()
        if (reason := _explain_unmapped(heading))
    ]
    return {
        "distinct": len(studies),
        "without_heading": sum(not row["mesh_major"] for row in rows),
        "unmapped": unmapped,
        "without_label": sum(not row["labelled"] for row in rows),
    }


def _explain_unmapped(heading: str) -> str:
    """Return why a heading gives no label; "" if it gives one."""
    try:
        if map_heading(heading):
            return ""
    except ConfigError:
        return _UNKNOWN
    return UNMAPPED[split_heading(heading)[0]]


def _audit_headers(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Count the values in the headers of the images; "-" for a value that a file does not state."""
    views = [view for row in rows for view in row["views"] or ()]
    headers = [header for row in rows for header in row["headers"] or ()]
    sizes = _rank(f"{header['rows']} x {header['columns']}" for header in headers)
    rare = list(sizes)[_LISTED_SIZES:]
    if rare:
        sizes[f"{len(rare)} other sizes"] = sum(sizes.pop(size) for size in rare)
    fields = {
        "format": "format",
        "modality": "modality",
        "photometric": "photometric",
        "presentation LUT inverse": "inverse",
        "bits stored": "bits",
        "window": "window",
        "VOI LUT": "voi_lut",
        "frames": "frames",
        "laterality": "laterality",
        "body part": "body_part",
    }
    counted = {title: _rank(_show(header[name]) for header in headers) for title, name in fields.items()}
    syntaxes = _rank(UID(header["syntax"], validation_mode=IGNORE).name or "-" for header in headers)
    return {"view": _rank(views), **counted, "transfer syntax": syntaxes, "rows x columns": sizes}


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value or "-")


def _audit_sections(rows: Sequence[Row], texts: Sequence[str]) -> dict[str, Any]:
    """Count missing sections, and marks for de-identified words."""
    bodies = {name: [row[name] or "" for row in rows] for name in SECTIONS}
    whole = [" ".join(parts) for parts in zip(*bodies.values(), strict=True)]
    words = sum(len(text.split()) for text in whole)
    marks = sum(len(_MARK.findall(text)) for text in whole)
    return {
        "missing": {
            name: sum(not clean_text(text) for text in bodies_of_section)
            for name, bodies_of_section in bodies.items()
        },
        "without_findings_and_impression": sum(not text for text in texts),
        "marked": {
            name: sum(bool(_MARK.search(text)) for text in bodies_of_section)
            for name, bodies_of_section in bodies.items()
        },
        "marked_studies": sum(bool(_MARK.search(text)) for text in whole),
        "marked_words_share": marks / words if words else 0.0,
    }


def _audit_lengths(texts: Sequence[str]) -> dict[str, Any]:
    """Return quantiles and a histogram of the number of words of non-empty reports."""
    lengths = np.array([len(text.split()) for text in texts if text], dtype=np.int64)
    if not len(lengths):
        return {"reports": 0, "quantiles": {}, "histogram": {}}
    quantiles = {
        "shortest": 0,
        "5th percentile": 0.05,
        "median": 0.5,
        "95th percentile": 0.95,
        "longest": 1,
    }
    starts = np.minimum(lengths // _LENGTH_STEP * _LENGTH_STEP, _LONGEST)
    counts = Counter(starts.tolist())
    return {
        "reports": len(lengths),
        "quantiles": {name: int(np.quantile(lengths, share)) for name, share in quantiles.items()},
        "histogram": {start: counts[start] for start in range(0, max(counts) + 1, _LENGTH_STEP)},
    }


def _audit_duplicates(ids: Sequence[str], kinds: Groups) -> dict[str, Any]:
    """Describe the groups of equal and of nearly equal reports."""
    return {
        "similarity": SIMILARITY,
        **{
            kind: {
                "groups": len(groups),
                "studies": sum(map(len, groups)),
                "largest": len(groups[0]) if groups else 0,
                "sizes": {str(size): count for size, count in sorted(Counter(map(len, groups)).items())},
                "examples": [
                    {"studies": len(rows), "study_ids": [ids[row] for row in rows[:5]]}
                    for rows in groups[:_LISTED_GROUPS]
                ],
            }
            for kind, groups in kinds.items()
        },
    }


def _audit_parts(rows: Sequence[Row], groups: Groups, parts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Compare the parts of a split; count patients and equal reports in more than one part."""
    part_of = {study_id: part for part, ids in parts.items() for study_id in ids}
    sides: dict[str, set[str]] = defaultdict(set)
    members: dict[str, list[Row]] = {part: [] for part in parts}
    for row in rows:
        if part := part_of.get(row["study_id"]):
            sides[row["patient_id"]].add(part)
            members[part].append(row)

    divided = {
        f"{kind}_reports": sum(
            len({part_of.get(rows[row]["study_id"]) for row in group} - {None}) > 1
            for group in members_of_part
        )
        for kind, members_of_part in groups.items()
    }
    return {
        "studies": {part: len(members_of_part) for part, members_of_part in members.items()},
        "not_mentioned": len(rows) - len(part_of),
        "divided": {
            "patients": sum(len(members_of_part) > 1 for members_of_part in sides.values()),
            **divided,
        },
        "described": {part: _describe_part(members_of_part) for part, members_of_part in members.items()},
    }


def _describe_part(rows: Sequence[Row]) -> dict[str, Any]:
    labelled = [row for row in rows if row["labelled"]]
    labels = _count_labels(labelled)
    return {
        "studies": len(rows),
        "labelled": len(labelled),
        "images": sum(len(row["image_paths"]) for row in rows),
        "labels_per_study": _divide(sum(len(row["labels"]) for row in labelled), len(labelled)),
        "labels": {
            key: {name: label[name] for name in ("studies", "known", "share")}
            for key, label in labels.items()
        },
        "missing_labels": [key for key, label in labels.items() if label["known"] and not label["studies"]],
    }
