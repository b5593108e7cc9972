"""Choose cases that are near the query and differ from each other: maximal marginal relevance.

Carbonell and Goldstein, The use of MMR, diversity-based reranking for reordering documents and producing summaries,
SIGIR 1998. With L = 1 - diversity, the next case is the one with the largest

    L <query, case> - (1 - L) max <chosen, case>        over the cases that were chosen before

among the nearest ones to the query.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_DIVERSE_K: Final = 100  # the time grows with its square
_CANDIDATES: Final = 4  # for each case of the answer
_LEAST: Final = 50


def count_candidates(k: int) -> int:
    """Return the number of nearest cases that k cases are chosen from."""
    return max(_CANDIDATES * k, _LEAST)


def diversify(
    scores: NDArray[np.float64], vectors: NDArray[np.float32], k: int, diversity: float
) -> list[int]:
    """Return the places of the chosen cases, in the order of the choice. Ties go to the first place.

    Args:
        scores: (N,), cosine similarities to the query, best first.
        vectors: (N, D) float32 of unit length.
        k: Largest number of cases.
        diversity: 0 to 1; 0 keeps the order of the scores.
    """
    left = np.arange(len(scores))
    rows = vectors.astype(np.float64)
    nearest = np.full(len(scores), -np.inf)  # largest similarity to a chosen case
    chosen: list[int] = []
    while len(left) and len(chosen) < k:
        penalty = diversity * nearest[left] if chosen else 0.0
        place = int(left[np.argmax((1 - diversity) * scores[left] - penalty)])
        chosen.append(place)
        left = left[left != place]
        nearest = np.maximum(nearest, (rows * rows[place]).sum(axis=1))
    return chosen
