"""Is a model ahead of its control: both on the same studies, and the same draws of patients for both.

Two intervals that overlap say nothing about that: the same studies may all be answered a little better. Each row here
is a difference, model minus control, with its own interval and p value (a paired bootstrap of patients; Efron and
Tibshirani 1993, An Introduction to the Bootstrap, chapter 16).
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.decisions import Decisions
from training.evaluation.ask import Asked, Options
from training.evaluation.control import ControlAnswers
from training.evaluation.labels import Difference, compare_labels
from training.evaluation.plan import MODE_TITLES, Studies, Way
from training.evaluation.ranking import compare_rankings, compute_gains, find_same, find_unknown, rank_cases

MODEL: Final = "model, "  # how the rows of a search by a model begin
Rows = list[dict[str, Any]]


def compare_ways(
    asked: Asked,
    controls: Mapping[str, ControlAnswers],
    decisions: Decisions,
    options: Options,
) -> Rows:
    """Return a row for each way that reads words, against TF-IDF with logistic regression on the same words.

    A way that the model has no thresholds for has no difference in F1.
    """
    rows = []
    for way, answers in asked.answers.items():
        control = controls.get(way.text or "")
        if control is None or way.swapped:
            continue
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
                "title": f"{way.title}: model - TF-IDF, {MODE_TITLES[way.text or '']}",
                "studies": len(places),
                "values": _to_dicts(found),
            }
        )
    return rows


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
