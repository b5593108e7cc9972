"""Score a view head (lateral or frontal), and describe the score in a sentence."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.notes import SURE_LATERAL

FEWEST: Final = 10  # images of each kind; with fewer, no head is fitted or measured


def score_views(probabilities: NDArray[np.float32], laterals: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the scores of a view head.

    Args:
        probabilities: (M,) probability of a lateral, 0 to 1.
        laterals: (M,) bool, by trusted headers.

    Returns:
        "laterals" and "frontals", counts; and unless there are fewer than `FEWEST` of one of them "accuracy" at 0.5,
        "auroc", and the shares "laterals_called_lateral" and "frontals_called_lateral" with `SURE_LATERAL` or more.
    """
    counts: dict[str, Any] = {"laterals": int(laterals.sum()), "frontals": int((~laterals).sum())}
    if min(counts.values()) < FEWEST:
        return counts
    from sklearn.metrics import roc_auc_score

    called = probabilities >= SURE_LATERAL
    return counts | {
        "accuracy": float(((probabilities >= 0.5) == laterals).mean()),
        "auroc": float(roc_auc_score(laterals, probabilities)),
        "laterals_called_lateral": float(called[laterals].mean()),
        "frontals_called_lateral": float(called[~laterals].mean()),
    }


def describe_score(score: Mapping[str, Any]) -> str:
    """Return a result of `score_views` as a sentence."""
    counts = f"{score['laterals']:,} lateral and {score['frontals']:,} frontal images"
    if "accuracy" not in score:
        return f"Not measured: {counts} with a trusted view, but at least {FEWEST} of each are needed."
    return (
        f"Accuracy {score['accuracy']:.3f}, AUROC {score['auroc']:.3f} on {counts} with a trusted view. Called lateral "
        f"with {SURE_LATERAL} or more: {score['laterals_called_lateral']:.1%} of the laterals and "
        f"{score['frontals_called_lateral']:.1%} of the frontals."
    )
