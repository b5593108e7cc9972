"""Attention against attribution, as the published system reports it: Pearson, Spearman, IoU at the top 5 % and 20 %.

Its paper compares the two maps of one case; its script compares a query with its top hit. Here both are measured, by
their own names. A high value says that two maps look alike. It does not say that either is right.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.stats import rankdata

from training.evaluation.maps.localise import choose_top, compute_iou
from training.evaluation.maps.subject import Array

TOPS: Final = {"iou_5": 0.05, "iou_20": 0.20}
METRICS: Final = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "iou_5": "IoU top 5 %",
    "iou_20": "IoU top 20 %",
}


def compare_maps(first: Array, second: Array) -> dict[str, float]:
    """Compare two maps (S, S) pixel by pixel; see `METRICS`. The correlation with a flat map is 0."""
    flat = [values.ravel().astype(np.float64) for values in (first, second)]
    result = {"pearson": correlate(*flat), "spearman": correlate(*(rankdata(values) for values in flat))}
    for name, share in TOPS.items():
        count = max(1, round(share * first.size))
        result[name] = compute_iou(choose_top(first, count), choose_top(second, count))
    return result


def correlate(
    first: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]",
    second: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]",
) -> float:
    """Return Pearson's correlation of two arrays; 0 if one of them is flat."""
    one, two = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((one**2).sum() * (two**2).sum()))
    return float((one * two).sum()) / scale if scale > 1e-12 else 0.0


def find_top_hits(
    queries: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]",
    gallery: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]",
    query_patients: Sequence[str],
    gallery_patients: Sequence[str],
) -> list[int | None]:
    """Return the row of the most similar case of another patient for each query; None if there is none.

    Args:
        queries: (M, D) of unit length.
        gallery: (G, D) of unit length.
        query_patients: M patient ids.
        gallery_patients: G patient ids.
    """
    if not len(gallery):
        return [None] * len(queries)
    scores = queries @ gallery.T
    same = np.array(query_patients)[:, None] == np.array(gallery_patients)[None]
    scores = np.where(same | np.isnan(scores), -np.inf, scores)
    best = scores.argmax(1)
    return [int(row) if np.isfinite(scores[place, row]) else None for place, row in enumerate(best)]
