"""Good clients of the sidecar: they write, delete and search cases, and a ledger knows what must be stored."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from bench.faults.ledger import MODEL, Ledger, list_ids, make_group, read_groups
from bench.faults.records import Connect, Request
from client.retrieval import RetrievalTransport

WRITERS: Final = 2
GUEST: Final = WRITERS  # number of one more writer
_GROUPS: Final = 6  # of each writer
_CASES: Final = 5  # of a group
_DELETED: Final = 5  # every fifth write deletes
_TIMEOUT_S: Final = 5.0
_CHECK_TIMEOUT_S: Final = 30.0


class Writers:
    """Writers of one sidecar and the ledger of all of them."""

    def __init__(self, retrieval_url: str) -> None:
        """Take the sidecar's address, host:port. Writers are numbered from 0 to `GUEST`."""
        self._url = retrieval_url
        self._ledgers = [
            Ledger([f"{writer}-{number}" for number in range(_GROUPS)], _CASES)
            for writer in range(WRITERS + 1)
        ]
        self._turns = [threading.Lock() for _ in range(WRITERS + 1)]  # held while a request is open

    @property
    def writes(self) -> int:
        """Number of acknowledged writes."""
        return sum(ledger.writes for ledger in self._ledgers)

    def connect(self, writer: int, url: str | None = None) -> Connect:
        """Return what connects a writer. Each number may be in use once at a time."""

        @contextmanager
        def connect() -> Iterator[Request]:
            transport = RetrievalTransport(self._url if url is None else url)

            def request(number: int) -> bool:
                with self._turns[writer]:
                    return _write_and_search(transport, self._ledgers[writer], number)

            try:
                yield request
            finally:
                transport.close()

        return connect

    def find_lost(self) -> list[str]:
        """Compare the store with the ledger; return a sentence for each difference.

        Raises:
            ServiceError: The sidecar does not answer.
        """
        transport = RetrievalTransport(self._url)
        try:
            with ExitStack() as turns:
                for turn in self._turns:
                    turns.enter_context(turn)
                stored = read_groups(transport, _CHECK_TIMEOUT_S)
                return [sentence for ledger in self._ledgers for sentence in ledger.compare(stored)]
        finally:
            transport.close()


def _write_and_search(transport: RetrievalTransport, ledger: Ledger, number: int) -> bool:
    """Write or delete one group, then search a case of it; return whether the search gave the right answer."""
    group = ledger.groups[number % _GROUPS]
    deletes = number % _DELETED == _DELETED - 1
    version = ledger.begin(group, delete=deletes)
    if deletes:
        transport.delete(list_ids(group, _CASES), _TIMEOUT_S)
        ledger.end(group, version)
        return True
    cases = make_group(group, version, _CASES)
    transport.add(MODEL, cases, _TIMEOUT_S)
    ledger.end(group, version)
    (hit,) = transport.search(MODEL, cases[0].embedding, 1, (), _TIMEOUT_S).cases
    return (hit.id, hit.report) == (cases[0].id, str(version))
