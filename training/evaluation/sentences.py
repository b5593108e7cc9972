"""Search by a sentence: a label put into words, and the test studies ordered by how near they are to it.

Studies that have the label should come first. The controls are asked with the same sentences: TF-IDF compares their
words with those of each report, and logistic regression on TF-IDF the 22 probabilities of both.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError
from training.evaluation.ask import Asked, Options
from training.evaluation.control import compare_probabilities, compare_texts
from training.evaluation.labels import summarise_difference
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


def measure_sentences(
    asked: Asked, parts: Mapping[str, Studies], predictor: Predictor, options: Options
) -> dict[str, Any]:
    """Measure the search by sentences that state a label, each label's score being the mean of its sentences.

    Args:
        asked: What the model said to the test studies.
        parts: Of the split; without "train" there are no controls.
        predictor: The same model, asked here about the sentences alone.
        options: Of the bootstrap.

    Returns:
        "rows" (as in `training.evaluation.prompt_scores`) of the model's ways and of the controls, and "paired" (model
        minus control, AP, for the ways that read words); both empty for a model that reads masked findings, which
        never sees the words of the sentences.

    Raises:
        ConfigError: The model refused a sentence.
    """
    if predictor.text_mode == MASKED_MODE:
        return {"rows": [], "paired": []}
    sides = embed_prompts(make_label_prompts(), predictor)
    ways = list_plain_ways(asked.test, predictor.text_mode)
    scores: dict[str, NDArray[np.float64]] = {
        f"{MODEL}{way.title}": asked.answers[way].embeddings.astype(np.float64) @ sides[:, 0].T
        for way in ways
    }
    controls = _score_controls(asked, parts, predictor) if "train" in parts else {}
    targets = asked.test.targets
    given: dict[str, Any] = {
        "groups": asked.test.patient_ids,
        "options": options,
        "known": asked.test.known,
    }
    rows = [
        {"title": title, "studies": len(targets), **evaluate_scores(values, targets, **given)}
        for title, values in {**scores, **controls}.items()
    ]
    titles = [f"{MODEL}{way.title}" for way in ways if way.text]
    drawn = {
        title: draw_ap(values, targets, **given)
        for title, values in {**scores, **controls}.items()
        if title in titles or title in controls
    }
    paired = [
        {
            "title": f"{ours} - {theirs}",
            "values": {"ap": summarise_difference(drawn[ours], drawn[theirs]).to_dict()},
        }
        for ours in titles
        for theirs in controls
        if len(drawn[ours])
    ]
    return {"rows": rows, "paired": paired}


def _score_controls(
    asked: Asked, parts: Mapping[str, Studies], predictor: Predictor
) -> dict[str, NDArray[np.float64]]:
    """Return title -> (M, K): the mean similarity of each test study to the sentences of each label."""
    mode = predictor.text_mode
    prompts = [both.present for both in make_label_prompts()]
    sentences = [sentence for side in prompts for sentence in side]
    ends = np.cumsum([len(side) for side in prompts])[:-1]
    train, texts = parts["train"], asked.test.texts[mode]
    try:
        found = {
            f"TF-IDF, {MODE_TITLES[mode]}": compare_texts(train.texts[mode], texts, sentences)[0],
            f"TF-IDF + LR, {MODE_TITLES[mode]}": compare_probabilities(
                train, parts["validation"], mode, texts, sentences
            )[0],
        }
    except ConfigError:  # too few words
        return {}
    return {
        title: np.stack([part.mean(1) for part in np.split(values, ends, axis=1)], axis=1)
        for title, values in found.items()
    }
