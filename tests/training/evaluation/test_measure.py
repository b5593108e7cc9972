"""From a predictor whose answers are known to the figures, the report and the pictures."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from contract.decisions import Decisions, ServedLabel
from contract.errors import ConfigError
from contract.labels import LABEL_NAMES, LABELS
from contract.training_data import PHANTOM_WARNING
from training.card.card import insert_evaluation
from training.evaluation.measure import measure, measure_as_published
from training.evaluation.plan import Way, select_studies, split_by_image
from training.evaluation.plots import draw_plots
from training.evaluation.prompt_scores import make_label_prompts
from training.evaluation.report import write_report, write_summary
from training.evaluation.sentences import measure_sentences
from training.evaluation.split_predictions import Options, compare_predictions, predict_split

from .conftest import RulePredictor, draw_pixels, make_row, make_studies

OPTIONS = Options(seed=0, resamples=30)


class SentencePredictor(RulePredictor):
    """Answers a sentence with the label it is about."""

    def ask(self, cases, progress=None):
        answers = super().ask(cases, progress)
        sides = [side for both in make_label_prompts() for side in (both.present, both.absent)]
        places = [place // 2 for place, side in enumerate(sides) for _ in side]
        answers.embeddings[:] = np.eye(len(LABELS), dtype=np.float32)[places]
        return answers


BUNDLE = SimpleNamespace(
    fingerprint="f" * 64,
    config={"text_mode": "findings"},
    trained_on="openi",
    decisions=Decisions.repeat(tuple(ServedLabel(label.key, label.name, 0.5) for label in LABELS)),
)


@pytest.fixture
def predictions(parts):
    return predict_split(parts, RulePredictor(), OPTIONS)


@pytest.fixture
def results(predictions, parts):
    return {
        **measure(predictions, parts, BUNDLE, draw_pixels, OPTIONS),
        "data": "Made-up studies.",
        "served": None,
    }


def get_rows(results) -> dict:
    return {row["key"]: row for row in results["classification"]}


def test_every_way_is_asked_and_reported(parts):
    steps = []
    predictor = RulePredictor()
    predictions = predict_split(parts, predictor, OPTIONS, lambda done, total: steps.append((done, total)))
    assert len(predictions.answers) == 12
    assert set(predictions.gallery_answers) == {
        Way(True, "findings"),
        Way(True, None),
        Way(False, "findings"),
    }
    assert steps[-1][0] == steps[-1][1]
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert all(case.study_id for case in predictor.asked)


def test_a_model_that_reads_right_is_seen_to(results):
    rows = get_rows(results)
    for key in ("image", "image+findings", "findings", "tfidf/findings"):
        assert rows[key]["macro"]["auroc"]["value"] == 1
        assert rows[key]["macro"]["f1"]["value"] == 1
        assert rows[key]["averaged"] == ["cardiac", "pleural", "normal"]
    assert rows["image+indication"]["studies"] == 48  # every fifth has none
    assert rows["tfidf/indication"]["studies"] == 48
    assert rows["findings"]["macro"]["brier"]["value"] == pytest.approx(0.01, abs=1e-3)


def test_a_swapped_input_shows_what_a_model_looks_at(results):
    rows = get_rows(results)
    for key in ("image/swapped_image", "image+findings/swapped_report"):
        assert rows[key]["kind"] == "control"
        assert rows[key]["macro"]["auroc"]["value"] < 0.75
    assert rows["image+findings/swapped_image"]["macro"]["auroc"]["value"] == 1  # it reads the words


def test_abstention_is_measured_with_bands_and_without(predictions, parts, results, tmp_path):
    rows = {row["key"]: row for row in results["abstention"]}
    assert set(rows) == {"image", "image+findings", "findings"}
    for row in rows.values():
        assert row["macro"]["coverage"]["value"] == 1
        assert row["macro"]["error"]["value"] == row["macro"]["aurc"]["value"] == 0
        assert row["set"] is None
    report = write_report(results)
    assert "This model has no bands" in report
    assert "Conformal sets" not in report
    assert "# Abstention" not in write_report({**results, "abstention": None})  # of an older evaluation
    stated = {"uncertain_low": 0.05, "uncertain_high": 0.95, "stated_missed": 0.1}
    labels = tuple(replace(x, **stated, include=0.5, stated_recall=0.9) for x in BUNDLE.decisions.of("study"))
    bundle = SimpleNamespace(**{**vars(BUNDLE), "decisions": Decisions.repeat(labels)})
    banded = {**measure(predictions, parts, bundle, draw_pixels, OPTIONS), "data": "", "served": None}
    for row in banded["abstention"]:
        assert row["macro"]["coverage"]["value"] == 0
        assert row["set"]["recall"]["value"] == row["set"]["size"]["value"] == 1
    json.dumps(banded, allow_nan=False)
    report = write_report(banded)
    assert (
        "| Pleural Disease (Effusion / Thickening) | 0.050 to 0.950 | 0.10 | 0.000 | - | 0.000 | 0.000 |"
        in report
    )
    assert "| image | 0.90 | 1.000 (1.000-1.000) | 1.000 (1.000-1.000) |" in report
    draw_plots(predictions, banded, "findings", tmp_path)


def test_each_way_is_decided_by_its_own_thresholds(predictions, parts):
    """Where everything is present, all are false alarms; where nothing is, all are missed."""
    never, always = (
        tuple(ServedLabel(label.key, label.name, threshold) for label in LABELS) for threshold in (1.0, 0.0)
    )
    decisions = Decisions({"image": always, "study": BUNDLE.decisions.of("study"), "text": never})
    results = measure(
        predictions, parts, SimpleNamespace(**{**vars(BUNDLE), "decisions": decisions}), draw_pixels, OPTIONS
    )
    f1 = {key: row["macro"]["f1"]["value"] for key, row in get_rows(results).items()}
    assert f1["findings"] == f1["full"] == 0
    assert f1["image+findings"] == f1["image+full"] == 1
    assert (
        f1["image"] == f1["image/swapped_image"] == pytest.approx(0.5)
    )  # a third of the studies has each label
    assert {row["macro"]["f1"]["value"] for row in results["subgroups"] if row["way"] != "image"} == {1}
    decided = {row["key"]: row["macro"] for row in results["abstention"]}
    assert decided["image"]["false_alarms"]["value"] == decided["findings"]["missed"]["value"] == 1
    assert decided["image+findings"]["error"]["value"] == 0


def test_a_way_without_thresholds_has_no_f1_and_decides_nothing(predictions, parts, tmp_path):
    decisions = Decisions({"text": BUNDLE.decisions.of("text")})
    bundle = SimpleNamespace(**{**vars(BUNDLE), "decisions": decisions})
    results = {**measure(predictions, parts, bundle, draw_pixels, OPTIONS), "data": "", "served": None}
    rows = get_rows(results)
    assert rows["findings"]["macro"]["f1"]["value"] == 1
    for metrics in (rows["image"]["macro"], rows["image"]["micro"], rows["image"]["labels"]["pleural"]):
        assert metrics["auroc"]["value"] == 1
        assert "f1" not in metrics
    assert [row["key"] for row in results["abstention"]] == ["findings"]
    assert "| image | 60 | 1.000 (1.000-1.000) | 1.000 (1.000-1.000) | - |" in write_report(results)
    draw_plots(predictions, results, "findings", tmp_path)


def test_subgroups_are_those_of_the_headers(results):
    groups = {(row["group"], row["value"]): row for row in results["subgroups"] if row["way"] == "image"}
    assert set(groups) == {
        ("view", "PA"),
        ("view", "LATERAL"),
        ("photometric", "MONOCHROME1"),
        ("photometric", "MONOCHROME2"),
        ("brings", "neither"),  # the other group has 15 studies, all share the bits
    }
    assert groups["view", "PA"]["studies"] == 30


def test_model_and_control_are_compared_in_pairs(results):
    rows = {(row["key"], row["control"]): row for row in results["paired"]["classification"]}
    texts = {"findings", "image+findings", "findings_masked", "full", "indication"}
    assert {(key, f"tfidf/{key.removeprefix('image+')}") for key in texts} <= set(rows)
    assert {control for key, control in rows if key == "image"} == {"pixels", "hog"}
    assert not any("swapped" in key for key, _ in rows)
    assert rows["indication", "tfidf/indication"]["studies"] == 48
    found = rows["findings", "tfidf/findings"]["values"]
    assert (found["auroc"]["value"], found["auroc"]["p"]) == (0, 1)  # both read the words right
    classified = get_rows(results)
    for (key, compared), row in rows.items():
        control = classified[compared]["macro"]
        for name, difference in row["values"].items():
            expected = classified[key]["macro"][name]["value"] - control[name]["value"]
            assert difference["value"] == pytest.approx(expected, abs=2e-4)
    report = write_report(results)
    assert "### Model minus control" in report
    assert "| findings: model - TF-IDF, findings | +0.000 (+0.000 to +0.000), p = 1.00 |" in report
    assert "### Model minus control" not in write_report({**results, "paired": None})


def test_a_search_is_held_against_both_controls(results):
    rows = {row["title"]: row for row in results["retrieval"]["test_to_train"]["without_normal"]}
    assert rows["TF-IDF + LR, findings"]["values"]["p@5"]["value"] == 1
    leads = {row["title"]: row["values"] for row in results["paired"]["retrieval"]["without_normal"]}
    assert set(leads) == {
        f"model, {way} - {control}, {text}"
        for way in ("image + findings", "findings")
        for control in ("TF-IDF", "TF-IDF + LR")
        for text in ("findings", "full report")
    }
    difference = leads["model, findings - TF-IDF, findings"]["p@5"]
    assert difference["value"] == pytest.approx(
        1 - rows["TF-IDF, findings"]["values"]["p@5"]["value"], abs=2e-4
    )
    assert "p@5" in leads["model, findings - TF-IDF + LR, findings"]


def test_search_by_a_sentence(predictions, parts, results):
    found = measure_sentences(predictions, parts, SentencePredictor(), OPTIONS)
    rows = {row["title"]: row["macro"] for row in found["rows"]}
    assert set(rows) == {
        "model, image + findings",
        "model, image",
        "model, findings",
        "TF-IDF, findings",
        "TF-IDF + LR, findings",
    }
    assert rows["model, findings"]["ap"]["value"] == 1
    paired = {row["title"]: row["values"]["ap"] for row in found["paired"]}
    assert set(paired) == {
        f"model, {way} - {control}, findings"
        for way in ("image + findings", "findings")
        for control in ("TF-IDF", "TF-IDF + LR")
    }
    for title, difference in paired.items():
        ours, theirs = title.split(" - ")
        assert difference["value"] == pytest.approx(
            rows[ours]["ap"]["value"] - rows[theirs]["ap"]["value"], abs=2e-4
        )
    report = write_report({**results, "sentences": found})
    assert "## Search by a sentence" in report
    assert "| model, findings | 60 | 1.000 (1.000-1.000) |" in report
    assert "## Search by a sentence" not in write_report(results)
    alone = measure_sentences(predictions, {"test": parts["test"]}, SentencePredictor(), OPTIONS)
    assert len(alone["rows"]) == 3
    assert alone["paired"] == []
    masked = SimpleNamespace(text_mode="findings_masked")
    assert measure_sentences(predictions, parts, masked, OPTIONS) == {"rows": [], "paired": []}


def test_labels_with_too_few_cases_say_so(results):
    report = write_report(results)
    assert "(3 of 22: `cardiac`" not in report
    assert f"| {LABEL_NAMES['air_leak']} | too few cases | too few cases |" in report
    assert f"(3 of 22; too few cases of {LABELS[0].name}, " in report


def test_search_leaves_the_patient_out_and_normal_too(results):
    for gallery, size in (("test_to_test", 60), ("test_to_train", 60)):
        blocks = results["retrieval"][gallery]
        for block, queries in (("with_normal", 60), ("without_normal", 40)):
            rows = {row["title"]: row for row in blocks[block]}
            assert all((row["queries"], row["gallery"]) == (queries, size) for row in rows.values())
            best = rows["model, image + findings"]["values"]
            assert best["p@5"]["value"] == best["map"]["value"] == best["ndcg@5"]["value"] == 1
            assert 0.2 < rows["random order"]["values"]["p@5"]["value"] < 0.45
            assert "TF-IDF, findings" in rows


def test_pairs_are_found_among_equals(results):
    for row in results["pairs"]:
        assert row["studies"] == 60
        assert row["values"]["median_rank"]["value"] == pytest.approx(1 + 19 / 2)  # 20 studies of each label
        assert row["chance"]["r@1"] == pytest.approx(1 / 60)


def test_published_metrics_count_a_hit_on_itself_as_a_miss(results):
    rows = {row["title"]: row for row in results["as_published"]["test_to_test"]}
    model = rows["model, findings"]
    # 20 studies of each label are equally near, the query among them: in a random order it is one of the five or not.
    assert 0.9 < model["p@5"] < 1
    assert 0.9 < model["mrr"] < 1
    assert model["map"] < 5 / 19
    assert rows["random order"]["ndcg@5"] > 0.5
    assert {row["title"]: row["mrr"] for row in results["as_published"]["test_to_train"]}[
        "model, findings"
    ] == 1


class OnePerImage(RulePredictor):
    """Reads an image as itself alone, as near to no other one; a report by its words."""

    def ask(self, cases, progress=None):
        answers = super().ask(cases, progress)
        for row, case in enumerate(cases):
            if case.image is not None and case.text is None and case.image not in self.refused:
                answers.embeddings[row] = 0
                answers.embeddings[row, int(case.image.split(".")[0]) % 22] = 1
        return answers


def make_two_views(numbers):
    """Studies whose lateral view has a file of another number."""
    rows = [
        make_row(number, image_paths=[f"{2 * number}.dcm", f"{2 * number + 1}.dcm"], views=["PA", "LATERAL"])
        for number in numbers
    ]
    return select_studies(rows, [row["study_id"] for row in rows])


def test_published_metrics_are_of_images():
    parts = {"test": make_two_views(range(11))}
    predictor = OnePerImage(refused=["3.dcm"])  # the lateral view of the second study
    steps = []
    predictions = predict_split(parts, predictor, OPTIONS, lambda done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1]
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert sorted({case.image for case in predictor.asked if case.image}) == sorted(
        f"{number}.dcm" for number in range(22)
    )
    images = predictions.images["test"]
    assert list(images.owners) == [0, 0, 1, *(row for row in range(2, 11) for _ in range(2))]
    image, text = Way(True, None), Way(False, "findings")
    assert len(set(images.embeddings[image].argmax(1))) == 21, "each view is read as itself"
    assert (images.embeddings[text] == predictions.answers[text].embeddings[images.owners]).all()
    # Found by its own pixels each image finds itself first, which is a miss; then come the others in a random order.
    [row] = [
        r for r in measure_as_published(predictions, OPTIONS)["test_to_test"] if r["title"] == "model, image"
    ]
    assert row["mrr"] <= 0.5


def test_the_other_view_of_the_study_is_a_hit():
    """No two studies share a label, so that only the other view of its own study is similar to an image."""
    studies = make_two_views(range(3))  # of three labels
    predictions = predict_split({"test": studies}, RulePredictor(), OPTIONS)
    rows = {row["title"]: row for row in measure_as_published(predictions, OPTIONS)["test_to_test"]}
    assert rows["model, findings"]["p@5"] == pytest.approx(1 / 5)
    assert 0.5 <= rows["model, findings"]["mrr"] <= 1  # itself and the other view tie


def test_images_that_reports_name_count_where_there_are_no_files():
    rows = [
        make_row(0, image=False, image_ids=["a", "b"]),
        make_row(1, image=False, image_ids=[]),
        make_row(2, image=False, image_ids=["c"]),
    ]
    images, owners = split_by_image(select_studies(rows, ["CXR0", "CXR1", "CXR2"]))
    assert list(owners) == [0, 0, 2]
    assert not images.has_image().any()
    unnamed = [make_row(number, image=False, image_ids=[]) for number in range(3)]
    assert list(split_by_image(select_studies(unnamed, ["CXR0", "CXR1", "CXR2"]))[1]) == [0, 1, 2]


def test_a_refused_image_leaves_its_study_out_of_every_row(parts):
    predictions = predict_split(parts, RulePredictor(refused=["100.dcm", "3.dcm"]), OPTIONS)
    assert "CXR100" not in predictions.test.study_ids
    assert (len(predictions.test), len(predictions.gallery), predictions.unreadable) == (59, 59, 1)
    results = measure(predictions, parts, BUNDLE, draw_pixels, OPTIONS)
    assert get_rows(results)["findings"]["studies"] == 59
    assert get_rows(results)["image/swapped_image"]["studies"] == 58  # whoever got that image


def test_no_image_can_be_read(parts):
    refused = [f"{number}.dcm" for number in range(150)]
    with pytest.raises(ConfigError, match=r"none of 60 studies .*90\.dcm"):
        predict_split(parts, RulePredictor(refused=refused), OPTIONS)


def test_reports_alone(tmp_path):
    parts = {
        name: make_studies(range(start, start + 40), image=False)
        for name, start in (("train", 0), ("validation", 40), ("test", 80))
    }
    predictions = predict_split(parts, RulePredictor(), OPTIONS)
    results = {**measure(predictions, parts, BUNDLE, draw_pixels, OPTIONS), "data": "", "served": None}
    assert results["subgroups"] == results["pairs"] == []
    assert "findings/swapped_report" in get_rows(results)
    assert "Images and their reports" not in write_report(results)
    draw_plots(predictions, results, "findings", tmp_path)


def test_a_model_of_phantoms_says_so_first(results):
    assert results["trained_on"] == "openi"
    assert "trained on Open-i" in write_report(results)
    assert PHANTOM_WARNING not in write_report(results) + write_summary(results, "evaluation")
    drawn = {**results, "trained_on": "phantom"}
    assert write_report(drawn).startswith(f"# Evaluation\n\n**{PHANTOM_WARNING}**\n")
    assert write_summary(drawn, "evaluation").startswith(f"**{PHANTOM_WARNING}**\n")


def test_two_predictors_are_compared(parts, predictions):
    same = compare_predictions(predictions, predict_split(parts, RulePredictor(), OPTIONS), 0)
    assert (same["probabilities"], same["embeddings"]) == (0, 0)
    assert same["cases"] == sum(int(found.answered.sum()) for found in predictions.answers.values()) + 3 * 60
    other = compare_predictions(predictions, predict_split(parts, RulePredictor(noise=0.01), OPTIONS), 0)
    assert other["probabilities"] == pytest.approx(0.01, abs=1e-6)
    with pytest.raises(ConfigError, match="different studies"):
        compare_predictions(predictions, predict_split(parts, RulePredictor(refused=["100.dcm"]), OPTIONS), 0)


def test_results_are_written_as_json_markdown_and_pictures(predictions, results, tmp_path):
    assert json.loads(json.dumps(results, allow_nan=False))["options"] == {"seed": 0, "resamples": 30}
    report = write_report(results)
    for title in (
        "Findings",
        "Micro averages",
        "AUROC per label",
        "Subgroups",
        "Similar cases",
        "As published",
    ):
        assert f"# {title}\n" in report
    tables = [line for line in report.splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in tables}
    assert not any(re.search(r"\bnan\b", line) for line in tables)
    assert widths
    paths = draw_plots(predictions, results, "findings", tmp_path)
    assert all(f"]({path.name})" in report for path in paths)
    assert [path.name for path in paths] == [
        "roc.png",
        "precision_recall.png",
        "reliability.png",
        "risk_coverage.png",
        "retrieval.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_served_answers_are_told_with_their_distance(results):
    gaps = {"probabilities": 2e-7, "embeddings": 1e-7, "cases": 900.0, "macro": 0.0}
    report = write_report(
        {**results, "served": {**gaps, "allowed": {"probabilities": 1e-4, "embeddings": 1e-5}}}
    )
    assert "probability 2.0e-07 (allowed 1e-04)" in report


def test_a_card_holds_the_last_evaluation(results):
    card = insert_evaluation("# Model\n\nText.\n", write_summary(results, "evaluation"))
    assert card.startswith("# Model\n\nText.\n\n<!-- evaluation -->\n")
    again = insert_evaluation(card, "Other figures.")
    assert "Other figures." in again
    assert again.count("<!-- evaluation -->") == 1
    assert "Similar cases" in card
    assert "![ROC curves per label](evaluation/roc.png)" in card
    assert "Similar cases" not in again
    assert np.char.count(again, "Text.") == 1
