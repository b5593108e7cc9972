"""Paired tests of a model against its controls, on the same studies and with the same resamples of patients.

Overlapping intervals do not answer this question, because a model may be a little better on every study. Each row
here is a difference, model minus control, with its own interval and p value (a paired bootstrap of patients; Efron
and Tibshirani 1993, An Introduction to the Bootstrap, chapter 16).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.decisions import Decisions
from training.evaluation.bootstrap import Difference
from training.evaluation.image_control import TITLES as IMAGE_CONTROLS
from training.evaluation.labels import compare_labels
from training.evaluation.plan import MODE_TITLES, Studies, Way
from training.evaluation.ranking import compare_rankings, judge_gallery, rank_cases
from training.evaluation.regressions import ControlAnswers
from training.evaluation.split_predictions import Options, SplitPredictions

MODEL: Final = "model, "  # prefix of the rows of a search with a model
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Controls:
    """The predictions of the controls for the test studies.

    Attributes:
        texts: Part of the report -> TF-IDF with logistic regression on these words.
        images: Name in `training.evaluation.image_control.TITLES` -> logistic regression on such features.
    """

    texts: Mapping[str, ControlAnswers]
    images: Mapping[str, ControlAnswers]


def compare_ways(
    predictions: SplitPredictions, controls: Controls, decisions: Decisions, options: Options
) -> Rows:
    """Return a row for each way and each control with the same input.

    A way with text is compared with TF-IDF and logistic regression on the same text, and the image alone with the image
    controls. A way without thresholds has no difference in F1.
    """
    rows = []
    for way, key, title, control in _pair_controls(predictions, controls):
        answers = predictions.answers[way]
        both = np.flatnonzero(answers.answered[control.rows])
        control_rows = control.rows[both]
        differences = compare_labels(
            (answers.probabilities[control_rows], decisions.get_thresholds(way.kind)),
            (control.probabilities[both], control.thresholds),
            predictions.test.targets[control_rows],
            groups=[predictions.test.patient_ids[row] for row in control_rows],
            known=predictions.test.known[control_rows],
            seed=options.seed,
            resamples=options.resamples,
        )
        rows.append(
            {
                "key": way.key,
                "control": key,
                "title": f"{way.title}: model - {title}",
                "studies": len(control_rows),
                "values": _to_dicts(differences),
            }
        )
    return rows


def _pair_controls(
    predictions: SplitPredictions, controls: Controls
) -> Iterator[tuple[Way, str, str, ControlAnswers]]:
    """Yield each way with the key, the title and the answers of a control."""
    for way in (way for way in predictions.answers if not way.swapped):
        if way.text is None:
            for name, answers in controls.images.items():
                yield way, name, IMAGE_CONTROLS[name], answers
        elif way.text in controls.texts:
            title = f"TF-IDF, {MODE_TITLES[way.text]}"
            yield way, f"tfidf/{way.text}", title, controls.texts[way.text]


def compare_search(
    test: Studies,
    gallery: Studies,
    similarities: Mapping[str, NDArray[Any]],
    ways: Mapping[str, Way],
    *,
    without: tuple[int, ...],
    options: Options,
) -> Rows:
    """Return a row for each search by an embedding with text and each control.

    Args:
        test: Q queries.
        gallery: G studies. Those that `judge_gallery` excludes are left out.
        similarities: Title -> (Q, G), of models and controls.
        ways: Title of a model's row -> its way.
        without: Indices of labels to ignore.
        options: Options of the bootstrap and for ties.
    """
    gains, excluded = judge_gallery(test, gallery, without=without)
    orders = {title: rank_cases(values, excluded, options.seed) for title, values in similarities.items()}
    return [
        {
            "title": f"{ours} - {theirs}",
            "values": _to_dicts(
                compare_rankings(
                    orders[ours],
                    orders[theirs],
                    gains,
                    excluded,
                    groups=test.patient_ids,
                    seed=options.seed,
                    resamples=options.resamples,
                )
            ),
        }
        for ours in orders
        if ours in ways and ways[ours].text
        for theirs in orders
        if theirs not in ways
    ]


def _to_dicts(differences: Mapping[str, Difference]) -> dict[str, dict[str, float]]:
    return {name: difference.to_dict() for name, difference in differences.items()}
