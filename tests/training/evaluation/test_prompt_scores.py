"""Prompt scores of a predictor whose embeddings are known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from contract.decisions import Decisions, ServedLabel
from contract.errors import ConfigError
from contract.labels import LABEL_INDEX, LABEL_KEYS, LABELS
from contract.prompts import clean_findings
from training.data.mesh import map_heading
from training.evaluation.labels import evaluate_labels
from training.evaluation.measure import measure
from training.evaluation.predict import Answers
from training.evaluation.prompt_scores import (
    LABEL_PHRASES,
    NORMAL_PROMPTS,
    evaluate_scores,
    make_label_prompts,
    measure_prompt_scores,
)
from training.evaluation.report import write_report
from training.evaluation.split_predictions import Options, predict_split
from training.evaluation.zero_shot import hide_labels, measure_zero_shot

from .conftest import RulePredictor, draw_pixels, make_studies

OPTIONS = Options(seed=0, resamples=30)
PROMPTS = make_label_prompts()


class PromptPredictor(RulePredictor):
    """Reads studies by the rule; a sentence lies on the axis of its label, and one that denies it opposite to that.

    Images are read as they should be, or with `blind` all alike.
    """

    def __init__(self, *, mode: str = "findings", blind: bool = False, refuses: str = "") -> None:
        super().__init__()
        self.text_mode, self.blind, self.refuses = mode, blind, refuses

    def ask(self, cases, progress=None):
        if not cases[0].study_id.startswith("prompt"):
            answers = super().ask(cases, progress)
            if self.blind:
                answers.embeddings[:] = answers.embeddings[0]
            return answers
        answers = Answers.prepare(len(cases), len(LABELS))
        for row, case in enumerate(cases):
            assert case.image is None
            if case.text == self.refuses:
                continue
            [(place, sign)] = {
                (place, sign)
                for place, both in enumerate(PROMPTS)
                for sign, side in ((1, both.present), (-1, both.absent))
                if case.text in side
            }
            answers.probabilities[row] = 0.5
            answers.embeddings[row] = sign * np.eye(len(LABELS), dtype=np.float32)[place]
        return answers


class WithLabelPart(PromptPredictor):
    """Adds a label part that says the same of every study and every sentence, and is far longer than the rest."""

    label_part = 3

    def ask(self, cases, progress=None):
        answers = super().ask(cases, progress)
        part = np.full((len(cases), 3), 50.0, np.float32)
        return Answers(answers.probabilities, np.concatenate([answers.embeddings, part], axis=1))


def test_prompt_scores_leave_the_label_part_out(parts):
    plain, longer = (
        measure_prompt_scores(predict_split(parts, predictor, OPTIONS), predictor, OPTIONS)
        for predictor in (PromptPredictor(), WithLabelPart())
    )
    assert longer == plain


def test_every_label_has_sentences_of_its_own():
    assert (*LABEL_PHRASES, "normal") == LABEL_KEYS
    assert PROMPTS[LABEL_INDEX["normal"]] == NORMAL_PROMPTS
    sentences = [sentence for both in PROMPTS for side in (both.present, both.absent) for sentence in side]
    assert len(set(sentences)) == len(sentences)
    for phrases in LABEL_PHRASES.values():
        assert clean_findings(phrases) == phrases


def test_wedged_vertebrae_are_asked_for_where_the_headings_put_them():
    [key] = map_heading("Deformity/thoracic vertebrae")
    wedges = {
        name: [phrase for phrase in phrases if "wedg" in phrase] for name, phrases in LABEL_PHRASES.items()
    }
    assert {name: len(found) for name, found in wedges.items() if found} == {key: 2}
    sentences = PROMPTS[LABEL_INDEX[key]]
    assert "There is a wedge deformity." in sentences.present
    assert "There is no vertebral wedging." in sentences.absent


def test_a_model_that_reads_right_sorts_studies_by_sentences(parts):
    predictor = PromptPredictor()
    rows = measure_prompt_scores(predict_split(parts, predictor, OPTIONS), predictor, OPTIONS)
    assert [row["key"] for row in rows] == ["image", "image+findings", "findings"]
    for row in rows:
        assert row["studies"] == 60
        assert row["averaged"] == ["cardiac", "pleural", "normal"]
        assert row["macro"]["auroc"]["value"] == row["macro"]["ap"]["value"] == 1
        assert row["labels"]["cardiac"]["positives"] == 20
    json.dumps(rows, allow_nan=False)


def test_a_model_that_does_not_look_at_images_is_at_chance(parts):
    predictor = PromptPredictor(blind=True)
    [image, *_] = measure_prompt_scores(predict_split(parts, predictor, OPTIONS), predictor, OPTIONS)
    assert image["macro"]["auroc"]["value"] == 0.5


def test_scores_are_measured_as_probabilities_are(parts):
    scores, test = np.random.default_rng(0).random((60, len(LABELS))), parts["test"]
    given = {"groups": test.patient_ids}
    ours = evaluate_scores(scores, test.targets, options=OPTIONS, **given)
    theirs = evaluate_labels(scores, test.targets, np.full(22, 0.5), seed=0, resamples=30, **given).to_dict()
    assert ours["averaged"] == theirs["averaged"]
    for name in ("auroc", "ap"):
        assert ours["macro"][name] == theirs["macro"][name]
        assert ours["labels"]["pleural"][name] == theirs["labels"]["pleural"][name]


def test_too_few_studies_give_no_average():
    targets = np.zeros((6, len(LABELS)), bool)
    found = evaluate_scores(np.zeros((6, len(LABELS))), targets, groups=list("abcdef"), options=OPTIONS)
    assert found == {"averaged": [], "macro": {}, "labels": {}}


def test_masked_findings_are_not_measured(parts):
    predictor = PromptPredictor(mode="findings_masked")
    assert measure_prompt_scores(predict_split(parts, predictor, OPTIONS), predictor, OPTIONS) == []


def test_a_refused_sentence_is_an_error(parts):
    predictor = PromptPredictor(refuses="No pneumothorax.")
    with pytest.raises(ConfigError, match="refused a sentence"):
        measure_prompt_scores(predict_split(parts, predictor, OPTIONS), predictor, OPTIONS)


@pytest.mark.parametrize("image", [True, False])
def test_report_shows_it(image):
    parts = {
        name: make_studies(range(start, start + 60), image=image)
        for name, start in (("train", 0), ("validation", 60), ("test", 120))
    }
    predictor = PromptPredictor()
    predictions = predict_split(parts, predictor, OPTIONS)
    bundle = SimpleNamespace(
        fingerprint="f" * 64,
        config={"text_mode": "findings"},
        trained_on="unknown",
        decisions=Decisions.repeat(tuple(ServedLabel(label.key, label.name, 0.5) for label in LABELS)),
    )
    results = {**measure(predictions, parts, bundle, draw_pixels, OPTIONS), "data": "", "served": None}
    assert "Prompt scores" not in write_report(results)
    results["prompt_scores"] = measure_prompt_scores(predictions, predictor, OPTIONS)
    report = write_report(results)
    [block] = [part for part in report.split("\n## ") if part.startswith("Prompt scores")]
    assert ("| image | 60 | 1.000 (1.000-1.000) |" in block) == image
    assert "| findings | 60 | 1.000 (1.000-1.000) |" in block
    assert "| Cardiomegaly / Heart Failure | 20 |" in block


def test_zero_shot_scores_stand_beside_their_controls(parts):
    hidden = hide_labels(parts, ["cardiac"])
    assert not hidden["test"].known[:, LABEL_INDEX["cardiac"]].any()
    assert parts["test"].known.all()
    tables = {}
    for blind in (False, True):
        predictor = PromptPredictor(blind=blind)
        predictions = predict_split(hidden, predictor, OPTIONS)
        found = measure_zero_shot(predictions, hidden, predictor, ["cardiac"], OPTIONS)
        rows = {row["title"]: row for row in found["rows"]}
        assert {key for row in found["rows"] for key in row["labels"]} == {"cardiac"}
        assert found["prevalence"] == {"cardiac": pytest.approx(1 / 3)}
        tables[blind] = rows
    assert tables[False]["image"]["macro"]["auroc"]["value"] == 1
    assert tables[True]["image"]["macro"]["auroc"]["value"] == 0.5
    words = tables[False]["TF-IDF, findings"]
    assert words["kind"] == "control"
    assert words["macro"]["auroc"]["value"] == 1  # "heart" is a word of the reports and of the sentences
    assert measure_zero_shot(predictions, hidden, predictor, [], OPTIONS) == {}
    masked = PromptPredictor(mode="findings_masked")
    assert measure_zero_shot(predictions, hidden, masked, ["cardiac"], OPTIONS) == {}
