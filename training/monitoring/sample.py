"""The cases of one way of reading, without ids and without texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.image.view import VIEWS

IMAGE_STATISTICS: Final[Mapping[str, str]] = {
    "grey": "mean grey of the image as the model sees it, without its black margin, 0 to 1",
    "contrast": "standard deviation of the grey, 0 to 0.5",
    "clipped": "share of pixels that are black or white, 0 to 1",
    "aspect": "width by height",
    "view": "view by the header",
}
REPORT_STATISTICS: Final[Mapping[str, str]] = {
    "tokens": "tokens that the model reads",
    "unknown": "share of the tokens that are not in the vocabulary, 0 to 1",
    "sections": "sections of the report with words, 0 to 4",
}
# Statistics that are codes: name -> the categories, in the order of the codes.
CATEGORIES: Final[Mapping[str, Sequence[str]]] = {"view": VIEWS}


@dataclass(frozen=True)
class Sample:
    """N cases that were read in one way.

    Attributes:
        probabilities: (N, K) float32, calibrated, 0 to 1, in the order of `contract.labels`.
        embeddings: (E, D) float16 of at most N cases, in another order; E is 0 if there are none.
        inputs: Name of a statistic -> (I,) float32 of at most N cases.
    """

    probabilities: NDArray[np.float32]
    embeddings: NDArray[np.float16]
    inputs: Mapping[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.probabilities)


def choose_rows(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """Return the rows of a random sample of at most `most` of `count` cases, in increasing order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def stack_inputs(rows: Sequence[Mapping[str, float]]) -> dict[str, NDArray[np.float32]]:
    """Return the statistics of several cases, all with the same names, as one array for each name."""
    names: Sequence[Any] = list(rows[0]) if rows else ()
    return {name: np.array([row[name] for row in rows], np.float32) for name in names}
