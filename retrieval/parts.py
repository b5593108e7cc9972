"""The approximate part of an index: FAISS proposes rows by codes. It is trained once, and rows may be added later.

A filter must not cost cases. Where it keeps few rows, the caller compares these (`FEW_ROWS`). Otherwise FAISS looks at
allowed rows only, and at as many of them as it looks at all rows without a filter: more lists are read, of those that
hold allowed rows, or more of the graph. A search that finds too few rows is repeated with more.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from retrieval.kinds import KindChoice, describe_kind, pad_dimension
from retrieval.vector_file import VectorFile

FEW_ROWS: Final = 2048  # so many are compared faster than lists are searched
SEED: Final = 20_261_128
_LEAST_CANDIDATES: Final = 100
_GROWTH: Final = 4
_MOST_ALLOWED: Final = 0.5  # of the rows; with more, each list has allowed rows, and the lists need no choice
_ROUNDS: Final = 10  # of k-means
_ROWS_PER_LIST: Final = 50  # that the lists are trained on
_ROWS_PER_CODEBOOK: Final = 8192
_ADDED_AT_ONCE: Final = 4096
# FAISS multiplies matrices to compare queries with the centres only where their product has so many values, as it does
# by itself. For one query, the threads of a product cost a hundred times what they save (`retrieval.index` wants them).
_MATRICES_FROM: Final = 128_000

Stop = Callable[[], None]  # raises an error when the work should stop


class Part(ABC):
    """An approximate index over the first rows of an index. Only one thread at a time may use it."""

    def __init__(self, faiss: Any, index: Any, choice: KindChoice, parameters: Mapping[str, int]) -> None:
        """Take a trained FAISS index of the padded dimension, without rows."""
        self._faiss = faiss
        self._index = index
        self._rotation: Any = None
        self._parameters = parameters
        self.name = describe_kind(choice.kind.name, parameters)
        self.trained_count = 0  # rows when it was trained

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    @abstractmethod
    def byte_count(self) -> int:
        """Bytes of codes, lists and graph."""

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Add rows, (N, D) float32, after the present ones."""
        self._index.add(self.prepare(vectors))

    def prepare(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return vectors as the codes need them: padded with zeros, and rotated if the kind rotates."""
        return _prepare(vectors, self._index.d, self._rotation)

    def find(
        self, embeddings: NDArray[np.float32], depth: int, allowed: NDArray[np.bool_] | None
    ) -> list[NDArray[np.int64]]:
        """Return for each query rows among which its `depth` nearest allowed ones should be.

        Args:
            embeddings: (Q, D) float32.
            depth: At least 1.
            allowed: (rows,) bool, at least one is True; None for all.

        Returns:
            For each query at least min(depth, allowed rows) different rows.
        """
        count = len(self) if allowed is None else int(np.count_nonzero(allowed))
        wanted = min(max(self._parameters["refine"] * depth, _LEAST_CANDIDATES), count)
        queries = self.prepare(embeddings)
        found: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(queries)
        left, effort = list(range(len(queries))), 1
        while left:
            rows = self._propose(queries[left], wanted, allowed, effort)
            for number, some in zip(left, rows, strict=True):
                found[number] = some[some >= 0]
            left = [number for number in left if len(found[number]) < min(depth, count)]
            if effort > len(self):  # a graph of many equal embeddings has parts that no link leads to
                rest = np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
                found = [rest if number in left else rows for number, rows in enumerate(found)]
                break
            effort *= _GROWTH
        return found

    @abstractmethod
    def _propose(
        self, queries: NDArray[np.float32], size: int, allowed: NDArray[np.bool_] | None, effort: int
    ) -> NDArray[np.int64]:
        """Return (Q, size) rows, -1 where there are too few; all rows are looked at if `effort` is large."""


class ListPart(Part):
    """Embeddings in lists of near ones."""

    def __init__(self, faiss: Any, index: Any, choice: KindChoice, parameters: Mapping[str, int]) -> None:
        """Take a trained FAISS index, without rows."""
        super().__init__(faiss, index, choice, parameters)
        if choice.kind.rotates:
            self._rotation = _make_rotation(faiss, index.d)
        self._list_of = np.zeros(0, np.int32)
        is_rabitq = hasattr(faiss, "IndexIVFRaBitQ") and isinstance(index, faiss.IndexIVFRaBitQ)
        self._options = faiss.IVFRaBitQSearchParameters if is_rabitq else faiss.SearchParametersIVF

    @property
    def byte_count(self) -> int:
        """Bytes of codes, row numbers, list numbers and centres."""
        lists = len(self) * (int(self._index.code_size) + 8)
        rotation = 0 if self._rotation is None else 4 * self._index.d**2
        centres = 4 * int(self._index.nlist) * int(self._index.d)
        return lists + self._list_of.nbytes + centres + int(rotation)

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Add rows, (N, D) float32, after the present ones."""
        knows_lists = len(self) > 0 and len(self._list_of) == len(self)
        super().add(vectors)
        if knows_lists:
            lists = self._index.quantizer.search(self.prepare(vectors), 1)[1][:, 0]
            self._list_of = np.concatenate([self._list_of, lists.astype(np.int32)])

    def _propose(
        self, queries: NDArray[np.float32], size: int, allowed: NDArray[np.bool_] | None, effort: int
    ) -> NDArray[np.int64]:
        self._faiss.cvar.distance_compute_blas_threshold = _MATRICES_FROM
        probes = effort * self._parameters["probes"]
        if allowed is None:
            options = self._options(nprobe=min(probes, self._index.nlist))
            return np.asarray(self._index.search(queries, size, params=options)[1])
        rows, lists = self._select(allowed), None
        if np.count_nonzero(allowed) <= _MOST_ALLOWED * len(self):
            probes, lists = self._choose_lists(allowed, probes)
        else:
            probes = min(2 * probes, self._index.nlist)
        options = self._options(nprobe=probes, sel=rows.selector)
        if lists is not None:
            options.quantizer_params = lists.options
        return np.asarray(self._index.search(queries, size, params=options)[1])

    def _choose_lists(self, allowed: NDArray[np.bool_], probes: int) -> tuple[int, "_Selection"]:
        """Return how many lists to read so that as many allowed rows are seen as rows without a filter."""
        self._learn_lists()
        counts = np.bincount(self._list_of[np.flatnonzero(allowed)], minlength=self._index.nlist)
        filled = counts > 0
        total = int(np.count_nonzero(filled))
        needed = -(-probes * len(self) * total // (self._index.nlist * int(counts.sum())))
        return min(needed, total), self._select(filled)

    def _learn_lists(self) -> None:
        """Find the list of each row, once; `add` goes on from there."""
        if len(self._list_of) == len(self):
            return
        lists = np.zeros(len(self), np.int32)
        for number in range(self._index.nlist):
            size = self._index.invlists.list_size(number)
            if size:
                ids = self._index.invlists.get_ids(number)
                lists[self._faiss.rev_swig_ptr(ids, size)] = number
                self._index.invlists.release_ids(number, ids)
        self._list_of = lists

    def _select(self, chosen: NDArray[np.bool_]) -> "_Selection":
        return _Selection(self._faiss, chosen)


class GraphPart(Part):
    """A graph of near neighbours (HNSW)."""

    @property
    def byte_count(self) -> int:
        """Bytes of codes and graph."""
        graph = self._index.hnsw
        codes = self._faiss.downcast_index(self._index.storage).code_size
        links = 4 * graph.neighbors.size() + 8 * graph.offsets.size() + 4 * graph.levels.size()
        return int(links + len(self) * codes)

    def _propose(
        self, queries: NDArray[np.float32], size: int, allowed: NDArray[np.bool_] | None, effort: int
    ) -> NDArray[np.int64]:
        if allowed is None:
            options = self._faiss.SearchParametersHNSW(efSearch=self._limit(effort, size, 1.0))
            return np.asarray(self._index.search(queries, size, params=options)[1])
        rows = _Selection(self._faiss, allowed)
        kept = np.count_nonzero(allowed) / len(allowed)
        options = self._faiss.SearchParametersHNSW(
            efSearch=self._limit(effort, size, kept), sel=rows.selector
        )
        return np.asarray(self._index.search(queries, size, params=options)[1])

    def _limit(self, effort: int, size: int, kept: float) -> int:
        wanted = effort * max(self._parameters["ef"], size) / kept
        return min(int(wanted), len(self))


class _Selection:
    """FAISS's selector for the marked numbers, and what must live as long as it."""

    def __init__(self, faiss: Any, chosen: NDArray[np.bool_]) -> None:
        self._bits = np.packbits(chosen, bitorder="little")
        self.selector = faiss.IDSelectorBitmap(self._bits)
        self.options = faiss.SearchParameters(sel=self.selector)


def train_part(faiss: Any, choice: KindChoice, vectors: VectorFile, count: int, stop: Stop) -> Part:
    """Train a kind on the first rows of a file and add them. The same rows give the same part.

    Args:
        faiss: The FAISS module.
        choice: The kind, not flat.
        vectors: The embeddings.
        count: Number of rows, at least 1.
        stop: Called every few seconds.

    Raises:
        RuntimeError: FAISS does not know the kind or its parameters.
    """
    parameters = choice.resolve(count, vectors.dimension)
    dimension = pad_dimension(vectors.dimension)
    index = faiss.index_factory(
        dimension, choice.kind.storage.format(**parameters), faiss.METRIC_INNER_PRODUCT
    )
    part: Part
    if choice.kind.has_lists:
        part = ListPart(faiss, index, choice, parameters)
        _train_lists(faiss, index, part.prepare(_sample(vectors, count, index.nlist * _ROWS_PER_LIST)), stop)
    else:
        index.hnsw.efConstruction = parameters["effort"]
        part = GraphPart(faiss, index, choice, parameters)
        faiss.omp_set_num_threads(1)  # several threads would link the cases in an order of chance
        index.train(part.prepare(_sample(vectors, count, _ROWS_PER_CODEBOOK)))
    step = _ADDED_AT_ONCE if choice.kind.has_lists else _ADDED_AT_ONCE // 16
    for start in range(0, count, step):
        stop()
        part.add(vectors.view(start, min(start + step, count)))
    part.trained_count = count
    return part


def _train_lists(faiss: Any, index: Any, sample: NDArray[np.float32], stop: Stop) -> None:
    """Find the centres of the lists by spherical k-means, one round at a time, and train the codes."""
    centres = None
    for _ in range(_ROUNDS):
        stop()
        means = faiss.Kmeans(
            index.d,
            index.nlist,
            niter=1,
            seed=SEED,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=2 * _ROWS_PER_LIST,
        )
        means.train(sample, init_centroids=centres)
        centres = means.centroids
    index.quantizer.add(centres)
    if hasattr(index, "pq"):
        index.do_polysemous_training = False  # for a filter by Hamming distance, which is not used
        index.pq.cp.niter = _ROUNDS
        index.pq.cp.seed = SEED
        index.pq.cp.min_points_per_centroid = 1
        sample = sample[:: -(-len(sample) // _ROWS_PER_CODEBOOK)]
    index.train(sample)


def _sample(vectors: VectorFile, count: int, most: int) -> NDArray[np.float32]:
    """Return up to `most` of the first `count` rows, chosen by the seed."""
    if count <= most:
        return vectors.view(0, count)
    rows = np.random.default_rng(SEED).choice(count, most, replace=False)
    return vectors.read(np.sort(rows))


def _make_rotation(faiss: Any, dimension: int) -> Any:
    """Return a random rotation, which the seed decides."""
    rotation = faiss.RandomRotationMatrix(dimension, dimension)
    rotation.init(SEED)
    return rotation


def _prepare(vectors: NDArray[np.float32], dimension: int, rotation: Any) -> NDArray[np.float32]:
    """Return (N, dimension) float32: the vectors with zeros behind, rotated."""
    padded = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.shape[1] < dimension:
        padded = np.zeros((len(vectors), dimension), np.float32)
        padded[:, : vectors.shape[1]] = vectors
    return padded if rotation is None else np.asarray(rotation.apply(padded))
