"""The cases of a store, page after page."""

from dataclasses import dataclass, field
from typing import Final

from retrieval.cases import CaseRecord
from retrieval.requests import ListRequest
from retrieval.store import CaseStore

_READ_AT_ONCE: Final = 256  # rows
_MAX_READ: Final = 8192  # rows for a page; a filter may leave few of them
_MAX_PAGE_BYTES: Final = 4 * 2**20  # a longer page ends early


@dataclass(frozen=True)
class Page:
    """Some cases, and the number of the row after which the next page begins; None: there is no next page."""

    records: list[CaseRecord] = field(repr=False)
    following: int | None


def read_page(store: CaseStore, asked: ListRequest) -> Page:
    """Return the next cases that the filter leaves, in the order in which they were stored.

    A case that is replaced between two pages comes once more at the end. A case that stays as it is comes once.

    Raises:
        ArtifactError: The store cannot be read.
    """
    records: list[CaseRecord] = []
    last, size = asked.after, 0
    for _ in range(0, _MAX_READ, _READ_AT_ONCE):
        rows = store.read_rows(last, _READ_AT_ONCE)
        for row, record in rows:
            last = row
            if record is None or not asked.filter.allows(record):
                continue
            records.append(record)
            size += 4 * (len(record.report) * asked.with_reports + len(record.image_ref)) + 1024
            if len(records) == asked.page_size or size > _MAX_PAGE_BYTES:
                return Page(records, last)
        if len(rows) < _READ_AT_ONCE:
            return Page(records, None)
    return Page(records, last)
