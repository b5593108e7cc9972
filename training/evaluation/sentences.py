"""Search by sentences that state a label: rank the test studies by their similarity to the sentences.

Studies with the label should come first. The controls use the same sentences: TF-IDF compares their words with those of
each report, and logistic regression on TF-IDF compares the 22 probabilities of both.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError
from training.evaluation.bootstrap import summarise_difference
from training.evaluation.control import compare_probabilities, compare_texts
from training.evaluation.paired import MODEL
from training.evaluation.plan import MODE_TITLES, Studies, list_plain_ways
from training.evaluation.predict import Predictor
from training.evaluation.prompt_scores import (
    MASKED_MODE,
    draw_ap,
    embed_prompts,
    evaluate_scores,
    make_label_prompts,
)
from training.evaluation.split_predictions import Options, SplitPredictions


def measure_sentences(
    predictions: SplitPredictions, parts: Mapping[str, Studies], predictor: Predictor, options: Options
) -> dict[str, Any]:
    """Measure the search by sentences that state a label, each label's score being the mean of its sentences.

    Args:
        predictions: The model's predictions for the test studies.
        parts: Parts of the split. Without "train" there are no controls.
        predictor: The same model, to embed the sentences.
        options: Options of the bootstrap.

    Returns:
        "rows" (as in `training.evaluation.prompt_scores`) of the model's ways and of the controls, and "paired" (model
        minus control, AP, for the ways that read words); both empty for a model that reads masked findings, because
        it never sees the words of the sentences.

    Raises:
        ConfigError: The model refused a sentence.
    """
    if predictor.text_mode == MASKED_MODE:
        return {"rows": [], "paired": []}
    sides = embed_prompts(make_label_prompts(), predictor)
    ways = list_plain_ways(predictions.test, predictor.text_mode)
    scores: dict[str, NDArray[np.float64]] = {
        f"{MODEL}{way.title}": predictions.answers[way].embeddings.astype(np.float64) @ sides[:, 0].T
        for way in ways
    }
    controls = _score_controls(predictions, parts, predictor) if "train" in parts else {}
    targets = predictions.test.targets
    arguments: dict[str, Any] = {
        "groups": predictions.test.patient_ids,
        "options": options,
        "known": predictions.test.known,
    }
    rows = [
        {"title": title, "studies": len(targets), **evaluate_scores(values, targets, **arguments)}
        for title, values in {**scores, **controls}.items()
    ]
    titles = [f"{MODEL}{way.title}" for way in ways if way.text]
    drawn = {
        title: draw_ap(values, targets, **arguments)
        for title, values in {**scores, **controls}.items()
        if title in titles or title in controls
    }
    paired = [
        {
            "title": f"{model_title} - {control}",
            "values": {"ap": summarise_difference(drawn[model_title], drawn[control]).to_dict()},
        }
        for model_title in titles
        for control in controls
        if len(drawn[model_title])
    ]
    return {"rows": rows, "paired": paired}


def _score_controls(
    predictions: SplitPredictions, parts: Mapping[str, Studies], predictor: Predictor
) -> dict[str, NDArray[np.float64]]:
    """Return title -> (M, K): the mean similarity of each test study to the sentences of each label."""
    mode = predictor.text_mode
    prompts = [both.present for both in make_label_prompts()]
    sentences = [sentence for side in prompts for sentence in side]
    ends = np.cumsum([len(side) for side in prompts])[:-1]
    train, texts = parts["train"], predictions.test.texts[mode]
    try:
        similarities = {
            f"TF-IDF, {MODE_TITLES[mode]}": compare_texts(train.texts[mode], texts, sentences)[0],
            f"TF-IDF + LR, {MODE_TITLES[mode]}": compare_probabilities(
                train, parts["validation"], mode, texts, sentences
            )[0],
        }
    except ConfigError:  # too few words
        return {}
    return {
        title: np.stack([part.mean(1) for part in np.split(values, ends, axis=1)], axis=1)
        for title, values in similarities.items()
    }
