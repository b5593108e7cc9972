"""The case indexes of one directory: one store and one search index for each model.

    DIRECTORY/cases.sqlite                         the first model's cases
    DIRECTORY/models/<fingerprint>/cases.sqlite    the cases of each further model

Embeddings of two models cannot be compared, so each request uses the index of the model that it names. After a model
swap the cases are indexed again, beside the old index. Requests with the old model still use the old index, also after
a rollback. An index is removed only if an operator asks for it (`forget`).
"""

import contextlib
import functools
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import Any

from contract.errors import ArtifactError, FingerprintError, UnavailableError
from retrieval.backend import (
    MAX_MODELS,
    choose_default,
    choose_model,
    explain_missing,
    explain_no_room,
)
from retrieval.backup import send_backup
from retrieval.builder import IndexPlan
from retrieval.cases import CaseRecord, UnknownCaseError
from retrieval.directory import DATABASE, MODELS, list_models
from retrieval.index import Device
from retrieval.metrics import SidecarMetrics
from retrieval.model_index import ModelIndex
from retrieval.store import CaseStore
from retrieval.worker import FLAT_PLAN, MAX_WAITING, IndexThread


class CaseIndexes:
    """All indexes of one directory. Thread-safe."""

    def __init__(
        self,
        directory: Path | str,
        *,
        fingerprint: str | None = None,
        device: Device = "cpu",
        threads: int | None = None,
        max_waiting: int = MAX_WAITING,
        codes: bool = True,
        plan: IndexPlan = FLAT_PLAN,
    ) -> None:
        """Open the stores of all models, or create an empty one.

        Args:
            directory: Created (mode 0700) if missing. Only one server at a time may open it.
            fingerprint: Fingerprint of the served model. None: the model of the first cases.
            device: Where FAISS searches.
            threads: OpenMP threads of FAISS on CPU. None: OpenMP's default, one per core.
            max_waiting: Largest number of waiting search requests, for each model.
            codes: As in `retrieval.index.FlatIndex`.
            plan: The kind of index that should answer, for each model.

        Raises:
            ConfigError: Another server has the directory open, it cannot be used, or `plan` does not work on `device`.
            ArtifactError: The cases of the served model are damaged. Damage to another model's cases is logged;
                requests for that model fail with this error, and the other models are served.
        """
        self._directory = Path(directory)
        self._served = fingerprint
        self._device: Device = device
        self._threads, self._max_waiting, self._codes = threads, max_waiting, codes
        self.metrics = SidecarMetrics()
        self._plan = plan
        self._lock = threading.Lock()
        self._closed = False
        self._broken: dict[str, ArtifactError] = {}  # fingerprint -> why
        self._others: dict[str, ModelIndex] = {}
        with contextlib.ExitStack() as cleanup:
            self.home = self._add(CaseStore(self._directory), cleanup)
            for path in list_models(self._directory):
                self._open(path, cleanup)
            if fingerprint in self._broken:
                raise self._broken[str(fingerprint)]
            self._cleanup = cleanup.pop_all()
        self.metrics.watch(self)

    @property
    def directory(self) -> Path:
        """The directory."""
        return self._directory

    @property
    def description(self) -> str:
        """Where searches are answered, in words."""
        return f"index on {self._device}"

    @property
    def broken(self) -> list[str]:
        """Fingerprints of the models whose stores are too damaged to be served."""
        return sorted(name for name in self._broken if name)

    @property
    def ready(self) -> bool:
        """Whether every index is built and accepts requests."""
        return all(entry.index.ready for entry in self.all())

    def all(self) -> list[ModelIndex]:
        """Return the index of each model, also empty ones, but not damaged ones."""
        with self._lock:
            entries = [self.home, *self._others.values()]
            return [entry for entry in entries if entry.store.fingerprint not in self._broken]

    def start(self) -> "Future[None]":
        """Start building all indexes.

        Returns:
            A future that is done when they are built. It holds the first error, except damage to the store of a model
            that is not served.
        """
        entries = self.all()
        built: Future[None] = Future()
        remaining = threading.Semaphore(len(entries) - 1)

        def finish(entry: ModelIndex, future: "Future[None]") -> None:
            error = future.exception()
            with contextlib.suppress(InvalidStateError):  # another index failed first
                if error is not None and not self._give_up(entry, error):
                    built.set_exception(error)
                elif not remaining.acquire(blocking=False):
                    built.set_result(None)

        for entry in entries:
            entry.index.start().add_done_callback(functools.partial(finish, entry))
        return built

    def _give_up(self, entry: ModelIndex, error: BaseException) -> bool:
        """Drop an index whose store is damaged. Return False if it belongs to the served or an unknown model."""
        fingerprint = entry.store.fingerprint
        if not isinstance(error, ArtifactError) or not self._served or fingerprint in ("", self._served):
            return False
        with self._lock:
            self._broken[fingerprint] = error
        return True

    @property
    def fingerprints(self) -> list[str]:
        """Fingerprints of the models that have cases."""
        return [entry.fingerprint for entry in self.all() if entry.fingerprint]

    @property
    def default(self) -> ModelIndex:
        """Return the index for a request that names no model: the served model's, or else one that has cases."""
        return choose_default(self.all(), self._served) or self.home

    def peek(self, fingerprint: str) -> ModelIndex | None:
        """Return the index of a model; None if the model has no cases."""
        return next((entry for entry in self.all() if entry.store.fingerprint == fingerprint), None)

    def find(self, fingerprint: str) -> ModelIndex:
        """Return the index of a model.

        Raises:
            FingerprintError: Only other models have cases. The message says how to index them for this model.
            ArtifactError: The model's cases are damaged.
        """
        if error := self._broken.get(fingerprint):
            raise error
        if (entry := self.peek(fingerprint)) is not None:
            return entry
        if fingerprints := self.fingerprints:
            raise FingerprintError(explain_missing(fingerprint, fingerprints))
        return self.home  # no cases are stored yet, for any model

    def find_or_make(self, fingerprint: str) -> ModelIndex:
        """Return the index of a model. Create one if there is none.

        Raises:
            ArtifactError: The model's cases are damaged, or the disk refused the new index.
            FingerprintError: The directory holds the maximum number of models already.
            UnavailableError: The sidecar is stopping.
        """
        if error := self._broken.get(fingerprint):
            raise error
        with self._lock:
            if self._closed:
                raise UnavailableError("The sidecar is stopping.")
            if not self.home.store.fingerprint and not self._others:
                self.home.store.reserve(fingerprint)
            if self.home.store.belongs_to(fingerprint):
                return self.home
            if fingerprint not in self._others:
                self._require_room()
                entry = self._make(fingerprint)
                entry.index.start().result()
                self._others[fingerprint] = entry
            return self._others[fingerprint]

    def get(self, case_id: str) -> CaseRecord:
        """Return one case, from the default index if possible. Raise UnknownCaseError if no index has it."""
        for entry in [self.default, *self.all()]:
            with contextlib.suppress(UnknownCaseError):
                return entry.store.get(case_id)
        raise UnknownCaseError("No case with this id is stored.")

    def delete(self, ids: Iterable[str]) -> int:
        """Delete cases from every index; return the largest number of rows that one index lost.

        Raises:
            ArtifactError: A store is damaged or its disk failed. Some cases may not be deleted.
        """
        ids, most = list(ids), 0
        for entry in self.all():
            most = max(most, entry.delete(ids))
        for error in self._broken.values():
            raise error
        return most

    def describe(self) -> list[str]:
        """Return warnings for the operator: damaged rows, damaged stores, an index of a model that is not served."""
        lines = [text for entry in self.all() if (text := entry.store.describe_damage())]
        lines += [str(error) for error in self._broken.values()]
        if self._served and self.fingerprints and self._served not in self.fingerprints:
            lines.append(explain_missing(self._served, self.fingerprints))
        return lines

    def send_backup(self, is_wanted: Callable[[], bool]) -> Iterator[Any]:
        """Yield a copy of all stores; see `retrieval.backup`."""
        stores = [entry.store for entry in self.all()]
        return send_backup(stores, self._directory, self.broken, is_wanted)

    def close(self) -> None:
        """Close everything. May be called repeatedly."""
        with self._lock:
            self._closed = True
        self._cleanup.close()

    def __enter__(self) -> "CaseIndexes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, store: CaseStore, cleanup: contextlib.ExitStack) -> ModelIndex:
        index = IndexThread(
            store.read_vectors,
            device=self._device,
            threads=self._threads,
            max_waiting=self._max_waiting,
            codes=self._codes,
            metrics=self.metrics,
            plan=self._plan,
            directory=store.directory,
        )
        store.observe_syncs(self.metrics.sync.observe)
        entry = ModelIndex(store, index, self.metrics)
        cleanup.callback(entry.close)
        return entry

    def _open(self, path: Path, cleanup: contextlib.ExitStack) -> None:
        try:
            self._others[path.name] = self._add(CaseStore(path, fingerprint=path.name), cleanup)
        except ArtifactError as error:
            self._broken[path.name] = error

    def _make(self, fingerprint: str) -> ModelIndex:
        store = CaseStore(self._directory / MODELS / fingerprint, fingerprint=fingerprint)
        return self._add(store, self._cleanup)

    def _require_room(self) -> None:
        if len(self._others) + 1 >= MAX_MODELS:
            raise FingerprintError(explain_no_room(self._directory))


