"""The cases of a store, page after page."""

from dataclasses import dataclass, field
from typing import Final

from retrieval.cases import CaseRecord
from retrieval.requests import ListRequest, refuse_token
from retrieval.schema import FIRST_ROW
from retrieval.store import CaseStore

_READ_AT_ONCE: Final = 256  # rows
_MAX_READ: Final = 8192  # rows for a page; a filter may leave few of them
_MAX_PAGE_BYTES: Final = 4 * 2**20  # a longer page ends early
_LAST_ROW: Final = 2**63 - 1


@dataclass(frozen=True)
class Page:
    """Some cases, and the token of the next page; "": there is no next page."""

    records: list[CaseRecord] = field(repr=False)
    following: str = field(repr=False)


class PageFiller:
    """Collects the cases of a page until it is full."""

    def __init__(self, asked: ListRequest) -> None:
        """Start an empty page."""
        self.records: list[CaseRecord] = []
        self._asked, self._size = asked, 0

    def add(self, record: CaseRecord) -> bool:
        """Add a case; return whether the page is full."""
        self.records.append(record)
        self._size += 4 * (len(record.report) * self._asked.with_reports + len(record.image_ref)) + 1024
        return len(self.records) == self._asked.page_size or self._size > _MAX_PAGE_BYTES


def read_page(store: CaseStore, asked: ListRequest) -> Page:
    """Return the next cases that the filter leaves, in the order in which they were stored.

    A case that is replaced between two pages comes once more at the end. A case that stays as it is comes once.

    Raises:
        InputError: The page token is none of this store.
        ArtifactError: The store cannot be read.
    """
    page, last = PageFiller(asked), _parse_row(asked.page_token)
    for _ in range(0, _MAX_READ, _READ_AT_ONCE):
        rows = store.read_rows(last, _READ_AT_ONCE)
        for row, record in rows:
            last = row
            if record is None or not asked.filter.allows(record):
                continue
            if page.add(record):
                return Page(page.records, str(last))
        if len(rows) < _READ_AT_ONCE:
            return Page(page.records, "")
    return Page(page.records, str(last))


def _parse_row(token: str) -> int:
    """Return the number of the row after which a page begins."""
    if token and not (token.isascii() and token.isdigit() and len(token) < 20 and int(token) <= _LAST_ROW):
        raise refuse_token()
    return int(token) if token else FIRST_ROW
