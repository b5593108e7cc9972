"""Exact cosine search over cases, with FAISS on CPU or GPU; answers are the same on both. `retrieval.kind_index`
adds kinds that are not exact.

FAISS proposes candidates: by codes of 8 bits with a proven bound (`retrieval.codes`), or by its scores in float32,
whose rounding errors depend on the batch size. The candidates' scores are computed again in double precision: equal
embeddings have equal scores, ties are in the order of the case ids, and a result never depends on other queries of the
batch, nor on how its candidates were found.

A row of the FAISS index is never changed. Replaced and deleted cases stay in the index and are skipped.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError
from retrieval.cases import CaseVectors
from retrieval.codes import MIN_ROWS, ByteCodes, code_rows
from retrieval.diversity import count_candidates, diversify
from retrieval.rows import EVERYTHING, CaseFilter, RowTable
from retrieval.scores import bound_rounding, compute_similarities

Device = Literal["cpu", "gpu"]
DEVICES: Final[tuple[str, ...]] = get_args(Device)
_SPARE: Final = 8  # candidates beyond k in the first FAISS search
_GROWTH: Final = 4
_MAX_CANDIDATES: Final = 2**22  # of all queries of one FAISS search together: 12 bytes each
_MAX_GPU_K: Final = 2048  # FAISS refuses more on GPU
_SCORED_AT_ONCE: Final = 8192  # rows
_FEW_ROWS: Final = 1 / 8  # share of the rows; a search of fewer compares just these
# From so many queries on, FAISS multiplies matrices. Its own threshold (128,000 in 1.15) keeps it from that, and a
# batch of 32 then takes four times as long (docs/benchmarks.md). With fewer queries its threads wait for each other.
_BLAS_FROM: Final = 16
# From so many queries with the same filter on, products of matrices are faster than reading the codes for each query.
# On a machine that other programs use too, they are not with 32: each waits for the slowest of its threads.
_SCAN_FROM: Final = 64


@dataclass(frozen=True)
class Query:
    """A query for the k cases nearest to an embedding.

    Attributes:
        embedding: (D,) float32 of unit length.
        k: Largest number of cases, at least 1.
        filter: The cases that count.
        min_score: Smallest cosine similarity of a match, -1 to 1.
        diversity: 0 for the nearest cases; up to 1 for cases that differ from each other (`retrieval.diversity`).
    """

    embedding: NDArray[np.float32] = field(repr=False)
    k: int
    filter: CaseFilter = EVERYTHING
    min_score: float = -1.0
    diversity: float = 0.0

    @property
    def depth(self) -> int:
        """Number of nearest cases that the answer is chosen from."""
        return count_candidates(self.k) if self.diversity else self.k


@dataclass(frozen=True)
class Match:
    """A version of a case in the store, and its cosine similarity to the query, -1 to 1."""

    sequence: int
    score: float


class Matches(list[Match]):
    """The matches of one query. `is_exact`: every case that the filter allows was compared, so none is missed."""

    def __init__(self, matches: Iterable[Match], *, is_exact: bool) -> None:
        """Take the matches, best first."""
        super().__init__(matches)
        self.is_exact = is_exact


@dataclass(frozen=True)
class IndexFacts:
    """What an index holds.

    Attributes:
        kind: How it searches, in words.
        rows: Number of cases that a search may return.
        approximate_rows: Number of them that are searched approximately.
        vector_bytes: Memory of the embeddings; 0 if they are in a file.
        code_bytes: Memory of the codes, of lists and graph too; 0 without them.
        file_bytes: Size of the embeddings in a file.
        rows_by_kind: What embeddings were made from -> number of cases; "" where nobody stated it.
    """

    kind: str = "flat"
    rows: int = 0
    approximate_rows: int = 0
    vector_bytes: int = 0
    code_bytes: int = 0
    file_bytes: int = 0
    rows_by_kind: dict[str, int] = field(default_factory=dict)


class FlatIndex:
    """Finds the nearest of all embeddings. Only one thread at a time may use it."""

    def __init__(self, device: Device = "cpu", *, codes: bool = True) -> None:
        """Make an empty index.

        Args:
            device: Where FAISS searches.
            codes: Whether to keep codes of 8 bits beside the embeddings, on CPU: a quarter more memory, and a single
                query takes a fraction of the time.

        Raises:
            ConfigError: FAISS is not installed, or `device` is "gpu" and FAISS finds no GPU.
        """
        self._device = device
        self._faiss, self._resources = load_faiss(device)
        self._index: Any = None  # until the first case sets the dimension
        self._rows = RowTable()
        self._keeps_codes = codes and device == "cpu"
        self._codes: ByteCodes | None = None  # until there are `MIN_ROWS` rows
        self._coded_first = 0  # rows when mean and step of the codes were chosen

    def __len__(self) -> int:
        return self._rows.alive_count

    @property
    def dimension(self) -> int:
        """D, or 0 before the first case."""
        return 0 if self._index is None else int(self._index.d)

    @property
    def is_wasteful(self) -> bool:
        """Whether so many rows are skipped that the index should be rebuilt."""
        return self._rows.is_wasteful

    @property
    def facts(self) -> IndexFacts:
        """What the index holds now."""
        return IndexFacts(
            kind="flat" if self._codes is None else "flat, 8-bit codes",
            rows=len(self),
            vector_bytes=4 * len(self._rows) * self.dimension,
            code_bytes=0 if self._codes is None else self._codes.byte_count,
            rows_by_kind=self._rows.count_kinds(),
        )

    @staticmethod
    def limit_threads(count: int) -> None:
        """Let searches of the calling thread use this many OpenMP threads (CPU only)."""
        faiss, _ = load_faiss("cpu")
        faiss.omp_set_num_threads(count)

    def put(self, cases: CaseVectors) -> None:
        """Add cases. A case replaces the one with the same id."""
        if self._index is None:
            self._index = self._make_index(cases.embeddings.shape[1])
        embeddings = np.ascontiguousarray(cases.embeddings, dtype=np.float32)
        self._index.add(embeddings)
        self._rows.append(cases)
        self._put_codes(embeddings)

    def remove(self, ids: Iterable[str]) -> None:
        """Remove cases; unknown ids are ignored."""
        self._rows.remove(ids)

    def remove_versions(self, sequences: Collection[int]) -> None:
        """Remove the cases whose rows in the store have these numbers."""
        if sequences:
            self._rows.remove_versions(sequences)

    def search(self, queries: Sequence[Query]) -> list[Matches]:
        """Return for each query its min(k, allowed cases) nearest cases, best first, ties by case id.

        With a `diversity`, they are ordered as they were chosen.
        """
        results = [Matches([], is_exact=True) for _ in queries]
        if not len(self):
            return results
        groups: dict[tuple[CaseFilter, int], list[int]] = {}
        for number, query in enumerate(queries):
            groups.setdefault((query.filter, query.depth), []).append(number)
        for (wanted, depth), numbers in groups.items():
            allowed = self._rows.allow(wanted)
            part = [queries[number] for number in numbers]
            found, is_exact = self._find(part, depth, allowed)
            for number, rows in zip(numbers, found, strict=True):
                results[number] = Matches(self._answer(queries[number], rows), is_exact=is_exact)
        return results

    def _find(
        self, queries: Sequence[Query], depth: int, allowed: NDArray[np.bool_] | None
    ) -> tuple[list[NDArray[np.int64]], bool]:
        """Return for each query rows that hold its `depth` best allowed ones, and whether this is certain."""
        return self._find_exact(queries, depth, allowed), True

    def _find_exact(
        self, queries: Sequence[Query], depth: int, allowed: NDArray[np.bool_] | None
    ) -> list[NDArray[np.int64]]:
        embeddings = np.stack([query.embedding for query in queries])
        kept = 1.0
        if allowed is not None:
            count = int(np.count_nonzero(allowed))
            if self._are_few(count, depth):
                return [np.flatnonzero(allowed)] * len(queries)
            kept = count / len(allowed)
        found: list[NDArray[np.int64] | None] = [None] * len(queries)
        if self._codes is not None and kept * len(queries) < _SCAN_FROM:
            found = self._codes.find(embeddings, depth, allowed)
        rest = [number for number, rows in enumerate(found) if rows is None]
        scanned = dict(zip(rest, self._scan(embeddings[rest], depth, allowed, kept), strict=True))
        return [scanned[number] if rows is None else rows for number, rows in enumerate(found)]

    def _are_few(self, count: int, depth: int) -> bool:
        """Whether a filter allows so few rows that it is best to compare just these with each query."""
        return count <= 2 * depth or (self._codes is None and count <= _FEW_ROWS * len(self._rows))

    def _scan(
        self, embeddings: NDArray[np.float32], depth: int, allowed: NDArray[np.bool_] | None, kept: float
    ) -> list[NDArray[np.int64]]:
        """Compare every row in float32. A query with too few candidates left is repeated with more.

        `kept` is the share of the rows that are allowed.
        """
        results: dict[int, NDArray[np.int64]] = {}
        size, left = self._limit(int((depth + _SPARE) / kept)), list(range(len(embeddings)))
        while left:
            for part in self._split(left, size):
                for number, scores, rows in zip(part, *self._propose(embeddings[part], size), strict=True):
                    chosen = self._choose(depth, allowed, scores, rows)
                    if chosen is not None:
                        results[number] = chosen
            left = [number for number in left if number not in results]
            size = self._limit(size * _GROWTH)
        return [results[number] for number in range(len(embeddings))]

    def _choose(
        self,
        depth: int,
        allowed: NDArray[np.bool_] | None,
        scores: NDArray[np.float32],
        rows: NDArray[np.int64],
    ) -> NDArray[np.int64] | None:
        """Select the rows among FAISS's candidates; None if a better row may be beyond them."""
        best, best_rows = (scores, rows) if allowed is None else (scores[allowed[rows]], rows[allowed[rows]])
        margin = bound_rounding(self.dimension)
        is_all = len(rows) == len(self._rows)
        if not is_all and (len(best) < depth or scores[-1] >= best[depth - 1] - margin):
            return None
        if not len(best):
            return best_rows
        kept: NDArray[np.int64] = best_rows[best >= best[min(depth, len(best)) - 1] - margin]
        return kept

    def _answer(self, query: Query, rows: NDArray[np.int64]) -> list[Match]:
        """Score the candidates exactly and return the best."""
        ranked = self._rank(query.embedding, self._thin_out(query.embedding, rows, query.depth))[
            : query.depth
        ]
        ranked = [(score, row) for score, row in ranked if score >= query.min_score]
        if query.diversity:
            vectors = self._read(np.array([row for _, row in ranked], dtype=np.int64))
            scores = np.array([score for score, _ in ranked])
            ranked = [ranked[place] for place in diversify(scores, vectors, query.k, query.diversity)]
        return [Match(self._rows.sequences[row], score) for score, row in ranked]

    def _thin_out(
        self, embedding: NDArray[np.float32], rows: NDArray[np.int64], depth: int
    ) -> NDArray[np.int64]:
        """Leave out rows whose scores in float32 are too low to be among the best."""
        if len(rows) <= 2 * depth + _SPARE:
            return rows
        # Not a product of matrices: its threads would cost more than they save on a few hundred rows.
        scores = np.concatenate([np.einsum("ij,j->i", self._read(part), embedding) for part in _cut(rows)])
        least = np.partition(scores, len(scores) - depth)[len(scores) - depth] - bound_rounding(
            self.dimension
        )
        kept: NDArray[np.int64] = rows[scores >= least]
        return kept

    def _rank(self, embedding: NDArray[np.float32], rows: NDArray[np.int64]) -> list[tuple[float, int]]:
        """Return (score, row), best first, ties by case id."""
        if not len(rows):
            return []
        ids = self._rows.ids
        scored = zip(self._score(embedding, rows).tolist(), rows.tolist(), strict=True)
        return sorted(scored, key=lambda entry: (-entry[0], ids[entry[1]]))

    def _score(self, embedding: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Compute cosine similarities, (len(rows),). Each one depends only on its two embeddings."""
        return np.concatenate([compute_similarities(embedding, self._read(part)) for part in _cut(rows)])

    def _read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return embeddings, (len(rows), D)."""
        vectors: NDArray[np.float32] = self._index.reconstruct_batch(rows)
        return vectors

    def _propose(
        self, embeddings: NDArray[np.float32], size: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Ask FAISS for the nearest `size` rows of each query, best first: two (Q, size) arrays."""
        index = self._index
        if self._device == "gpu" and size > _MAX_GPU_K:
            index = self._faiss.index_gpu_to_cpu(index)  # slow, but equally exact and rarely needed
        self._faiss.cvar.distance_compute_blas_threshold = _BLAS_FROM  # `retrieval.parts` has another one
        scores, rows = index.search(np.ascontiguousarray(embeddings), size)
        return scores, rows

    def _put_codes(self, embeddings: NDArray[np.float32]) -> None:
        """Code new rows; choose mean and step when there are enough rows, and again when too many do not fit."""
        count = len(self._rows)
        if self._codes is not None:
            self._codes.add(embeddings)
            if not self._codes.is_unfit or count < 2 * self._coded_first:
                return
        elif not self._keeps_codes or count < MIN_ROWS:
            return
        self._codes = None  # two sets of codes may not fit into memory
        self._codes, self._coded_first = code_rows(self._faiss, self._index), count

    def _limit(self, size: int) -> int:
        """Round up to a power of two, so that a repeated search asks for enough; at most the number of rows."""
        return min(1 << (size - 1).bit_length(), len(self._rows))

    def _make_index(self, dimension: int) -> Any:
        index = self._faiss.IndexFlatIP(dimension)
        return self._faiss.index_cpu_to_gpu(self._resources, 0, index) if self._device == "gpu" else index

    @staticmethod
    def _split(numbers: list[int], size: int) -> Iterator[list[int]]:
        step = max(1, _MAX_CANDIDATES // size)
        for start in range(0, len(numbers), step):
            yield numbers[start : start + step]


def _cut(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return np.split(rows, range(_SCORED_AT_ONCE, len(rows), _SCORED_AT_ONCE))


def require_kind(name: str) -> None:
    """Raise ConfigError if the installed FAISS lacks a kind of `retrieval.kinds`."""
    faiss, _ = load_faiss("cpu")
    if name == "rabitq" and not hasattr(faiss, "IndexIVFRaBitQ"):
        raise ConfigError(
            f"The installed FAISS {faiss.__version__} has no RaBitQ: pip install --upgrade faiss-cpu, or choose "
            "another --index."
        )


def load_faiss(device: Device) -> tuple[Any, Any]:
    """Return the FAISS module and, on GPU, the resources for an index."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            f"FAISS is not installed: pip install 'cxr-serving[retrieval,faiss-{device}]'."
        ) from error
    if device == "cpu":
        faiss.cvar.distance_compute_blas_threshold = _BLAS_FROM  # of this process
        return faiss, None
    if not hasattr(faiss, "StandardGpuResources"):
        raise ConfigError(
            "The installed FAISS has no GPU support: pip install 'cxr-serving[faiss-gpu]' in its place, "
            "or choose --device cpu."
        )
    if faiss.get_num_gpus() < 1:
        raise ConfigError("FAISS finds no GPU. Check nvidia-smi, or choose --device cpu.")
    return faiss, faiss.StandardGpuResources()
