"""The indexes of all models whose cases one directory holds: one store and one search index for each model.

    DIRECTORY/cases.sqlite                         the first model's cases
    DIRECTORY/models/<fingerprint>/cases.sqlite    each further model's

Embeddings of two models cannot be compared, so a request is answered by the index of the model that it names. After
a model swap the cases are indexed again beside the old index; whoever still asks with the old model finds the old
index, and after a rollback everybody does. Nothing is removed unless an operator says so (`forget`).
"""

import contextlib
import functools
import re
import shutil
import threading
from collections.abc import Iterable
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import Final

from contract.errors import ArtifactError, ConfigError, FingerprintError, UnavailableError
from retrieval.index import Device
from retrieval.store import DATABASE, CaseRecord, CaseStore, UnknownCaseError
from retrieval.worker import MAX_WAITING, IndexThread

MODELS: Final = "models"
MAX_MODELS: Final = 8  # each has its embeddings in memory
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_SHORT: Final = 12


class ModelIndex:
    """The cases of one model: the store, the index that is derived from it, and the order of changes in both."""

    def __init__(self, store: CaseStore, index: IndexThread) -> None:
        """Take an open store and an index that is derived from it; `index.start` builds it."""
        self.store = store
        self.index = index
        # The order of changes in the index is that of the store: one change at a time, in both.
        self.change_lock = threading.Lock()

    def close(self) -> None:
        """End the thread and close the store."""
        self.index.close()
        self.store.close()


