"""Cosine similarities whose value depends on nothing but the two embeddings."""

import numpy as np
from numpy.typing import NDArray

from retrieval.codes import FINAL_ROUNDING


def compute_similarities(embedding: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the similarities of N embeddings, (N, D) float32 of unit length, to one, (D,) float32; -1 to 1."""
    # A product of two float32 is exact in float64. A matrix product would sum in a varying order.
    sums = (vectors.astype(np.float64) * embedding.astype(np.float64)).sum(axis=1)
    similarities: NDArray[np.float32] = np.clip(sums, -1.0, 1.0).astype(np.float32)
    return similarities


def bound_rounding(dimension: int) -> float:
    """Return the largest rounding error of the difference of two float32 inner products of unit vectors.

    Each one has an error of at most D * 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2002,
    section 3.1), so the difference has twice that.
    """
    return float(dimension * 2.0**-23 + FINAL_ROUNDING)
