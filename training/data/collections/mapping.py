"""Map a collection's own labels to the 22 categories: present, absent or unknown.

A table (`mappings/*.csv`) has a row for each label and each category that the label concerns:

    if_present   "present": the label makes the category present
                 "unknown": the category may be present, for example after the label "nodule or mass"
    if_absent    "absent": the category is absent if this label, and each other label with this mark, is stated absent
                 "unknown": the absence of the label decides nothing, because the category covers more

A label without a category is not used, and the row gives the reason. A category that no row decides is unknown, never
negative.
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
Stated = Mapping[
    str, bool | None
]  # label -> present, absent, or (None) uncertain; other labels are not stated


@dataclass(frozen=True)
class MappingRow:
    """One row of a table. `category` is "" for a label that is not used."""

    label: str
    category: str
    if_present: str
    if_absent: str
    reason: str


@dataclass(frozen=True)
class Categories:
    """The categories of a study: the present and the unknown keys. All other keys are absent."""

    present: frozenset[str]
    unknown: frozenset[str]

    @property
    def labelled(self) -> bool:
        """Whether at least one category is known."""
        return len(self.unknown) < len(LABEL_KEYS)


NOTHING_KNOWN: Final = Categories(frozenset(), frozenset(LABEL_KEYS))


class LabelMap:
    """The table of one collection."""

    def __init__(self, rows: Iterable[MappingRow], source: str) -> None:
        """Check a table.

        Raises:
            ConfigError: A row cannot be used. The message names it.
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
        """Return the categories of a study, with "normal" only if no finding is present.

        A present label that maps to "normal" makes every unstated category absent, if its rows allow that.
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
        decided_categories = {category for category, value in decided.items() if value is not None}
        return Categories(present, frozenset(LABEL_KEYS) - decided_categories)

    def derive_listed(self, listed: Iterable[str]) -> Categories:
        """Return the categories of a study with a list of labels. Labels that are not listed count as stated absent."""
        names = set(listed)
        return self.derive({label: label in names for label in self.labels})

    def find_category(self, label: str) -> str | None:
        """Return the category that a label makes present; None if there is none or more than one."""
        categories = [row.category for row in self.rows if row.label == label and row.if_present == "present"]
        return categories[0] if len(categories) == 1 else None

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
    """Return whether a label is uncertain, or is present without making its category present."""
    return any(row.label in stated and stated[row.label] is not False for row in rows)


def _check_row(row: MappingRow, source: str) -> None:
    where = f"{source}, label {row.label!r}"
    if not row.label:
        raise ConfigError(f"{source} holds a row without a label.")
    if not row.category:
        if not row.reason or row.if_present or row.if_absent:
            raise ConfigError(
                f"{where}: a label without a category needs a reason, and its other cells must be empty."
            )
        return
    if row.category not in LABEL_INDEX:
        raise ConfigError(f"{where}: {row.category!r} is none of the categories {', '.join(LABEL_KEYS)}.")
    if row.if_present not in {"present", "unknown"} or row.if_absent not in {"absent", "unknown"}:
        raise ConfigError(
            f"{where}: if_present must be present or unknown, and if_absent absent or unknown; they are "
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
