"""What a collection says of a study, in its own labels -> the 22 categories: there, not there, or unknown.

A table (`mappings/*.csv`) holds a row for each label and each category that it speaks of:

    if_present   "present": the label makes the category there; "unknown": it may be there (a nodule or a mass)
    if_absent    "absent": the category is not there where this label, and each other one marked so, is stated not to be
                 there; "unknown": its absence says nothing, because the category holds more

A label without a category is left out, and the reason says why. What no row decides is unknown, never negative.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final

from contract.errors import ConfigError
from contract.labels import LABEL_INDEX, LABEL_KEYS

COLUMNS: Final = ("label", "category", "if_present", "if_absent", "reason")
NORMAL: Final = "normal"
Stated = Mapping[str, bool | None]  # label -> there, not there, or (None) uncertain; others are not stated


@dataclass(frozen=True)
class MappingRow:
    """One row of a table; `category` is "" for a label that is left out."""

    label: str
    category: str
    if_present: str
    if_absent: str
    reason: str


@dataclass(frozen=True)
class Categories:
    """What is known of a study: keys that are there, and keys of which nothing is known; the rest is not there."""

    present: frozenset[str]
    unknown: frozenset[str]

    @property
    def labelled(self) -> bool:
        """Whether anything is known."""
        return len(self.unknown) < len(LABEL_KEYS)


NOTHING_KNOWN: Final = Categories(frozenset(), frozenset(LABEL_KEYS))


class LabelMap:
    """The table of one collection."""

    def __init__(self, rows: Iterable[MappingRow], source: str) -> None:
        """Check a table.

        Raises:
            ConfigError: A row is not usable; the message names it.
        """
        self.rows = tuple(rows)
        for row in self.rows:
            _check_row(row, source)
        pairs = [(row.label, row.category) for row in self.rows]
        if twice := next((pair for pair in pairs if pairs.count(pair) > 1), None):
            raise ConfigError(f"{source} maps {twice[0]!r} to {twice[1]!r} twice.")
        self.labels = tuple(dict.fromkeys(row.label for row in self.rows))
        self._of_category: dict[str, list[MappingRow]] = {}
        for row in self.rows:
            if row.category:
                self._of_category.setdefault(row.category, []).append(row)

    def derive(self, stated: Stated) -> Categories:
        """Return the categories of a study; "normal" only where no finding is there.

        A label that maps to "normal" and is there denies every category that can be denied and is not stated.
        """
        decided = {category: self._decide(category, stated) for category in self._of_category}
        findings = {category for category, value in decided.items() if value and category != NORMAL}
        if any(stated.get(row.label) and row.category == NORMAL for row in self.rows):
            for category in self._of_category:
                if decided[category] is None and self._can_deny(category, stated):
                    decided[category] = False
        if findings and NORMAL in self._of_category:
            decided[NORMAL] = False
        present = frozenset(category for category, value in decided.items() if value)
        known = {category for category, value in decided.items() if value is not None}
        return Categories(present, frozenset(LABEL_KEYS) - known)

    def derive_listed(self, listed: Iterable[str]) -> Categories:
        """Return the categories of a study whose labels are a list: what is not listed is stated not to be there."""
        names = set(listed)
        return self.derive({label: label in names for label in self.labels})

    def find_category(self, label: str) -> str | None:
        """Return the category that a label alone makes present, None where there is none or not just one."""
        found = [row.category for row in self.rows if row.label == label and row.if_present == "present"]
        return found[0] if len(found) == 1 else None

    def _decide(self, category: str, stated: Stated) -> bool | None:
        rows = self._of_category[category]
        if any(stated.get(row.label) and row.if_present == "present" for row in rows):
            return True
        deciding = [row for row in rows if row.if_absent == "absent"]
        if (
            deciding
            and all(stated.get(row.label) is False for row in deciding)
            and not _is_open(rows, stated)
        ):
            return False
        return None

    def _can_deny(self, category: str, stated: Stated) -> bool:
        rows = self._of_category[category]
        return any(row.if_absent == "absent" for row in rows) and not _is_open(rows, stated)


def _is_open(rows: Iterable[MappingRow], stated: Stated) -> bool:
    """Return whether a label is uncertain, or there without saying that the category is."""
    return any(row.label in stated and stated[row.label] is not False for row in rows)


def _check_row(row: MappingRow, source: str) -> None:
    where = f"{source}, label {row.label!r}"
    if not row.label:
        raise ConfigError(f"{source} holds a row without a label.")
    if not row.category:
        if not row.reason or row.if_present or row.if_absent:
            raise ConfigError(f"{where}: a label without a category needs a reason, and nothing else.")
        return
    if row.category not in LABEL_INDEX:
        raise ConfigError(f"{where}: {row.category!r} is none of the categories {', '.join(LABEL_KEYS)}.")
    if row.if_present not in {"present", "unknown"} or row.if_absent not in {"absent", "unknown"}:
        raise ConfigError(
            f"{where}: if_present is present or unknown, if_absent is absent or unknown; they are "
            f"{row.if_present!r} and {row.if_absent!r}."
        )
    if "unknown" in {row.if_present, row.if_absent} and not row.reason:
        raise ConfigError(f"{where}: a doubtful row needs a reason.")


def load_label_map(name: str) -> LabelMap:
    """Return the table of a collection, by the name of its format."""
    text = (resources.files("training.data.collections") / "mappings" / f"{name}.csv").read_text("utf-8")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ConfigError(f"mappings/{name}.csv has other columns than {', '.join(COLUMNS)}.")
    return LabelMap((MappingRow(**row) for row in reader), f"mappings/{name}.csv")
