"""The cases of all models in a Milvus database. Several sidecars may serve one database."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from contract.case_store import MilvusStore
from contract.errors import FingerprintError, InputError, UnavailableError
from retrieval.backend import MAX_MODELS, choose_default, choose_model, explain_missing, explain_no_room
from retrieval.cases import CaseRecord, UnknownCaseError
from retrieval.metrics import SidecarMetrics
from retrieval.milvus.collection import CaseCollection, list_fingerprints, open_collection
from retrieval.milvus.connection import connect
from retrieval.milvus.model import MilvusModel
from retrieval.milvus.rows import Sequences
from retrieval.worker import MAX_WAITING

NO_BACKUP = (
    "A Milvus store has no backup of files: copy it with `cxr index migrate`, or use the tool milvus-backup."
)


class MilvusDatabase:
    """The cases of all models in one database. Thread-safe."""

    def __init__(
        self, store: MilvusStore, *, fingerprint: str | None = None, max_waiting: int = MAX_WAITING
    ) -> None:
        """Connect to Milvus.

        Args:
            store: The database. It is created if it is missing.
            fingerprint: Fingerprint of the served model. None: the model of the first cases.
            max_waiting: Largest number of searches at a time, for each model.

        Raises:
            ConfigError: pymilvus is not installed, or nothing usable answers.
            ArtifactError: A collection states another model, dimension or format than it has.
        """
        self._store = store
        self._served = fingerprint
        self._max_waiting = max_waiting
        self.metrics = SidecarMetrics()
        self._sequences = Sequences()
        self._lock = threading.Lock()
        self._is_ready = False
        self._models: dict[str, MilvusModel] = {}
        with contextlib.ExitStack() as cleanup:
            self._client = cleanup.enter_context(connect(store))
            for name in list_fingerprints(self._client):
                self._models[name] = self._make(open_collection(self._client, name))
            self._cleanup = cleanup.pop_all()
        self._empty = self._make(None)
        self.metrics.watch(self)

    @property
    def ready(self) -> bool:
        """Whether all collections are loaded."""
        return self._is_ready

    @property
    def description(self) -> str:
        """Where searches are answered, in words."""
        return f"in {self._store}"

    @property
    def fingerprints(self) -> list[str]:
        """Fingerprints of the models that have cases."""
        return [entry.fingerprint for entry in self.all() if entry.fingerprint]

    @property
    def default(self) -> MilvusModel:
        """Return the cases for a request that names no model."""
        if not self.fingerprints:
            self._find_new()
        return choose_default(self.all(), self._served) or self._empty

    def start(self) -> "Future[None]":
        """Let Milvus load all collections; return a future that is done, or holds the error."""
        loaded: Future[None] = Future()
        try:
            for entry in self.all():
                entry.load()
        except Exception as error:  # passed to the caller
            loaded.set_exception(error)
        else:
            self._is_ready = True
            loaded.set_result(None)
        return loaded

    def all(self) -> Sequence[MilvusModel]:
        """Return the cases of each model."""
        with self._lock:
            return list(self._models.values())

    def peek(self, fingerprint: str) -> MilvusModel | None:
        """Return the cases of a model, also if another sidecar stored the first one; None if it has none."""
        with self._lock:
            entry = self._models.get(fingerprint)
            if entry is not None and entry.fingerprint:
                return entry
            if (collection := open_collection(self._client, fingerprint)) is None:
                return None
            collection.load()
            self._models[fingerprint] = self._make(collection)
            return self._models[fingerprint]

    def find(self, fingerprint: str) -> MilvusModel:
        """Return the cases of a model. Raise FingerprintError if only other models have cases."""
        if (entry := self.peek(fingerprint)) is not None:
            return entry
        self._find_new()
        if fingerprints := self.fingerprints:
            raise FingerprintError(explain_missing(fingerprint, fingerprints))
        return self._empty

    def find_or_make(self, fingerprint: str) -> MilvusModel:
        """Return the cases of a model, of which there may be none yet.

        Raises:
            FingerprintError: The database holds the maximum number of models already.
            UnavailableError: The sidecar is stopping.
        """
        with self._lock:
            if not self._is_ready:
                raise UnavailableError("The sidecar is stopping.")
            if fingerprint not in self._models:
                if len(self._models) >= MAX_MODELS:
                    raise FingerprintError(explain_no_room(self._store))
                self._models[fingerprint] = self._make(None)
            return self._models[fingerprint]

    def get(self, case_id: str) -> CaseRecord:
        """Return one case. Raise UnknownCaseError if no model has it."""
        self._find_new()
        for entry in [self.default, *self.all()]:
            with contextlib.suppress(UnknownCaseError):
                return entry.get(case_id)
        raise UnknownCaseError("No case with this id is stored.")

    def delete(self, ids: Iterable[str]) -> int:
        """Delete cases of every model; return the largest number of cases that one model lost."""
        named = list(ids)
        self._find_new()
        return max((entry.delete(named) for entry in self.all()), default=0)

    def describe(self) -> list[str]:
        """Return warnings for the operator."""
        lines = [self._store.describe_exposure(), *(entry.describe_damage() for entry in self.all())]
        if self._served and self.fingerprints and self._served not in self.fingerprints:
            lines.append(explain_missing(self._served, self.fingerprints))
        return [line for line in lines if line]

    def send_backup(self, is_wanted: Callable[[], bool]) -> Iterator[Any]:
        """Raise InputError: the files of a Milvus store are Milvus's own."""
        raise InputError(NO_BACKUP)

    def close(self) -> None:
        """Close the connection. May be called repeatedly."""
        self._is_ready = False
        self._cleanup.close()

    def __enter__(self) -> "MilvusDatabase":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find_new(self) -> None:
        """Find the models whose first case another sidecar stored."""
        for name in list_fingerprints(self._client):
            self.peek(name)

    def _make(self, collection: CaseCollection | None) -> MilvusModel:
        return MilvusModel(self._client, self.metrics, self._sequences, self._max_waiting, collection)


def forget(store: MilvusStore, fingerprint: str) -> int:
    """Remove the collection of one model; return its number of cases.

    Args:
        store: The database.
        fingerprint: The first 8 or more digits of the model's fingerprint.

    Raises:
        ConfigError: The model has no collection, or nothing usable answers.
    """
    with connect(store) as client:
        name = choose_model(store, list_fingerprints(client), fingerprint)
        collection = CaseCollection(client, name, 0)
        collection.load()
        count = collection.count()
        collection.drop()
    return count
