"""What Milvus is asked about the cases of one model: one collection, which is named by the model's fingerprint.

Every read is strongly consistent, so it sees every change that was acknowledged before.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.bundle import require_same_fingerprint
from contract.errors import ArtifactError
from retrieval.milvus.candidates import Candidates
from retrieval.milvus.connection import TIMEOUT_S, load_pymilvus, translate
from retrieval.milvus.expressions import join, name_ids, quote
from retrieval.milvus.rows import FIELDS, StoredRow, cut_rows, make_schema, read_row

_PREFIX: Final = "cxr_cases_"
_NAME: Final = re.compile(rf"{_PREFIX}(?P<fingerprint>[0-9a-f]{{64}})")
_FORMAT: Final = "1"
_FINGERPRINT, _DIMENSION, _FORMAT_KEY = "cxr.fingerprint", "cxr.dimension", "cxr.format"
_PART_BYTES: Final = 32 * 2**20  # of rows that are written at once; Milvus takes a message of 64 MiB
_IDS_AT_ONCE: Final = 256  # whole rows that are read at once
_NAMES_AT_ONCE: Final = 1024
_STRONG: Final = "Strong"
_COUNT: Final = "count(*)"


@dataclass(frozen=True)
class ReadRow:
    """A row that was read. `stored` is None if it differs from what was written."""

    id: str = field(repr=False)
    sequence: int
    stored: StoredRow | None = field(repr=False)


class CaseCollection:
    """The collection of one model. Thread-safe, but only one thread at a time may change it."""

    def __init__(self, client: Any, fingerprint: str, dimension: int) -> None:
        """Take a connected `pymilvus.MilvusClient` and what the collection holds."""
        self._client = client
        self.fingerprint = fingerprint
        self.dimension = dimension
        self.name = f"{_PREFIX}{fingerprint}"

    def load(self) -> None:
        """Let Milvus load the collection, so that it can be searched."""
        with translate("Loading the cases"):
            self._client.load_collection(self.name)

    def upsert(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows. A row replaces the one with its id. Many bytes go in parts."""
        with translate("Storing the cases"):
            for part in cut_rows(rows, _PART_BYTES):
                self._client.upsert(self.name, part, timeout=TIMEOUT_S)

    def delete(self, ids: Iterable[str]) -> None:
        """Delete the rows with these ids."""
        with translate("Deleting the cases"):
            for part in _cut(ids, _NAMES_AT_ONCE):
                self._client.delete(self.name, filter=name_ids(part), timeout=TIMEOUT_S)

    def drop(self) -> None:
        """Remove the collection with all its rows."""
        with translate("Removing the cases"):
            self._client.drop_collection(self.name, timeout=TIMEOUT_S)

    def find_known(self, ids: Iterable[str]) -> set[str]:
        """Return those ids that are stored."""
        known = set[str]()
        for part in _cut(sorted(set(ids)), _NAMES_AT_ONCE):
            known |= {row["id"] for row in self._query(name_ids(part), ["id"])}
        return known

    def count(self, expression: str = "") -> int:
        """Return the number of rows that an expression is true for."""
        return int(self._query(expression, [_COUNT])[0][_COUNT])

    def read(self, ids: Collection[str]) -> list[ReadRow]:
        """Return the rows with these ids. Unknown ids are left out."""
        rows: list[ReadRow] = []
        for part in _cut(ids, _IDS_AT_ONCE):
            rows += map(self._check, self._query(name_ids(part), list(FIELDS)))
        return rows

    def read_after(self, last: str, limit: int, expression: str = "") -> list[ReadRow]:
        """Return the next rows after an id that an expression is true for, at most `limit`, in the order of the ids."""
        after = f"id > {quote(last)}" if last else ""
        wanted = join(after, expression)
        with translate("Listing the cases"):
            # The first page of an iterator is in the order of the ids. It writes the next one without a literal.
            pages = self._client.query_iterator(
                self.name,
                batch_size=limit,
                limit=limit,
                filter=wanted,
                output_fields=list(FIELDS),
                timeout=TIMEOUT_S,
                consistency_level=_STRONG,
            )
            try:
                return sorted(map(self._check, pages.next()), key=lambda row: row.id)
            finally:
                pages.close()

    def propose(
        self, embeddings: NDArray[np.float32], size: int, expression: str, timeout_s: float
    ) -> list[Candidates]:
        """Return the nearest rows of N queries, (N, D) float32, that an expression is true for: at most `size` each."""
        with translate("The search"):
            answer = self._client.search(
                self.name,
                data=list(embeddings),
                anns_field="embedding",
                filter=expression,
                limit=size,
                output_fields=["sequence", "embedding"],
                search_params={"metric_type": "IP"},
                timeout=timeout_s,
                consistency_level=_STRONG,
            )
        return [self._make_candidates(hits) for hits in answer]

    def _make_candidates(self, hits: Any) -> Candidates:
        entities = [hit["entity"] for hit in hits]
        return Candidates(
            ids=[hit["id"] for hit in hits],
            sequences=[int(entity["sequence"]) for entity in entities],
            scores=np.array([hit["distance"] for hit in hits], np.float32),
            vectors=np.array([entity["embedding"] for entity in entities], np.float32).reshape(
                len(entities), self.dimension
            ),
        )

    def _check(self, row: dict[str, Any]) -> ReadRow:
        return ReadRow(row["id"], int(row["sequence"]), read_row(self.fingerprint, row))

    def _query(self, expression: str, fields: list[str]) -> list[dict[str, Any]]:
        with translate("Reading the cases"):
            rows: list[dict[str, Any]] = self._client.query(
                self.name,
                filter=expression,
                output_fields=fields,
                timeout=TIMEOUT_S,
                consistency_level=_STRONG,
            )
        return rows


