"""Map the MeSH major headings of Open-i reports to the 22 categories.

A heading is a head with qualifiers, such as `Calcinosis/lung/hilum/right`. The table `mesh.csv` gives the categories of
each head. Some qualifiers override them: `Costophrenic Angle/blunted` is pleural disease, while an obscured angle is
only an unspecific finding. Each row gives a reason, and a doubt if the published grouping is questionable. The
categories come from the radiologists' indexing, never from the text of the report.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from contract.errors import ConfigError
from contract.labels import LABEL_INDEX, LABEL_KEYS

Keys = tuple[str, ...]
COLUMNS: Final = ("head", "qualifier", "categories", "reason", "doubt")


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        head: Head of the heading, in lower case.
        qualifier: Qualifier that overrides the head; "" for the head itself.
        categories: Category keys, in the order of the logits; none if the head says nothing about the patient.
        reason: Reason for the categories, one sentence.
        doubt: How the categories may mislead, one sentence; "" if they do not.
    """

    head: str
    qualifier: str
    categories: Keys
    reason: str
    doubt: str = ""


@dataclass(frozen=True)
class Rule:
    """Categories of a head. `default` applies unless `by_qualifier` has some of the heading's qualifiers."""

    default: Keys
    by_qualifier: dict[str, Keys] = field(default_factory=dict)


def read_rows(path: Path) -> tuple[Row, ...]:
    """Read a label table.

    Raises:
        ConfigError: The file is missing or not such a table; or a row names an unknown category, has no reason or is
            repeated. The message names the line.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"The label table {path} cannot be read.") from error
    if not lines or tuple(lines[0]) != COLUMNS:
        raise ConfigError(f"The label table {path} does not begin with {','.join(COLUMNS)}.")
    rows: dict[tuple[str, str], Row] = {}
    for number, line in enumerate(lines[1:], start=2):
        row = _read_row(line, f"Line {number} of the label table {path}")
        if (row.head, row.qualifier) in rows:
            raise ConfigError(
                f"Line {number} of the label table {path} repeats {row.head!r}, {row.qualifier!r}."
            )
        rows[row.head, row.qualifier] = row
    mapped = {head for (head, name), row in rows.items() if row.categories and not name}
    if lacking := sorted({head for head, name in rows if name} - mapped):
        raise ConfigError(
            f"The label table {path} has qualifiers of {lacking[0]!r}, and no categories without one."
        )
    return tuple(rows.values())


def _read_row(line: Sequence[str], where: str) -> Row:
    if len(line) != len(COLUMNS):
        raise ConfigError(f"{where} has {len(line)} columns and not {len(COLUMNS)}.")
    head, qualifier, categories, reason, doubt = line
    keys = categories.split()
    if unknown := [key for key in keys if key not in LABEL_INDEX]:
        raise ConfigError(f"{where} names the unknown category {unknown[0]!r}.")
    if not head or not reason:
        raise ConfigError(f"{where} lacks its {'reason' if head else 'head'}.")
    return Row(head, qualifier, tuple(sorted(keys, key=LABEL_INDEX.__getitem__)), reason, doubt)


def make_rules(rows: Iterable[Row]) -> dict[str, Rule]:
    """Return head -> rule, for heads with categories."""
    rules = {row.head: Rule(row.categories) for row in rows if not row.qualifier and row.categories}
    for row in rows:
        if row.qualifier:
            rules[row.head].by_qualifier[row.qualifier] = row.categories
    return rules


ROWS: Final = read_rows(Path(__file__).with_suffix(".csv"))
RULES: Final = make_rules(ROWS)
# Head -> reason for having no category.
UNMAPPED: Final[dict[str, str]] = {
    row.head: row.reason for row in ROWS if not row.categories and not row.qualifier
}


def list_doubts() -> dict[str, dict[str, list[str]]]:
    """Return category key -> doubt -> headings, in the order of the logits."""
    doubts: dict[str, dict[str, list[str]]] = {}
    for key in LABEL_KEYS:
        for row in ROWS:
            if row.doubt and key in row.categories:
                heading = "/".join(part for part in (row.head, row.qualifier) if part)
                doubts.setdefault(key, {}).setdefault(row.doubt, []).append(heading)
    return doubts


def split_heading(heading: str) -> tuple[str, tuple[str, ...]]:
    """Split a heading into its head and qualifiers, in lower case and with single blanks."""
    head, *qualifiers = (" ".join(part.split()).lower() for part in heading.split("/"))
    return head, tuple(qualifiers)


def map_heading(heading: str) -> frozenset[str]:
    """Return the category keys of one heading; empty for a head in `UNMAPPED`.

    Raises:
        ConfigError: The head is not in the table. The message names it.
    """
    head, qualifiers = split_heading(heading)
    if head in UNMAPPED:
        return frozenset()
    rule = RULES.get(head)
    if rule is None:
        raise ConfigError(f"The MeSH heading {heading!r} is unknown. Add its head to training/data/mesh.csv.")
    decided = [rule.by_qualifier[name] for name in qualifiers if name in rule.by_qualifier]
    return frozenset(key for keys in decided or [rule.default] for key in keys)


def map_headings(major: Sequence[str]) -> frozenset[str]:
    """Return the category keys of all major headings of a report, with "normal" only if there is no other."""
    keys = frozenset(key for heading in major for key in map_heading(heading))
    return keys - {"normal"} if len(keys) > 1 else keys


def is_labelled(major: Sequence[str]) -> bool:
    """Whether the headings label the study. "No Indexing", or no heading, does not."""
    return any(split_heading(heading)[0] not in UNMAPPED for heading in major)
