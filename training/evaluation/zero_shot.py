"""Zero-shot scores: prompt scores of the labels that were held out of training (`data.held_out`).

No loss, threshold or calibration saw these labels, so here the scores of free-text findings are zero-shot scores, as in
Tiu et al. 2022. But the model read reports whose words state them. docs/training.md lists what else it could learn
about them. There are two controls: chance, and the TF-IDF cosine between the report and the sentences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.embedding import take_joint
from contract.errors import ConfigError
from contract.labels import LABEL_INDEX, LABEL_KEYS
from training.data.studies import make_known, make_targets
from training.evaluation.control import compare_texts
from training.evaluation.plan import MODE_TITLES, Studies, list_plain_ways
from training.evaluation.predict import Predictor
from training.evaluation.prompt_scores import (
    MASKED_MODE,
    embed_prompts,
    evaluate_scores,
    make_label_prompts,
    score_labels,
)
from training.evaluation.split_predictions import Options, SplitPredictions


def hide_labels(parts: Mapping[str, Studies], keys: Sequence[str]) -> dict[str, Studies]:
    """Return the parts of a split with these labels as unknown, so that no other figure or control counts them."""
    is_used = np.array([key not in keys for key in LABEL_KEYS])  # (K,)
    return {
        part: replace(studies, targets=studies.targets & is_used, known=studies.known & is_used)
        for part, studies in parts.items()
    }


def measure_zero_shot(
    predictions: SplitPredictions,
    parts: Mapping[str, Studies],
    predictor: Predictor,
    keys: Sequence[str],
    options: Options,
) -> dict[str, Any]:
    """Measure the prompt scores of the labels that were held out of training.

    Args:
        predictions: The model's predictions for the test studies. Their rows state the truth.
        parts: Parts of the split. Without "train" there is no control of words.
        predictor: The same model, to embed the sentences.
        keys: Keys of the labels that were held out.
        options: Options of the bootstrap.

    Returns:
        "labels" (the keys), "prevalence" (key -> share of the studies, which is the AP of chance), and "rows" as in
        `training.evaluation.prompt_scores`: the model's ways, then the control of words. {} without such labels, and
        for a model that reads masked findings, because it never sees the words of the sentences.

    Raises:
        ConfigError: The model refused a sentence.
    """
    if not keys or predictor.text_mode == MASKED_MODE:
        return {}
    chosen = np.isin(LABEL_KEYS, keys)  # (K,)
    targets = make_targets([row["labels"] for row in predictions.test.rows])
    known = make_known(predictions.test.rows) & chosen
    sides = embed_prompts(make_label_prompts(), predictor, predictor.label_part)
    scores = {
        way.title: (
            "model",
            score_labels(take_joint(predictions.answers[way].embeddings, predictor.label_part), sides),
        )
        for way in list_plain_ways(predictions.test, predictor.text_mode)
    }
    words = _count_words(predictions.test, parts, predictor) if "train" in parts else None
    if words is not None:
        scores[f"TF-IDF, {MODE_TITLES[predictor.text_mode]}"] = ("control", words)
    rows = [
        {
            "title": title,
            "kind": kind,
            "studies": len(predictions.test),
            **evaluate_scores(
                values, targets, groups=predictions.test.patient_ids, options=options, known=known
            ),
        }
        for title, (kind, values) in scores.items()
    ]
    columns = [(key, LABEL_INDEX[key]) for key in LABEL_KEYS if key in keys]
    prevalence = {key: float(targets[known[:, k], k].mean()) for key, k in columns if known[:, k].any()}
    return {"labels": [key for key, _ in columns], "prevalence": prevalence, "rows": rows}


def _count_words(
    test: Studies, parts: Mapping[str, Studies], predictor: Predictor
) -> NDArray[np.float64] | None:
    """Return (M, K): the mean TF-IDF cosine of each report to the sentences that state a label; None without words."""
    mode = predictor.text_mode
    prompts = [both.present for both in make_label_prompts()]
    sentences = [sentence for side in prompts for sentence in side]
    texts = test.texts[mode]
    if not any(texts):
        return None
    try:
        [values] = compare_texts(parts["train"].texts[mode], texts, sentences)  # (M, sentences)
    except ConfigError:  # too few words
        return None
    ends = np.cumsum([len(side) for side in prompts])[:-1]
    return np.stack([part.mean(1) for part in np.split(values, ends, axis=1)], axis=1)