def open_collection(client: Any, fingerprint: str) -> CaseCollection | None:
    """Return the collection of a model; None if there is none.

    Raises:
        FingerprintError: The collection states another model.
        ArtifactError: It states another format or dimension than it has.
    """
    name = f"{_PREFIX}{fingerprint}"
    with translate("Opening the cases"):
        if not client.has_collection(name, timeout=TIMEOUT_S):
            return None
        facts = client.describe_collection(name, timeout=TIMEOUT_S)
    stated = _read_stated(facts)
    dimension = next(
        (int(each["params"]["dim"]) for each in facts["fields"] if each["name"] == "embedding"), 0
    )
    require_same_fingerprint(
        fingerprint,
        stated.get(_FINGERPRINT, ""),
        expected_from="its name",
        found_from=f"The collection {name}",
    )
    if stated.get(_FORMAT_KEY) != _FORMAT:
        raise ArtifactError(
            f"The collection {name} has format {stated.get(_FORMAT_KEY)}, and this version reads {_FORMAT}."
        )
    if stated.get(_DIMENSION) != str(dimension):
        raise ArtifactError(
            f"The collection {name} states embeddings of {stated.get(_DIMENSION)} values and has {dimension}. "
            "Remove it and index the cases again."
        )
    return CaseCollection(client, fingerprint, dimension)


def list_fingerprints(client: Any) -> list[str]:
    """Return the fingerprints of the models that the database has a collection of, sorted."""
    with translate("Listing the collections"):
        names = client.list_collections(timeout=TIMEOUT_S)
    return sorted(found["fingerprint"] for name in names if (found := _NAME.fullmatch(name)))


def create_collection(client: Any, fingerprint: str, dimension: int) -> CaseCollection:
    """Create the collection of a model for embeddings of a dimension, and load it. One that is there stays as it is."""
    stated = {_FORMAT_KEY: _FORMAT, _FINGERPRINT: fingerprint, _DIMENSION: str(dimension)}
    collection = CaseCollection(client, fingerprint, dimension)
    index = client.prepare_index_params()
    index.add_index("embedding", index_type="FLAT", metric_type="IP")
    if (there := open_collection(client, fingerprint)) is not None:
        return there
    with translate("Creating the collection"):
        client.create_collection(
            collection.name,
            schema=make_schema(load_pymilvus(), dimension, json.dumps(stated)),
            index_params=index,
            consistency_level=_STRONG,
            properties=stated,
            timeout=TIMEOUT_S,
        )
    collection.load()
    return collection


def _read_stated(facts: dict[str, Any]) -> dict[str, str]:
    """Return what a collection states of itself: in its properties, or else in its description."""
    properties = facts.get("properties") or {}
    if _FINGERPRINT in properties:
        return dict(properties)
    try:
        stated = json.loads(facts.get("description") or "{}")
    except ValueError:
        return {}
    return stated if isinstance(stated, dict) else {}


def _cut(items: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
