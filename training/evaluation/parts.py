"""Evaluate the parts of a model on reports: the transformer alone, the lexical part alone, and both.

The model adds the logits of the two (`training.model.lexical`), so each can be evaluated alone on the same studies.
This needs no training, because the transformer was trained without the lexical part.
"""

from typing import Any

import numpy as np

from training.evaluation.bootstrap import summarise_difference
from training.evaluation.plan import MODE_TITLES
from training.evaluation.predict import TorchPredictor
from training.evaluation.prompt_scores import MASKED_MODE, draw_ap, evaluate_scores
from training.evaluation.split_predictions import Options, SplitPredictions

BOTH = "both"


def measure_parts(
    predictions: SplitPredictions, predictor: TorchPredictor, options: Options
) -> list[dict[str, Any]]:
    """Return, for the words that the model reads and the masked ones, a row for each part.

    Args:
        predictions: The test studies. Studies without such text are left out.
        predictor: The model in this process.
        options: Options of the bootstrap.

    Returns:
        Rows with "title", "part", "studies", the result of `training.evaluation.prompt_scores.evaluate_scores`, and
        "gain": the AP of both minus that of this part, None for both. No rows for a model without a lexical part.
    """
    if not predictor.has_lexical:
        return []
    rows = []
    for mode in dict.fromkeys((predictor.text_mode, MASKED_MODE)):
        test = predictions.test.take(np.flatnonzero(predictions.test.has_text(mode)))  # type: ignore[arg-type]
        parts = predictor.score_parts(test.texts[mode])
        scores = {**parts, BOTH: np.sum(list(parts.values()), axis=0)}
        arguments: dict[str, Any] = {"groups": test.patient_ids, "options": options, "known": test.known}
        drawn = {name: draw_ap(values, test.targets, **arguments) for name, values in scores.items()}
        for name, values in scores.items():
            metrics = evaluate_scores(values.astype(np.float64), test.targets, **arguments)
            gain = None
            if name != BOTH and len(drawn[name]):
                gain = summarise_difference(drawn[BOTH], drawn[name]).to_dict()
            rows.append(
                {"title": MODE_TITLES[mode], "part": name, "studies": len(test), **metrics, "gain": gain}
            )
    return rows