class CaseIndexes:
    """Every index of one directory; every method may be called from any thread."""

    def __init__(
        self,
        directory: Path | str,
        *,
        fingerprint: str | None = None,
        device: Device = "cpu",
        threads: int | None = None,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """Open the stores of all models, or make an empty one.

        Args:
            directory: Made (mode 0700) if missing; one server at a time may open it.
            fingerprint: Of the model that is served; None means that of the first cases.
            device: Where FAISS searches.
            threads: OpenMP threads of FAISS on CPU; None leaves it to OpenMP (one per core).
            max_waiting: How many search requests may wait, for each model.

        Raises:
            ConfigError: Another server has it open, or the directory cannot be used.
            ArtifactError: The cases of the served model are damaged. Where others are, it is logged, requests for
                them fail with this error, and the rest is served.
        """
        self._directory = Path(directory)
        self._served = fingerprint
        self._device: Device = device
        self._threads, self._max_waiting = threads, max_waiting
        self._lock = threading.Lock()
        self._closed = False
        self._broken: dict[str, ArtifactError] = {}  # fingerprint -> why
        self._others: dict[str, ModelIndex] = {}
        with contextlib.ExitStack() as cleanup:
            self.home = self._add(CaseStore(self._directory), cleanup)
            for path in sorted((self._directory / MODELS).glob("*")):
                if _FINGERPRINT.fullmatch(path.name):
                    self._open(path, cleanup)
            if fingerprint in self._broken:
                raise self._broken[str(fingerprint)]
            self._cleanup = cleanup.pop_all()

    @property
    def ready(self) -> bool:
        """Whether every index was built and takes requests."""
        return all(entry.index.ready for entry in self.all())

    def all(self) -> list[ModelIndex]:
        """Return the index of each model, those without a case yet included, those that are damaged not."""
        with self._lock:
            entries = [self.home, *self._others.values()]
            return [entry for entry in entries if entry.store.fingerprint not in self._broken]

    def start(self) -> "Future[None]":
        """Start to build all indexes.

        Returns:
            Done when they are built; holds the first error, but not that another model's store is damaged than the
            served one's.
        """
        entries = self.all()
        built: Future[None] = Future()
        left = threading.Semaphore(len(entries) - 1)

        def finish(entry: ModelIndex, future: "Future[None]") -> None:
            error = future.exception()
            with contextlib.suppress(InvalidStateError):  # another one failed first
                if error is not None and not self._give_up(entry, error):
                    built.set_exception(error)
                elif not left.acquire(blocking=False):
                    built.set_result(None)

        for entry in entries:
            entry.index.start().add_done_callback(functools.partial(finish, entry))
        return built

    def _give_up(self, entry: ModelIndex, error: BaseException) -> bool:
        """Go on without an index whose store is damaged; False if it is the served model's, or not known whose."""
        fingerprint = entry.store.fingerprint
        if not isinstance(error, ArtifactError) or not self._served or fingerprint in ("", self._served):
            return False
        with self._lock:
            self._broken[fingerprint] = error
        return True

    @property
    def fingerprints(self) -> list[str]:
        """Of the models that there are cases of."""
        return [entry.store.fingerprint for entry in self.all() if entry.store.fingerprint]

    @property
    def default(self) -> ModelIndex:
        """Return the index that is meant where a request names none: the served model's, else one that has cases."""
        filled = [entry for entry in self.all() if entry.store.fingerprint]
        served = [entry for entry in filled if entry.store.fingerprint == self._served]
        return (served or filled or [self.home])[0]

    def peek(self, fingerprint: str) -> ModelIndex | None:
        """Return the index of a model that has cases, None if there is none."""
        return next((entry for entry in self.all() if entry.store.fingerprint == fingerprint), None)

    def find(self, fingerprint: str) -> ModelIndex:
        """Return the index of a model.

        Raises:
            FingerprintError: There are cases of other models only; says how to index them for this one.
            ArtifactError: Its cases are damaged.
        """
        if error := self._broken.get(fingerprint):
            raise error
        if (entry := self.peek(fingerprint)) is not None:
            return entry
        if there := self.fingerprints:
            raise FingerprintError(_explain_missing(fingerprint, there))
        return self.home  # nothing is stored yet, for nobody

    def find_or_make(self, fingerprint: str) -> ModelIndex:
        """Return the index of a model, a new one beside the others if there is none.

        Raises:
            ArtifactError: Its cases are damaged, or the disk refused the new one.
            FingerprintError: There are as many models already as one server holds.
            UnavailableError: The sidecar stops.
        """
        if error := self._broken.get(fingerprint):
            raise error
        with self._lock:
            if self._closed:
                raise UnavailableError("The sidecar stops.")
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
        """Return one case, from the default index if it is there; UnknownCaseError if no index has it."""
        for entry in [self.default, *self.all()]:
            with contextlib.suppress(UnknownCaseError):
                return entry.store.get(case_id)
        raise UnknownCaseError("No case of this id is stored.")

    def delete(self, ids: Iterable[str]) -> int:
        """Forget cases in every index; return in how many rows of the index that had most.

        Raises:
            ArtifactError: One of the stores is damaged or its disk failed: cases may still be there.
        """
        ids, most = list(ids), 0
        for entry in self.all():
            with entry.change_lock:
                most = max(most, entry.store.delete(ids))
                entry.index.change(removed=ids)
        for error in self._broken.values():
            raise error
        return most

    def describe(self) -> list[str]:
        """Return what an operator must know: damaged rows, damaged stores, an index that is not of the served model."""
        lines = [text for entry in self.all() if (text := entry.store.describe_damage())]
        lines += [str(error) for error in self._broken.values()]
        if self._served and self.fingerprints and self._served not in self.fingerprints:
            lines.append(_explain_missing(self._served, self.fingerprints))
        return lines

    def close(self) -> None:
        """Close everything; may be called repeatedly."""
        with self._lock:
            self._closed = True
        self._cleanup.close()

    def __enter__(self) -> "CaseIndexes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, store: CaseStore, cleanup: contextlib.ExitStack) -> ModelIndex:
        index = IndexThread(
            store.read_vectors, device=self._device, threads=self._threads, max_waiting=self._max_waiting
        )
        entry = ModelIndex(store, index)
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
            raise FingerprintError(
                f"The case store {self._directory} holds cases of {MAX_MODELS} models already: stop the sidecar, then "
                f"remove one with `python -m retrieval.server --store {self._directory} --forget FINGERPRINT`."
            )


def forget(directory: Path, fingerprint: str) -> int:
    """Remove the whole index of one model from a directory that no server has open; return how many cases it had.

    Args:
        directory: Of `CaseIndexes`.
        fingerprint: Its first 8 digits or more.

    Raises:
        ConfigError: There is no such model, or a server has the directory open.
    """
    with CaseStore(directory) as home:  # no server runs meanwhile
        places = {
            path.name: path for path in (directory / MODELS).glob("*") if _FINGERPRINT.fullmatch(path.name)
        }
        if home.fingerprint:
            places[home.fingerprint] = directory
        chosen = [name for name in places if name.startswith(fingerprint) and len(fingerprint) >= 8]
        if len(chosen) != 1:
            there = ", ".join(sorted(name[:_SHORT] for name in places)) or "none"
            raise ConfigError(
                f"{directory} holds no index of model {fingerprint[:_SHORT]}: it holds {there}."
            )
        path = places[chosen[0]]
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
    """Remove the damaged rows of every model's store that no server has open; return how many there were."""
    count = 0
    with CaseStore(directory) as home:
        paths = [path for path in (directory / MODELS).glob("*") if _FINGERPRINT.fullmatch(path.name)]
        with contextlib.ExitStack() as others:
            for store in [home, *(others.enter_context(CaseStore(path)) for path in sorted(paths))]:
                for _ in store.read_vectors():
                    pass
                count += store.remove_damaged()
    return count


def _explain_missing(fingerprint: str, there: list[str]) -> str:
    held = " and ".join(name[:_SHORT] for name in there)
    return (
        f"The similar-case index is of model {held}; there is none of model {fingerprint[:_SHORT]} yet: run `cxr index "
        "TABLE`, which makes it beside the other one."
    )
