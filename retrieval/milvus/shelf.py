"""A Milvus database as `retrieval.migrating` reads and writes it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from contract.case_store import MilvusStore
from retrieval.cases import CaseRecord
from retrieval.milvus.collection import CaseCollection, create_collection, list_fingerprints, open_collection
from retrieval.milvus.connection import connect
from retrieval.milvus.rows import Sequences, require_storable, write_rows
from retrieval.requests import require_dimension


class MilvusShelf:
    """The collections of all models in a database."""

    def __init__(self, store: MilvusStore) -> None:
        """Connect to Milvus. Raise ConfigError if nothing usable answers."""
        self._sequences = Sequences()
        self._collections: dict[str, CaseCollection] = {}
        with ExitStack() as cleanup:
            self._client = cleanup.enter_context(connect(store))
            for name in list_fingerprints(self._client):
                if (collection := open_collection(self._client, name)) is not None:
                    collection.load()
                    self._collections[name] = collection
            self._cleanup = cleanup.pop_all()

    def list_models(self) -> list[str]:
        """Return the fingerprints of the models that have cases."""
        return list(self._collections)

    def count(self, model: str) -> int:
        """Return the number of rows of a model, damaged ones included."""
        collection = self._collections.get(model)
        return collection.count() if collection else 0

    def read(
        self, model: str, size: int
    ) -> Iterator[tuple[list[CaseRecord], NDArray[np.float32], list[str]]]:
        """Yield the intact cases of a model in the order of their ids, in batches of at most `size`."""
        last = ""
        while rows := self._collections[model].read_after(last, size):
            last = rows[-1].id
            stored = [row.stored for row in rows if row.stored is not None]
            if stored:
                yield (
                    [row.record for row in stored],
                    np.stack([row.embedding for row in stored]),
                    [row.checksum for row in stored],
                )

    def find(self, model: str, ids: Sequence[str]) -> dict[str, str]:
        """Return id -> checksum of those cases that are stored and intact."""
        if (collection := self._collections.get(model)) is None:
            return {}
        return {row.id: row.stored.checksum for row in collection.read(ids) if row.stored is not None}

    def write(self, model: str, records: Sequence[CaseRecord], embeddings: NDArray[np.float32]) -> None:
        """Store cases. Raise InputError if Milvus cannot hold one of them, or they have another dimension."""
        require_storable(records)
        if (collection := self._collections.get(model)) is None:
            collection = create_collection(self._client, model, embeddings.shape[1])
            self._collections[model] = collection
        require_dimension(embeddings.shape[1], collection.dimension)
        collection.upsert(write_rows(model, records, embeddings, self._sequences.take(len(records))))

    def close(self) -> None:
        """End the connection."""
        self._cleanup.close()
