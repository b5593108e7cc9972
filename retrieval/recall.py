"""How many of the nearest cases an approximate part finds, measured on the stored embeddings themselves.

The queries are a seeded sample of the cases, each without itself. A filter is imitated by the cases that are most
similar to one case, because cases with the same label are similar to each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.parts import FEW_ROWS, SEED, Part, Stop
from retrieval.vector_file import VectorFile

K: Final = 10
SHARES: Final = (1.0, 0.1, 0.01)  # of the cases that a filter keeps; 1 is no filter
_QUERIES: Final = 200
_BLOCK: Final = 16_384  # rows
_TIE: Final = 1e-6  # equal cases are equally right


@dataclass(frozen=True)
class Recall:
    """Share of the 10 nearest cases that were found, 0 to 1, for each share of the cases that a filter keeps."""

    by_share: Mapping[float, float] = field(default_factory=dict)

    @property
    def lowest(self) -> float:
        """The smallest of them; 1 if nothing was measured."""
        return min(self.by_share.values(), default=1.0)

    def __str__(self) -> str:
        names = {1.0: "without a filter", 0.1: "with 10 % of the cases", 0.01: "with 1 %"}
        return ", ".join(f"{value:.3f} {names[share]}" for share, value in self.by_share.items())


@dataclass(frozen=True)
class _Truth:
    """Queries, their own rows, which rows count, and the score of each query's K-th best row."""

    rows: NDArray[np.int64]
    queries: NDArray[np.float32]
    allowed: NDArray[np.bool_]
    least: NDArray[np.float32]


def measure_recall(part: Part, vectors: VectorFile, alive: NDArray[np.bool_], stop: Stop) -> Recall:
    """Measure the recall@10 of a part on its own rows.

    Args:
        part: It holds the first rows of `vectors`.
        vectors: The embeddings.
        alive: (rows,) bool, the rows that count.
        stop: Called every few seconds.
    """
    found = {}
    for truth, share in zip(_find_truth(vectors, alive, stop), SHARES, strict=False):
        stop()
        hits = [_count_hits(part, vectors, truth, place) for place in range(len(truth.rows))]
        found[share] = float(np.mean(hits))
    return Recall(found)


def _find_truth(vectors: VectorFile, alive: NDArray[np.bool_], stop: Stop) -> list[_Truth]:
    """Compare all rows; return what is right for each share that has enough rows."""
    generator = np.random.default_rng(SEED)
    living = np.flatnonzero(alive)
    if len(living) <= K:
        return []
    rows = np.sort(generator.choice(living, min(_QUERIES, len(living)), replace=False))
    centres = generator.choice(living, len(SHARES) - 1)
    queries = vectors.read(rows)
    near = _score(vectors, vectors.read(centres), len(alive))
    masks = [alive]
    for share, scores in zip(SHARES[1:], near, strict=True):
        kept = round(share * len(living))
        if kept <= K:
            break
        least = np.partition(scores[living], len(living) - kept)[len(living) - kept]
        masks.append(alive & (scores >= least))
    best = np.full((len(masks), len(rows), K), -np.inf, np.float32)
    for start in range(0, len(alive), _BLOCK):
        stop()
        stop_row = min(start + _BLOCK, len(alive))
        scores = queries @ vectors.view(start, stop_row).T
        own = np.flatnonzero((rows >= start) & (rows < stop_row))
        scores[own, rows[own] - start] = -np.inf
        for number, mask in enumerate(masks):
            kept_scores = scores[:, mask[start:stop_row]]
            both = np.concatenate([best[number], kept_scores], axis=1)
            best[number] = np.partition(both, both.shape[1] - K, axis=1)[:, -K:]
    return [_Truth(rows, queries, mask, best[number].min(axis=1)) for number, mask in enumerate(masks)]


def _score(vectors: VectorFile, queries: NDArray[np.float32], count: int) -> list[NDArray[np.float32]]:
    blocks = [
        vectors.view(start, min(start + _BLOCK, count)) @ queries.T for start in range(0, count, _BLOCK)
    ]
    return list(np.concatenate(blocks).T)


def _count_hits(part: Part, vectors: VectorFile, truth: _Truth, place: int) -> float:
    """Return the share of the nearest rows that one query found."""
    query, own = truth.queries[place], truth.rows[place]
    rows = find_rows(part, query[None], K + 1, truth.allowed)[0][0]
    scores = vectors.read(rows[rows != own]) @ query
    return min(int(np.count_nonzero(scores >= truth.least[place] - _TIE)), K) / K


def find_rows(
    part: Part, embeddings: NDArray[np.float32], depth: int, allowed: NDArray[np.bool_] | None
) -> tuple[Sequence[NDArray[np.int64]], bool]:
    """Return for each query its candidates, and whether they are all allowed rows, because these are few."""
    if allowed is not None:
        count = np.count_nonzero(allowed)
        if count == len(allowed):
            allowed = None
        elif count <= max(FEW_ROWS, 2 * depth):
            return [np.flatnonzero(allowed)] * len(embeddings), True
    return part.find(embeddings, depth, allowed), False
