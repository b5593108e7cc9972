"""How well laterals are told from frontals: the figures of a view head, and the sentence that states them."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.notes import SURE_LATERAL

FEWEST: Final = 10  # images of each kind; with fewer no head is fitted, and none is measured


def score_views(probabilities: NDArray[np.float32], laterals: NDArray[np.bool_]) -> dict[str, Any]:
    """Return how well a head tells laterals from frontals.

    Args:
        probabilities: (M,) of a lateral, 0 to 1.
        laterals: (M,), what trusted headers say.

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
    """Return what `score_views` found as one sentence."""
    counts = f"{score['laterals']:,} lateral and {score['frontals']:,} frontal images"
    if "accuracy" not in score:
        return f"Not measured: {counts} with a trusted view, and {FEWEST} of each are the fewest that say something."
    return (
        f"Accuracy {score['accuracy']:.3f}, AUROC {score['auroc']:.3f} on {counts} with a trusted view. Called lateral "
        f"with {SURE_LATERAL} or more: {score['laterals_called_lateral']:.1%} of the laterals and "
        f"{score['frontals_called_lateral']:.1%} of the frontals."
    )
