"""Exact answers from the candidates that Milvus proposes.

Milvus compares every case (FLAT) in float32, with ties in any order. As in `retrieval.index`, it is asked for more
cases than needed, their scores are computed again in double precision, and ties are put in the order of the ids. A
query whose last candidate may tie with one beyond it is asked again for more.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.diversity import diversify
from retrieval.index import Query
from retrieval.rows import CaseFilter
from retrieval.scores import bound_rounding, compute_similarities

MAX_CANDIDATES: Final = 16_384  # that Milvus returns for a query
_ANSWER_BYTES: Final = 64 * 2**20  # of embeddings in one answer of Milvus
_SPARE: Final = 8  # candidates beyond those that are needed
_GROWTH: Final = 4


@dataclass(frozen=True)
class Candidates:
    """The nearest N cases of one query as Milvus ranks them, best first.

    `scores` is (N,) float32, `vectors` (N, D) float32 of unit length; `sequences` are the numbers of their versions.
    """

    ids: list[str] = field(repr=False)
    sequences: list[int]
    scores: NDArray[np.float32] = field(repr=False)
    vectors: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True)
class Version:
    """A version of a case that answers a query, and its cosine similarity, -1 to 1."""

    id: str = field(repr=False)
    sequence: int
    score: float


Propose = Callable[[NDArray[np.float32], int, CaseFilter], list[Candidates]]


def find_nearest(propose: Propose, queries: Sequence[Query]) -> list[list[Version]]:
    """Return for each query its nearest cases, as `retrieval.index.FlatIndex.search` would.

    Among more than 16,000 cases with the same score, it is Milvus that chooses.

    Args:
        propose: Asks Milvus: embeddings (N, D), the largest number of candidates of each, a filter -> N `Candidates`.
        queries: Queries of the same dimension.
    """
    groups: dict[tuple[CaseFilter, int], list[int]] = {}
    for number, query in enumerate(queries):
        groups.setdefault((query.filter, query.depth), []).append(number)
    results: dict[int, list[Version]] = {}
    for (wanted, depth), numbers in groups.items():
        limit = _limit_size(depth, len(queries[0].embedding))
        size, left = min(depth + _SPARE, limit), numbers
        while left:
            for part in _split(left, size, len(queries[0].embedding)):
                embeddings = np.stack([queries[number].embedding for number in part])
                for number, candidates in zip(part, propose(embeddings, size, wanted), strict=True):
                    if size == limit or _are_enough(candidates, depth, size):
                        results[number] = _answer(queries[number], candidates)
            left = [number for number in left if number not in results]
            size = min(size * _GROWTH, limit)
    return [results[number] for number in range(len(queries))]


def _are_enough(candidates: Candidates, depth: int, size: int) -> bool:
    """Whether no case beyond the candidates can be among the best `depth`."""
    scores = candidates.scores
    if len(scores) < size:
        return True
    return bool(scores[-1] < scores[depth - 1] - bound_rounding(candidates.vectors.shape[1]))


def _answer(query: Query, candidates: Candidates) -> list[Version]:
    """Score the candidates exactly and return the best."""
    scores = compute_similarities(query.embedding, candidates.vectors).tolist()
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], candidates.ids[place]))
    order = [place for place in order[: query.depth] if scores[place] >= query.min_score]
    if query.diversity:
        ranked = np.array([scores[place] for place in order])
        chosen = diversify(ranked, candidates.vectors[order], query.k, query.diversity)
        order = [order[place] for place in chosen]
    return [Version(candidates.ids[place], candidates.sequences[place], scores[place]) for place in order]


def _limit_size(depth: int, dimension: int) -> int:
    """Return the largest number of candidates that a query is asked for: what Milvus and a message can hold."""
    return max(depth + _SPARE, min(MAX_CANDIDATES, _ANSWER_BYTES // (4 * dimension)))


def _split(numbers: list[int], size: int, dimension: int) -> Iterator[list[int]]:
    step = max(1, _ANSWER_BYTES // (4 * dimension * size))
    for start in range(0, len(numbers), step):
        yield numbers[start : start + step]
