"""What each part of a model brings to reading reports: the transformer alone, the lexical part alone, and both.

The logits of the two are added (`training.model.lexical`), so that each can be measured by itself on the same studies.
Nothing is trained for that: the transformer was trained without the lexical part.
"""

from typing import Any

import numpy as np

from training.evaluation.ask import Asked, Options
from training.evaluation.labels import summarise_difference
from training.evaluation.plan import MODE_TITLES
from training.evaluation.predict import TorchPredictor
from training.evaluation.prompt_scores import MASKED_MODE, draw_ap, evaluate_scores

BOTH = "both"


def measure_parts(asked: Asked, predictor: TorchPredictor, options: Options) -> list[dict[str, Any]]:
    """Return, for the words that the model reads and the masked ones, a row for each part.

    Args:
        asked: The test studies; those without such words are left out.
        predictor: The model in this process.
        options: Of the bootstrap.

    Returns:
        Rows with "title", "part", "studies", what `training.evaluation.prompt_scores.evaluate_scores` returns, and
        "gain": how far both lie above this part in AP, None for both. No row for a model without a lexical part.
    """
    if not predictor.has_lexical:
        return []
    rows = []
    for mode in dict.fromkeys((predictor.text_mode, MASKED_MODE)):
        test = asked.test.take(np.flatnonzero(asked.test.has_text(mode)))  # type: ignore[arg-type]
        parts = predictor.score_parts(test.texts[mode])
        scores = {**parts, BOTH: np.sum(list(parts.values()), axis=0)}
        given: dict[str, Any] = {"groups": test.patient_ids, "options": options, "known": test.known}
        drawn = {name: draw_ap(values, test.targets, **given) for name, values in scores.items()}
        for name, values in scores.items():
            found = evaluate_scores(values.astype(np.float64), test.targets, **given)
            gain = None
            if name != BOTH and len(drawn[name]):
                gain = summarise_difference(drawn[BOTH], drawn[name]).to_dict()
            rows.append(
                {"title": MODE_TITLES[mode], "part": name, "studies": len(test), **found, "gain": gain}
            )
    return rows
