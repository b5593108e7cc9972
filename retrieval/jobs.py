"""What the thread of an index does: searches, changes, and parts that were built; and how these end."""

import contextlib
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from contract.errors import CxrError, ServerError
from retrieval.builder import Built
from retrieval.cases import CaseVectors
from retrieval.index import Matches, Query


@dataclass(frozen=True)
class Search:
    """Queries that a caller waits for."""

    queries: Sequence[Query]
    future: "Future[list[Matches]]" = field(default_factory=Future)
    began: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Change:
    """A change that the store already holds; see `IndexThread.change`."""

    removed: Sequence[str]
    added: CaseVectors | None
    damaged: Collection[int]
    future: "Future[None]" = field(default_factory=Future)


Job = Search | Change | Built


def fail(job: Job, error: CxrError) -> None:
    """End a search or a change with an error."""
    if isinstance(job, Built):
        return
    with contextlib.suppress(InvalidStateError):  # cancelled by its caller, or answered already
        job.future.set_exception(error)


def explain(error: Exception, sentence: str) -> CxrError:
    """Return an error for a caller, without the text of an error that is not our own."""
    if isinstance(error, CxrError):
        return error
    failure = ServerError(f"{sentence} ({type(error).__name__}).")
    failure.__cause__ = error.with_traceback(None)  # its frames would keep an index in memory
    return failure
