"""What answers the service: the seam between its methods and a store.

`retrieval.indexes` answers from files and FAISS on this machine, `retrieval.milvus` from a Milvus database.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from contract.errors import BusyError, ConfigError, DeadlineError
from retrieval.builder import KindState
from retrieval.cases import CaseRecord
from retrieval.index import IndexFacts, Query
from retrieval.listing import Page
from retrieval.metrics import SidecarMetrics
from retrieval.requests import ListRequest

MAX_MODELS: Final = 8  # each one keeps its embeddings in memory
SHORT: Final = 12  # digits of a fingerprint in a message


@dataclass(frozen=True)
class FoundCase:
    """A stored case, and its cosine similarity to the query, -1 to 1."""

    record: CaseRecord
    score: float


class FoundCases(list[FoundCase]):
    """The cases that answer one query. `is_exact`: every case that the filter allows was compared."""

    def __init__(self, cases: Iterable[FoundCase], *, is_exact: bool) -> None:
        """Take the cases, best first."""
        super().__init__(cases)
        self.is_exact = is_exact


@dataclass(frozen=True)
class ModelFacts:
    """What is known of one model's cases without reading them.

    Attributes:
        index: What the search index holds.
        kind: What became of the kind of index that was asked for.
        damaged: Number of cases that are left out because they differ from what was written.
        waiting: Searches and changes that wait for their turn.
        store_bytes: Size of the store's files; 0 where the store does not tell.
    """

    index: IndexFacts = field(default_factory=IndexFacts)
    kind: KindState = field(default_factory=KindState)
    damaged: int = 0
    waiting: int = 0
    store_bytes: int = 0


class ModelBackend(Protocol):
    """The cases of one model. Thread-safe."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model; "" before the first case."""

    @property
    def dimension(self) -> int:
        """Number of values of an embedding; 0 before the first case."""

    def count(self) -> int:
        """Return the number of stored cases, without those that are known to be damaged."""

    def count_kinds(self) -> dict[str, int]:
        """Return kind of embedding -> number of cases; "" for cases that do not state it."""

    def measure(self) -> ModelFacts:
        """Return what is known now. It is cheap, because Prometheus asks for it."""

    def add(self, fingerprint: str, cases: Sequence[CaseRecord], embeddings: NDArray[np.float32]) -> int:
        """Store cases; one replaces the case with its id. When it returns, they are durable and found.

        Args:
            fingerprint: Fingerprint of the model.
            cases: N cases with N different ids.
            embeddings: (N, D) float32 of unit length.

        Returns:
            The number of replaced cases.

        Raises:
            InputError: The stored embeddings have another dimension, or the store cannot hold a case.
            ArtifactError, ServiceError: The store failed.
        """

    def search(self, queries: Sequence[Query], timeout_s: float) -> list[FoundCases]:
        """Return for each query its min(k, allowed cases) nearest cases, best first, ties by case id.

        Raises:
            BusyError, DeadlineError, UnavailableError, ServerError: There is no answer.
        """

    def read_page(self, asked: ListRequest) -> Page:
        """Return some cases, and where the next ones begin.

        Raises:
            InputError: The page token is none of this store.
        """


_Model = TypeVar("_Model", bound=ModelBackend)


class CaseBackend(Protocol):
    """The cases of all models. Thread-safe."""

    metrics: SidecarMetrics

    @property
    def ready(self) -> bool:
        """Whether searches and changes are answered."""

    @property
    def description(self) -> str:
        """Where searches are answered, in words, such as "index on cpu"."""

    @property
    def fingerprints(self) -> list[str]:
        """Fingerprints of the models that have cases."""

    @property
    def default(self) -> ModelBackend:
        """Return the cases for a request that names no model: the served model's, or else one that has cases."""

    def start(self) -> "Future[None]":
        """Start to get ready; return a future that is done then, or holds the error."""

    def all(self) -> Sequence[ModelBackend]:
        """Return the cases of each model, also empty ones."""

    def peek(self, fingerprint: str) -> ModelBackend | None:
        """Return the cases of a model; None if it has none."""

    def find(self, fingerprint: str) -> ModelBackend:
        """Return the cases of a model. Raise FingerprintError if only other models have cases."""

    def find_or_make(self, fingerprint: str) -> ModelBackend:
        """Return the cases of a model, of which there may be none yet. Raise FingerprintError with too many models."""

    def get(self, case_id: str) -> CaseRecord:
        """Return one case, of the default model if possible. Raise UnknownCaseError if no model has it."""

    def delete(self, ids: Iterable[str]) -> int:
        """Delete cases of every model; return the largest number of cases that one model lost."""

    def describe(self) -> list[str]:
        """Return warnings for the operator."""

    def send_backup(self, is_wanted: Callable[[], bool]) -> Iterator[Any]:
        """Yield the parts of a backup. Raise InputError if the store offers none."""

    def close(self) -> None:
        """Close everything. May be called repeatedly."""


def choose_default(entries: Sequence[_Model], served: str | None) -> _Model | None:
    """Return the served model's cases, or else the first ones there are; None if no model has cases."""
    filled = [entry for entry in entries if entry.fingerprint]
    chosen = [entry for entry in filled if entry.fingerprint == served] or filled
    return chosen[0] if chosen else None


def choose_model(store: object, fingerprints: Iterable[str], begin: str) -> str:
    """Return the one fingerprint that begins with the given digits.

    Args:
        store: The store, for the message.
        fingerprints: Those of the models that it holds.
        begin: The first 8 or more digits.

    Raises:
        ConfigError: None or several begin so.
    """
    names = sorted(fingerprints)
    chosen = [name for name in names if name.startswith(begin) and len(begin) >= 8]
    if len(chosen) != 1:
        known = ", ".join(name[:SHORT] for name in names) or "none"
        raise ConfigError(f"{store} holds no index of model {begin[:SHORT]}. It holds {known}.")
    return chosen[0]


def make_busy_error(waiting: int) -> BusyError:
    """Return the error of a search that comes when so many wait already."""
    return BusyError(f"{waiting} search requests are waiting already. Try again later.")


def make_late_error(timeout_s: float) -> DeadlineError:
    """Return the error of a search without an answer in time."""
    return DeadlineError(f"The search did not end within {timeout_s:.3g} s.")


def explain_missing(fingerprint: str, fingerprints: Iterable[str]) -> str:
    """Return what a request for a model without cases is told, when other models have some."""
    models = " and ".join(name[:SHORT] for name in fingerprints)
    return (
        f"There is a similar-case index of model {models}, but none of model {fingerprint[:SHORT]}. Run `cxr index "
        "TABLE` to create it beside the other one."
    )


def explain_no_room(store: object) -> str:
    """Return what a request for one model too many is told."""
    return (
        f"The case store {store} holds cases of {MAX_MODELS} models already. Stop the sidecar, then "
        f"remove one with `python -m retrieval.server --store {store} --forget FINGERPRINT`."
    )
