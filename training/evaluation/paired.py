"""Is a model ahead of its control: both on the same studies, and the same draws of patients for both.

Two intervals that overlap say nothing about that: the same studies may all be answered a little better. Each row here
is a difference, model minus control, with its own interval and p value (a paired bootstrap of patients; Efron and
Tibshirani 1993, An Introduction to the Bootstrap, chapter 16).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.decisions import Decisions
from training.evaluation.ask import Asked, Options
from training.evaluation.image_control import TITLES as IMAGE_CONTROLS
from training.evaluation.labels import Difference, compare_labels
from training.evaluation.plan import MODE_TITLES, Studies, Way
from training.evaluation.ranking import compare_rankings, compute_gains, find_same, find_unknown, rank_cases
from training.evaluation.regressions import ControlAnswers

MODEL: Final = "model, "  # how the rows of a search by a model begin
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Controls:
    """What the controls said to the test studies.

    Attributes:
        texts: Part of the report -> TF-IDF with logistic regression on these words.
        images: Name in `training.evaluation.image_control.TITLES` -> logistic regression on such features.
    """

    texts: Mapping[str, ControlAnswers]
    images: Mapping[str, ControlAnswers]


def compare_ways(asked: Asked, controls: Controls, decisions: Decisions, options: Options) -> Rows:
    """Return a row for each way and each control that reads the same.

    A way with words stands against TF-IDF with logistic regression on the same words, the image alone against the
    controls of images. A way that the model has no thresholds for has no difference in F1.
    """
    rows = []
    for way, key, title, control in _pair_controls(asked, controls):
        answers = asked.answers[way]
        both = np.flatnonzero(answers.answered[control.rows])
        places = control.rows[both]
        found = compare_labels(
            (answers.probabilities[places], decisions.get_thresholds(way.kind)),
            (control.probabilities[both], control.thresholds),
            asked.test.targets[places],
            groups=[asked.test.patient_ids[row] for row in places],
            known=asked.test.known[places],
            seed=options.seed,
            resamples=options.resamples,
        )
        rows.append(
            {
                "key": way.key,
                "control": key,
                "title": f"{way.title}: model - {title}",
                "studies": len(places),
                "values": _to_dicts(found),
            }
        )
    return rows


def _pair_controls(asked: Asked, controls: Controls) -> Iterator[tuple[Way, str, str, ControlAnswers]]:
    """Yield each way with the key, the title and the answers of a control."""
    for way in (way for way in asked.answers if not way.swapped):
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
    """Return a row for each search by an embedding that reads words, against each control.

    Args:
        test: Q queries.
        gallery: G studies; those of the query's patient are left out, and those of which nobody knows whether they are
            like the query.
        similarities: Title -> (Q, G), of models and controls.
        ways: Title of a model's row -> its way.
        without: Places of labels that do not count.
        options: Of the bootstrap and of ties.
    """
    known = (test.known, gallery.known)
    gains = compute_gains(test.targets, gallery.targets, known=known, without=without)
    excluded = find_same(test.patient_ids, gallery.patient_ids) | find_unknown(
        test.targets, gallery.targets, known, without=without
    )
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


def _to_dicts(found: Mapping[str, Difference]) -> dict[str, dict[str, float]]:
    return {name: difference.to_dict() for name, difference in found.items()}
