"""Clients that send one request after the other, each in its own thread, and a record of what they saw.

They behave like a program that must run for weeks: they send a request, wait, and try again after an error. They do not
know about the faults.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final

from contract.errors import CxrError, InputError

_PAUSE_S: Final = 0.05

Request = Callable[[int], bool]  # argument: the number of the request; returns whether the answer is right
Connect = Callable[[], AbstractContextManager[Request]]


@dataclass(frozen=True)
class Failure:
    """A request that ended with an error: when it was sent, when it ended (time.monotonic), and the error's type."""

    sent: float
    at: float
    kind: str


@dataclass(eq=False)
class Record:
    """The results of one client. `good_at` holds the times of its answers (time.monotonic)."""

    good_at: list[float] = field(default_factory=list)
    errors: list[Failure] = field(default_factory=list)
    wrong: int = 0
    untyped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Tally:
    """Sums over clients: answers, answers that were wrong, and errors of no type of this project."""

    answers: int
    wrong: int
    untyped: Counter[str]

    @classmethod
    def sum(cls, records: Sequence[Record]) -> "Tally":
        """Add up records."""
        return cls(
            sum(len(record.good_at) for record in records),
            sum(record.wrong for record in records),
            sum((record.untyped for record in records), Counter[str]()),
        )

    def subtract(self, earlier: "Tally") -> "Tally":
        """Return what came after an earlier tally."""
        return Tally(
            self.answers - earlier.answers, self.wrong - earlier.wrong, self.untyped - earlier.untyped
        )


@dataclass
class _Group:
    """Clients that stop together."""

    records: list[Record] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


class Clients:
    """Clients that run until `close`, and guests that run until `dismiss`.

    `records` belong to the current clients, `gone` to dismissed guests.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.gone: list[Record] = []
        self._residents = _Group()
        self._guests = _Group()

    def add(self, connect: Connect, *, guest: bool = False) -> Record:
        """Start a client and return its record. `connect` opens its connection in its thread."""
        group = self._guests if guest else self._residents
        record = Record()
        thread = threading.Thread(target=_run, args=(connect, record, group.stop), daemon=True)
        self.records.append(record)
        group.records.append(record)
        group.threads.append(thread)
        thread.start()
        return record

    def dismiss(self) -> None:
        """Stop the guests."""
        self._guests.end()
        self.records, self.gone = (
            [record for record in self.records if record not in self._guests.records],
            self.gone + self._guests.records,
        )
        self._guests = _Group()

    def close(self) -> None:
        """Stop all clients."""
        self.dismiss()
        self._residents.end()

    def tally(self) -> Tally:
        """Return the sums over all clients, gone ones too."""
        return Tally.sum([*self.records, *self.gone])

    def have_answers_since(self, moment: float, count: int = 3) -> bool:
        """Return whether each client got `count` good answers in a row since a moment, and no error after them."""
        for record in list(self.records):
            last_error = record.errors[-1].at if record.errors else 0.0
            newer = [at for at in record.good_at[-count:] if at > max(moment, last_error)]
            if len(newer) < count:
                return False
        return True

    def list_failures(self, since: float) -> list[Failure]:
        """Return the requests of the current clients that failed at or after a moment."""
        return [failure for record in self.records for failure in list(record.errors) if failure.at >= since]

    def get_recovery_s(self, moment: float) -> float:
        """Return the seconds from a moment until all clients had good answers again; 0 without errors."""
        recovered = [0.0]
        for record in self.records:
            errors = [failure.at for failure in record.errors if failure.at >= moment]
            later = [at for at in record.good_at if errors and at > errors[-1]]
            recovered += [later[0] - moment] if later else []
        return max(recovered)


def _run(connect: Connect, record: Record, stop: threading.Event) -> None:
    with connect() as request:
        number = 0
        while not stop.wait(_PAUSE_S):
            sent = time.monotonic()
            try:
                right = request(number)
            except CxrError as error:
                record.errors.append(Failure(sent, time.monotonic(), type(error).__name__))
                record.wrong += isinstance(error, InputError)  # the request is good
            except Exception as error:
                record.errors.append(Failure(sent, time.monotonic(), type(error).__name__))
                record.untyped[type(error).__name__] += 1
            else:
                record.good_at.append(time.monotonic())
                record.wrong += not right
            number += 1
