"""Embeddings to search: random ones, and ones with the structure that a trained model gives."""

from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Structure = Literal["random", "mixture"]
STRUCTURES: Final[dict[Structure, str]] = {
    "random": "random: normal values in every dimension",
    "mixture": "mixture of 300 Gaussians whose variance falls with the dimension as 1 / (1 + d / 16)",
}
DIMENSION: Final = 512
_CENTRES: Final = 300
_SPREAD: Final = 0.5  # of a cluster, against the distances of the centres
_AT_ONCE: Final = 65_536  # vectors


@dataclass(frozen=True)
class Vectors:
    """`stored` is (N, D) and `queries` (Q, D) float32 of unit length, all of the same kind."""

    structure: Structure
    stored: NDArray[np.float32] = field(repr=False)
    queries: NDArray[np.float32] = field(repr=False)


def draw_vectors(structure: Structure, count: int, queries: int, seed: int) -> Vectors:
    """Draw embeddings and queries of the same distribution."""
    generator = np.random.default_rng(seed)
    scale = np.ones(DIMENSION, np.float32)
    if structure == "mixture":
        scale = (1 / np.sqrt(1 + np.arange(DIMENSION) / 16)).astype(np.float32)
    centres = generator.standard_normal((_CENTRES, DIMENSION), dtype=np.float32) * scale
    parts = []
    for start in range(0, count + queries, _AT_ONCE):
        size = min(_AT_ONCE, count + queries - start)
        drawn = generator.standard_normal((size, DIMENSION), dtype=np.float32) * scale
        if structure == "mixture":
            drawn = centres[generator.integers(_CENTRES, size=size)] + _SPREAD * drawn
        parts.append(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
    vectors = np.concatenate(parts)
    return Vectors(structure, vectors[:count], vectors[count:])
