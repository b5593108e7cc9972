"""What nobody knows of a study counts nowhere: its target may say anything, and no figure changes."""

from dataclasses import replace

import numpy as np
import pytest

from contract.labels import LABEL_INDEX, LABELS
from training.evaluation.control import compare_probabilities, run_control
from training.evaluation.labels import METRICS, compare_labels, evaluate_labels
from training.evaluation.measure import (
    compare_cases,
    measure_as_published,
    measure_leads,
    measure_retrieval,
)
from training.evaluation.parts import measure_parts
from training.evaluation.prompt_scores import draw_ap, evaluate_scores
from training.evaluation.sentences import measure_sentences
from training.evaluation.split_predictions import Options, predict_split

from .conftest import RulePredictor
from .test_measure import SentencePredictor

OPTIONS = Options(seed=0, resamples=20)
K = len(LABELS)
HALVES = np.full(K, 0.5)


@pytest.fixture
def hidden(parts):
    """The parts with unknown labels, once with targets that are False there and once with the truth left standing."""
    generator = np.random.default_rng(1)
    places = [LABEL_INDEX[key] for key in ("cardiac", "pleural")]
    quiet, loud = {}, {}
    for name, studies in parts.items():
        known = np.ones_like(studies.targets)
        known[:, places] = generator.random((len(studies), len(places))) > 0.2
        quiet[name] = replace(studies, targets=studies.targets & known, known=known)
        loud[name] = replace(studies, targets=studies.targets | ~known, known=known)
    return quiet, loud


@pytest.fixture
def cases():
    """Scores of two models of 200 studies, targets, and which of them are known."""
    generator = np.random.default_rng(0)
    targets = generator.random((200, K)) < 0.3
    scores = [np.clip(generator.random((200, K)) * 0.8 + 0.2 * targets, 0, 1) for _ in range(2)]
    return scores, targets, generator.random((200, K)) > 0.3


def test_a_difference_is_measured_on_known_labels_alone(cases):
    (first, second), targets, known = cases
    chosen = {"groups": [str(row) for row in range(200)], "known": known, "resamples": 20}
    found = compare_labels((first, HALVES), (second, HALVES), targets, **chosen)
    ours, theirs = (evaluate_labels(values, targets, HALVES, **chosen).macro for values in (first, second))
    for name, difference in found.items():
        assert difference.value == pytest.approx(ours[name].value - theirs[name].value)
    assert found == compare_labels((first, HALVES), (second, HALVES), targets ^ ~known, **chosen)
    nothing = {**chosen, "known": np.zeros_like(known)}
    assert compare_labels((first, HALVES), (second, HALVES), targets, **nothing) == {}
    undecided = compare_labels((first, None), (second, HALVES), targets, **chosen)
    assert undecided == {name: found[name] for name in METRICS if name != "f1"}


def test_drawn_scores_are_of_known_labels_alone(cases):
    (scores, _), targets, known = cases
    chosen = {"groups": [str(row) for row in range(200)], "options": OPTIONS, "known": known}
    drawn = draw_ap(scores, targets, **chosen)
    assert (drawn == draw_ap(scores, targets ^ ~known, **chosen)).all()
    assert drawn[:, 0].mean() == pytest.approx(
        evaluate_scores(scores, targets, **chosen)["macro"]["ap"]["value"], abs=1e-4
    )
    assert len(draw_ap(scores, targets, **{**chosen, "known": np.zeros_like(known)})) == 0


def test_the_controls_learn_from_known_labels_alone(hidden):
    answers = [run_control(parts, "findings") for parts in hidden]
    assert (answers[0].probabilities == answers[1].probabilities).all()
    assert (answers[0].thresholds == answers[1].thresholds).all()
    found = []
    for parts in hidden:
        texts = parts["test"].texts["findings"], parts["train"].texts["findings"]
        found += compare_probabilities(parts["train"], parts["validation"], "findings", *texts)
    assert (found[0] == found[1]).all()


def test_searches_leave_out_what_nobody_knows(hidden):
    found = []
    for parts in hidden:
        predictions = predict_split(parts, RulePredictor(), OPTIONS)
        similarities = compare_cases(predictions, parts, "findings")
        found.append(
            (
                measure_retrieval(predictions, similarities, OPTIONS),
                measure_leads(predictions, similarities, OPTIONS),
                measure_as_published(predictions, OPTIONS),
                measure_sentences(predictions, parts, SentencePredictor(), OPTIONS),
            )
        )
    assert found[0] == found[1]
    retrieval, leads, *_ = found[0]
    rows = {row["title"]: row["values"] for row in retrieval["test_to_train"]["without_normal"]}
    for row in leads["without_normal"]:
        ours, theirs = row["title"].split(" - ")
        assert row["values"]["p@5"]["value"] == pytest.approx(
            rows[ours]["p@5"]["value"] - rows[theirs]["p@5"]["value"], abs=2e-4
        )


class Parts(RulePredictor):
    """A model of two parts that say the same."""

    has_lexical = True

    def score_parts(self, texts):
        scores = np.array([[hash(text) % 97 + label for label in range(K)] for text in texts], np.float32)
        return {"transformer": scores, "lexical part": scores}


def test_the_parts_of_a_model_are_measured_on_known_labels_alone(hidden):
    found = [
        measure_parts(predict_split(parts, RulePredictor(), OPTIONS), Parts(), OPTIONS) for parts in hidden
    ]
    assert found[0]
    assert found[0] == found[1]
