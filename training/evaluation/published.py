"""The retrieval metrics as published for this model, for comparison with published figures.

The unit is an image: a study with two views is two queries, and two cases of a gallery. The gallery of test against
test contains the query. A query is not similar to itself, so finding it is a miss. The other view of its study, which
has the same report, is a hit. Five cases are returned.

These definitions give too optimistic figures, for several reasons:

- Two cases count as similar if they share any label, also `normal`. Most pairs of studies do, so even a random order
  has a high precision and a first hit near the top.
- nDCG compares the returned five with the best order of *these five*, not with the best five of the gallery:
  five poor cases in a fair order score as well as five good ones.
- The other view of the query's own study counts as a hit.

And one metric is hardly informative: average precision uses five cases but divides by the number of all similar cases
in the gallery, so it is near 0 for every search.

`training.evaluation.ranking` has the sound definitions.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

K: Final = 5
REASONS: Final = (
    "two cases are similar if they share any label, also `normal`, so a random order scores high; nDCG@5 is relative "
    "to the best order of the five returned cases, not of the gallery; and the other view of the query's own study "
    "counts as a hit. Average precision uses five cases but divides by the number of all similar ones, so it is near 0"
)


def evaluate_as_published(order: NDArray[np.int64], relevant: NDArray[np.bool_]) -> dict[str, float]:
    """Return P@5, mAP, MRR and nDCG@5 by the published definitions.

    Args:
        order: (Q, G), the gallery from most to least similar, with the query itself. The first five count.
        relevant: (Q, G), whether query and case share a label; False if the case is the query.
    """
    top = np.take_along_axis(relevant, order[:, :K], axis=1).astype(np.float64)  # (Q, 5)
    ranks = np.arange(1, top.shape[1] + 1)
    precision = top.cumsum(1) / ranks
    discounts = 1 / np.log2(ranks + 1)
    ideal = (-np.sort(-top, axis=1) * discounts).sum(1)
    first = np.where(top.any(1), 1 / (top.argmax(1) + 1), 0.0)
    return {
        "p@5": float(top.sum(1).mean() / K),
        "map": float(((precision * top).sum(1) / np.maximum(relevant.sum(1), 1)).mean()),
        "mrr": float(first.mean()),
        "ndcg@5": float(np.divide((top * discounts).sum(1), ideal, where=ideal > 0, out=0 * ideal).mean()),
    }
