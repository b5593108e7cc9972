"""Exact cosine search over cases, with FAISS on CPU or GPU; answers are the same on both.

FAISS proposes candidates. Its scores have rounding errors that depend on the batch size. So the candidates'
scores are computed again in double precision: equal embeddings have equal scores, ties are in the order of the
case ids, and a result never depends on other queries of the batch.

A row of the FAISS index is never changed. Replaced, deleted and excluded cases stay in the index and are skipped.
A query with too few hits left is repeated with more candidates.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError
from retrieval.store import CaseVectors

Device = Literal["cpu", "gpu"]
DEVICES: Final[tuple[str, ...]] = get_args(Device)
_SPARE: Final = 8  # candidates beyond k in the first FAISS search
_GROWTH: Final = 4
_MAX_CANDIDATES: Final = 2**22  # of all queries of one FAISS search together: 12 bytes each
_MAX_GPU_K: Final = 2048  # FAISS refuses more on GPU
_SCORED_AT_ONCE: Final = 8192  # rows
_SPARE_DEAD: Final = 1024


@dataclass(frozen=True)
class Query:
    """A query for the k cases nearest to `embedding`, (D,) float32 of unit length, without the excluded studies."""

    embedding: NDArray[np.float32] = field(repr=False)
    k: int
    excluded_study_ids: frozenset[str] = field(default=frozenset(), repr=False)


@dataclass(frozen=True)
class Match:
    """A version of a case in the store, and its cosine similarity to the query, -1 to 1."""

    sequence: int
    score: float


class FlatIndex:
    """Compares every embedding with every query. Only one thread at a time may use it."""

    def __init__(self, device: Device = "cpu") -> None:
        """Make an empty index.

        Raises:
            ConfigError: FAISS is not installed, or `device` is "gpu" and FAISS finds no GPU.
        """
        self._device = device
        self._faiss, self._resources = _load_faiss(device)
        self._index: Any = None  # until the first case sets the dimension
        self._ids: list[str] = []
        self._sequences: list[int] = []
        self._row_of: dict[str, int] = {}
        self._study_of: list[str] = []
        self._rows_of_study: dict[str, set[int]] = {}
        self._alive = np.zeros(0, dtype=bool)

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def dimension(self) -> int:
        """D, or 0 before the first case."""
        return 0 if self._index is None else int(self._index.d)

    @property
    def is_wasteful(self) -> bool:
        """Whether so many rows are skipped that the index should be rebuilt."""
        return len(self._ids) - len(self) > _SPARE_DEAD + len(self) // 2

    @staticmethod
    def limit_threads(count: int) -> None:
        """Let searches of the calling thread use this many OpenMP threads (CPU only)."""
        faiss, _ = _load_faiss("cpu")
        faiss.omp_set_num_threads(count)

    def put(self, cases: CaseVectors) -> None:
        """Add cases. A case replaces the one with the same id."""
        if self._index is None:
            self._index = self._make_index(cases.embeddings.shape[1])
        self._index.add(np.ascontiguousarray(cases.embeddings, dtype=np.float32))
        self._grow(len(self._ids) + len(cases.ids))
        for case_id, study_id, sequence in zip(cases.ids, cases.study_ids, cases.sequences, strict=True):
            self.remove([case_id])
            row = len(self._ids)
            self._ids.append(case_id)
            self._sequences.append(sequence)
            self._study_of.append(study_id)
            self._row_of[case_id] = row
            self._rows_of_study.setdefault(study_id, set()).add(row)
            self._alive[row] = True

    def remove(self, ids: Iterable[str]) -> None:
        """Remove cases; unknown ids are ignored."""
        for case_id in ids:
            row = self._row_of.pop(case_id, None)
            if row is None:
                continue
            self._alive[row] = False
            study = self._rows_of_study[self._study_of[row]]
            study.discard(row)
            if not study:
                del self._rows_of_study[self._study_of[row]]

    def search(self, queries: Sequence[Query]) -> list[list[Match]]:
        """Return for each query its min(k, allowed cases) nearest cases, best first, ties by case id."""
        results: list[list[Match]] = [[] for _ in queries]
        if not len(self):
            return results
        excluded = [self._find_rows(query.excluded_study_ids) for query in queries]
        sizes = {number: self._limit(query.k + _SPARE) for number, query in enumerate(queries)}
        while sizes:
            size = min(sizes.values())
            for part in self._split([number for number in sizes if sizes[number] == size], size):
                scores, rows = self._propose(np.stack([queries[number].embedding for number in part]), size)
                for number, its_scores, its_rows in zip(part, scores, rows, strict=True):
                    matches = self._choose(queries[number], excluded[number], its_scores, its_rows)
                    if matches is None:
                        sizes[number] = self._limit(size * _GROWTH)
                    else:
                        results[number] = matches
                        del sizes[number]
        return results

    def _choose(
        self,
        query: Query,
        excluded: NDArray[np.int64],
        scores: NDArray[np.float32],
        rows: NDArray[np.int64],
    ) -> list[Match] | None:
        """Select the matches from FAISS's candidates; None if a better match may be beyond them."""
        allowed = self._alive[rows] & ~np.isin(rows, excluded)
        best, best_rows = scores[allowed], rows[allowed]
        margin = self._bound_rounding()
        is_all = len(rows) == len(self._ids)
        if not is_all and (len(best) < query.k or scores[-1] >= best[query.k - 1] - margin):
            return None
        if not len(best):
            return []
        best_rows = best_rows[best >= best[min(query.k, len(best)) - 1] - margin]
        exact = self._score(query.embedding, best_rows)
        ranked = sorted(zip((-exact).tolist(), best_rows.tolist(), strict=True), key=self._rank)
        return [Match(self._sequences[row], -negative) for negative, row in ranked[: query.k]]

    def _rank(self, entry: tuple[float, int]) -> tuple[float, str]:
        return entry[0], self._ids[entry[1]]

    def _score(self, embedding: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Compute cosine similarities, (len(rows),). Each one depends only on its two embeddings."""
        # A product of two float32 is exact in float64. A matrix product would sum in a varying order.
        query = embedding.astype(np.float64)
        sums = [
            (self._index.reconstruct_batch(part).astype(np.float64) * query).sum(axis=1)
            for part in np.split(rows, range(_SCORED_AT_ONCE, len(rows), _SCORED_AT_ONCE))
        ]
        similarities: NDArray[np.float32] = np.clip(np.concatenate(sums), -1.0, 1.0).astype(np.float32)
        return similarities

    def _bound_rounding(self) -> float:
        """Return the largest rounding error of the difference of two float32 inner products of unit vectors.

        Each one has an error of at most D * 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2002,
        section 3.1), so the difference has twice that. 2^-20 allows for lengths that are not exactly 1.
        """
        return float(self.dimension * 2.0**-23 + 2.0**-20)

    def _propose(
        self, embeddings: NDArray[np.float32], size: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Ask FAISS for the nearest `size` rows of each query, best first: two (Q, size) arrays."""
        index = self._index
        if self._device == "gpu" and size > _MAX_GPU_K:
            index = self._faiss.index_gpu_to_cpu(index)  # slow, but equally exact and rarely needed
        scores, rows = index.search(np.ascontiguousarray(embeddings), size)
        return scores, rows

    def _limit(self, size: int) -> int:
        """Round up to a power of two, so that queries can share a FAISS search; at most the number of rows."""
        return min(1 << (size - 1).bit_length(), len(self._ids))

    def _find_rows(self, study_ids: frozenset[str]) -> NDArray[np.int64]:
        rows = [row for study_id in study_ids for row in self._rows_of_study.get(study_id, ())]
        return np.array(rows, dtype=np.int64)

    def _grow(self, size: int) -> None:
        if size > len(self._alive):
            longer = np.zeros(max(size, 2 * len(self._alive)), dtype=bool)
            longer[: len(self._alive)] = self._alive
            self._alive = longer

    def _make_index(self, dimension: int) -> Any:
        index = self._faiss.IndexFlatIP(dimension)
        return self._faiss.index_cpu_to_gpu(self._resources, 0, index) if self._device == "gpu" else index

    @staticmethod
    def _split(numbers: list[int], size: int) -> Iterator[list[int]]:
        step = max(1, _MAX_CANDIDATES // size)
        for start in range(0, len(numbers), step):
            yield numbers[start : start + step]


def _load_faiss(device: Device) -> tuple[Any, Any]:
    """Return the FAISS module and, on GPU, the resources for an index."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            f"FAISS is not installed: pip install 'cxr-serving[retrieval,faiss-{device}]'."
        ) from error
    if device == "cpu":
        return faiss, None
    if not hasattr(faiss, "StandardGpuResources"):
        raise ConfigError(
            "The installed FAISS has no GPU support: pip install 'cxr-serving[faiss-gpu]' in its place, "
            "or choose --device cpu."
        )
    if faiss.get_num_gpus() < 1:
        raise ConfigError("FAISS finds no GPU. Check nvidia-smi, or choose --device cpu.")
    return faiss, faiss.StandardGpuResources()