def forget(directory: Path, fingerprint: str) -> int:
    """Remove the index of one model from a directory that no server has open; return its number of cases.

    Args:
        directory: Directory of `CaseIndexes`.
        fingerprint: The first 8 or more digits of the model's fingerprint.

    Raises:
        ConfigError: The model has no index, or a server has the directory open.
    """
    with CaseStore(directory) as home:  # the lock keeps servers out
        directories = {path.name: path for path in list_models(directory)}
        if home.fingerprint:
            directories[home.fingerprint] = directory
        path = directories[choose_model(directory, directories, fingerprint)]
        if path == directory:
            count = home.count()
            for file in directory.glob(f"{DATABASE}*"):
                file.unlink()
        else:
            count = 0
            with contextlib.suppress(ArtifactError), CaseStore(path) as store:
                count = store.count()
            shutil.rmtree(path)
    return count


def remove_damaged(directory: Path) -> int:
    """Remove the damaged rows of all models from a directory that no server has open; return their number."""
    count = 0
    with _open_stores(directory) as stores:
        for store in stores:
            for _ in store.read_vectors():
                pass
            count += store.remove_damaged()
    return count


def compact(directory: Path) -> int:
    """Write the files of all models anew, in a directory that no server has open; return their size in bytes."""
    with _open_stores(directory) as stores:
        for store in stores:
            store.compact()
            store.sync()
        return sum(store.measure_file() for store in stores)


@contextlib.contextmanager
def _open_stores(directory: Path) -> Iterator[list[CaseStore]]:
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(CaseStore(directory))  # the lock keeps servers out
        yield [home, *(stack.enter_context(CaseStore(path)) for path in list_models(directory))]
