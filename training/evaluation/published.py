"""The retrieval metrics as published for this model, so that figures can be laid side by side.

They flatter, each for its own reason:

- Two cases count as alike when they share any label, `normal` included: most pairs of studies do, so that even
  a random order has a high precision and a first hit near the top.
- nDCG compares the returned five with the best order of *these five*, not with the best five of the gallery:
  five poor cases in a fair order score as well as five good ones.
- Average precision looks at five cases but divides by all similar ones of the gallery, so that it lies near 0
  whatever the search is worth.
- The query itself is not taken out of the gallery (test against test): it finds itself first.

`training.evaluation.ranking` holds the definitions that mean something.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

K: Final = 5
REASONS: Final = (
    "sharing any label, `normal` included, counts as similar, so that a random order scores high; nDCG@5 is "
    "measured against the best order of the five returned cases, not of the gallery; average precision sees five "
    "cases but divides by all similar ones; the query is not taken out of the gallery"
)


def evaluate_as_published(order: NDArray[np.int64], relevant: NDArray[np.bool_]) -> dict[str, float]:
    """Return P@5, mAP, MRR and nDCG@5 by the published definitions.

    Args:
        order: (Q, G), the gallery from the most to the least similar, the query's own study included.
        relevant: (Q, G), whether query and case share a label.
    """
    hits = np.take_along_axis(relevant, order, axis=1)  # (Q, G)
    top = hits[:, :K].astype(np.float64)
    places = np.arange(1, top.shape[1] + 1)
    precision = top.cumsum(1) / places
    discounts = 1 / np.log2(places + 1)
    ideal = (-np.sort(-top, axis=1) * discounts).sum(1)
    first = np.where(hits.any(1), 1 / (hits.argmax(1) + 1), 0.0)
    return {
        "p@5": float(top.mean()),
        "map": float(((precision * top).sum(1) / np.maximum(relevant.sum(1), 1)).mean()),
        "mrr": float(first.mean()),
        "ndcg@5": float(np.divide((top * discounts).sum(1), ideal, where=ideal > 0, out=0 * ideal).mean()),
    }
