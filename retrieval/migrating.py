"""Copy all cases of a store into another one, files or Milvus, and check each of them.

The copy can be interrupted and run again at any time: a case that is there already, with the same checksum, is not
written again. FROM stays as it is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from contract.case_store import MilvusStore, parse_store
from contract.errors import ArtifactError, ConfigError
from retrieval.cases import CaseRecord
from retrieval.file_shelf import FileShelf

_BATCH: Final = 256  # cases that are read and written at once
Progress = Callable[[int, int], None]


# Intact cases, their embeddings, (N, D) float32, and their checksums.
Batch = tuple[list[CaseRecord], NDArray[np.float32], list[str]]


class Shelf(Protocol):
    """A store that cases are copied from or to, while no server changes it."""

    def list_models(self) -> list[str]:
        """Return the fingerprints of the models that have cases."""

    def count(self, model: str) -> int:
        """Return the number of rows of a model, damaged ones included."""

    def read(self, model: str, size: int) -> Iterator[Batch]:
        """Yield the intact cases of a model, in batches of about `size`."""

    def find(self, model: str, ids: Sequence[str]) -> dict[str, str]:
        """Return id -> checksum of those cases that are stored and intact."""

    def write(self, model: str, records: Sequence[CaseRecord], embeddings: NDArray[np.float32]) -> None:
        """Store cases durably. A case replaces the one with its id."""

    def close(self) -> None:
        """Close the store."""


@dataclass(frozen=True)
class MovedModel:
    """What became of the cases of one model.

    Attributes:
        fingerprint: Fingerprint of the model.
        cases: Number of intact cases in FROM; all of them are in TO.
        written: Number of them that this run wrote. The others were there already.
        damaged: Number of cases in FROM that are left out, because they differ from what was written.
    """

    fingerprint: str
    cases: int
    written: int
    damaged: int

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        return asdict(self)


def migrate(source: str, target: str, *, replace: bool, progress: Progress) -> list[MovedModel]:
    """Copy all cases of a store into another one, and compare the checksum of every case and their number.

    Args:
        source: What `--store` of a sidecar would name. No sidecar may use a directory meanwhile.
        target: The same, of the other store. It is created if it is missing.
        replace: Replace cases of the other store that have the same id and another content.
        progress: Receives the number of cases that are copied plus that of the checked ones, and twice that of all.

    Returns:
        What became of each model.

    Raises:
        ConfigError: A store cannot be opened, or both are the same.
        ArtifactError: The other store holds other cases, or a case in it differs from the one that was written.
        ServiceError: Milvus failed.
    """
    origin, goal = parse_store(source), parse_store(target)
    if str(origin) == str(goal):
        raise ConfigError("FROM and TO are the same store.")
    _require_there(origin)
    with ExitStack() as stack:
        shelf, other = open_shelf(origin), open_shelf(goal)
        stack.callback(shelf.close)
        stack.callback(other.close)
        models = shelf.list_models()
        if not models:
            raise ConfigError(f"{source} holds no cases.")
        counter = _Counter(progress, 2 * sum(map(shelf.count, models)))
        written = {model: _copy(shelf, other, model, counter, replace=replace) for model in models}
        return [_check(shelf, other, model, counter, written[model]) for model in models]


def open_shelf(store: Path | MilvusStore) -> Shelf:
    """Open a store to copy cases from it or to it."""
    if isinstance(store, MilvusStore):
        from retrieval.milvus.shelf import MilvusShelf

        return MilvusShelf(store)
    return FileShelf(store)


class _Counter:
    def __init__(self, tell: Progress, total: int) -> None:
        self._tell, self._total, self._done = tell, total, 0

    def add(self, count: int) -> None:
        self._done += count
        self._tell(self._done, self._total)


def _copy(shelf: Shelf, other: Shelf, model: str, counter: _Counter, *, replace: bool) -> int:
    """Write the cases of a model that the other store lacks; return their number."""
    written = 0
    for records, embeddings, checksums in shelf.read(model, _BATCH):
        there = other.find(model, [record.id for record in records])
        missing = [place for place, record in enumerate(records) if there.get(record.id) != checksums[place]]
        if not replace and any(records[place].id in there for place in missing):
            raise ArtifactError(
                f"TO holds a case of model {model[:12]} that has the same id as one in FROM and another content. "
                "Choose an empty TO, or give --replace."
            )
        if missing:
            other.write(model, [records[place] for place in missing], embeddings[missing])
        written += len(missing)
        counter.add(len(records))
    return written


def _check(shelf: Shelf, other: Shelf, model: str, counter: _Counter, written: int) -> MovedModel:
    """Compare every case of a model in both stores."""
    intact = 0
    for records, _, checksums in shelf.read(model, _BATCH):
        there = other.find(model, [record.id for record in records])
        wrong = sum(there.get(record.id) != sum_ for record, sum_ in zip(records, checksums, strict=True))
        if wrong:
            raise ArtifactError(
                f"{wrong} cases of model {model[:12]} in TO differ from those in FROM. Run the command again while no "
                "sidecar changes either store."
            )
        intact += len(records)
        counter.add(len(records))
    if (count := other.count(model)) != intact:
        raise ArtifactError(
            f"TO holds {count} cases of model {model[:12]}, and FROM {intact}. Choose an empty TO, and let no sidecar "
            "change either store."
        )
    return MovedModel(model, intact, written, shelf.count(model) - intact)


def _require_there(store: Path | MilvusStore) -> None:
    path = store.lite if isinstance(store, MilvusStore) else store
    if path is not None and not path.exists():
        raise ConfigError(f"There is no case store at {path}.")
