"""The model card: metadata that the hub reads, figures as measured, nothing claimed that was not."""

import logging
import math
import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from contract.labels import LABEL_KEYS, LABEL_NAMES
from contract.training_data import PHANTOM_WARNING
from training.card.card import insert_evaluation, write_card
from training.config.settings import LossConfig, OptimizerConfig, TrainConfig, WeightsConfig
from training.config.toml_file import change_settings, tomllib

DETAILS = {
    "versions": {"python": "3.11.7", "torch": "2.14.1"},
    "git_commit": "750d015",
    "data_sha256": "633613d2" * 8,
    "seed": 4,
    "device": "CPU",
    "seconds": 168.4,
}
BLOCK = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.0313, "high": value + 0.0217}


def make_result(start: float, studies: int) -> dict:
    names = ("auroc", "ap", "f1", "brier", "ece")
    macro = {name: interval(round(start - 0.05 * place, 4)) for place, name in enumerate(names)}
    return {
        "studies": studies,
        "averaged": ["cardiac"],
        "macro": macro,
        "labels": {"cardiac": {**macro, "positives": 9}},
    }


def make_metrics(**test: dict) -> dict:
    count = {"studies": 560, "image": 548, "text": 555, "labelled": 544}
    return {
        "test": test,
        "studies": {"train": count, "validation": {**count, "studies": 71}, "test": {**count, "studies": 69}},
        "unreadable_images": 3,
        "training_positives": dict.fromkeys(LABEL_KEYS, 40) | {"air_leak": 2},
    }


METRICS = make_metrics(study=make_result(0.95, 65), image=make_result(0.77, 68), text=make_result(0.91, 66))
CONFIG = TrainConfig(name="demo", seed=4)


def read_metadata(card: str) -> dict:
    return yaml.safe_load(BLOCK.match(card).group(1))


def test_metadata_is_what_the_hub_reads(caplog):
    card = write_card(CONFIG, METRICS, DETAILS)
    with caplog.at_level(logging.WARNING):
        parsed = ModelCard(card)
    assert not caplog.messages
    assert str(parsed) == card, "the hub's own parser and writer give the card back"
    data = parsed.data
    assert (data.language, data.library_name, data.pipeline_tag) == (
        "en",
        "cxr-serving",
        "image-classification",
    )
    assert data.metrics == ["roc_auc", "average_precision", "f1"]
    assert {"chest-x-ray", "multimodal", "custom"} <= set(data.tags)
    assert "None" not in BLOCK.match(card).group(1)


def test_model_index_holds_every_way_with_its_interval():
    name, results = model_index_to_eval_results(
        read_metadata(write_card(CONFIG, METRICS, DETAILS))["model-index"]
    )
    assert name == "cxr-serving demo"
    found = {(result.dataset_config, result.metric_type): result for result in results}
    assert set(found) == {
        (way, name) for way in ("study", "image", "text") for name in ("roc_auc", "average_precision", "f1")
    }
    for way in ("study", "image", "text"):
        expected = METRICS["test"][way]["macro"]["ap"]
        result = found[way, "average_precision"]
        assert result.metric_value == expected["value"]
        assert (result.metric_args["low_95"], result.metric_args["high_95"]) == (
            expected["low"],
            expected["high"],
        )
        assert result.dataset_split == "test"
        assert result.dataset_args["studies"] == METRICS["test"][way]["studies"]
    assert found["text", "f1"].task_type == "text-classification"
    assert found["image", "f1"].task_type == found["study", "f1"].task_type == "image-classification"


def test_what_was_not_measured_is_not_in_the_index():
    empty = {**make_result(0.9, 4), "macro": {}, "labels": {}}
    card = write_card(CONFIG, make_metrics(text=empty), DETAILS)
    data = read_metadata(card)
    assert "model-index" not in data
    assert "model_name" not in data
    assert data["pipeline_tag"] == "text-classification"
    assert "| report only | 4 | too few cases |" in card
    broken = make_result(0.9, 4)
    broken["macro"]["f1"] = dict.fromkeys(("value", "low", "high"), math.nan)
    index = read_metadata(write_card(CONFIG, make_metrics(text=broken), DETAILS))["model-index"]
    assert {metric["type"] for metric in index[0]["results"][0]["metrics"]} == {
        "roc_auc",
        "average_precision",
    }


def test_a_model_without_any_test_way_still_has_a_card():
    card = write_card(CONFIG, make_metrics(), DETAILS)
    assert "image encoder is untrained" in card
    assert ModelCard(card).data.eval_results is None


def test_body_says_what_was_measured_and_on_what():
    card = write_card(CONFIG, METRICS, DETAILS)
    assert (
        "| image + report | 65 | 0.950 (0.919 to 0.972) | 0.900 (0.869 to 0.922) | 0.850 (0.819 to 0.872) |"
        in card
    )
    assert "| validation | 71 | 548 | 555 | 544 |" in card
    assert "3 image(s) could not be read" in card
    name = LABEL_NAMES["cardiac"]
    assert f"| {name} | 40 | 9 | 0.950 (0.919 to 0.972) |" in card
    assert f"fewer than 10 training cases: {LABEL_NAMES['air_leak']}." in card
    assert card.count("too few cases |") == 3 * (len(LABEL_KEYS) - 1)
    assert "never use it for a diagnosis" in card
    assert "It reads `findings`: the findings, or the impression of a report without findings." in card
    assert "image encoder is untrained" not in card
    for heading in (
        "Intended use",
        "Data",
        "Calibration, thresholds and abstention",
        "Limits",
        "Training",
        "Licence",
        "Methods to cite",
    ):
        assert card.count(f"\n## {heading}\n") == 1


@pytest.mark.parametrize("source", ["openi", "phantom", "my hospital", None])
def test_labels_in_doubt_are_marked(source):
    card = write_card(CONFIG, METRICS, {**DETAILS, "data_source": source})
    known = source in {"openi", "phantom"}  # whose labels come from that table
    assert ("### Labels in doubt" in card) is known
    assert (f"| {LABEL_NAMES['fibrosis_ild']} | `cicatrix` | A scar is" in card) is known
    assert ("| `lung/hyperdistention`; `diaphragm/flattened` |" in card) is known


def test_ways_stand_in_their_order_whatever_the_file_sorts():
    """metrics.json is sorted by name; the categories are shown for image and report together, if they were tested."""
    sorted_by_name = {**METRICS, "test": dict(sorted(METRICS["test"].items())), "studies": METRICS["studies"]}
    card = write_card(CONFIG, sorted_by_name, DETAILS)
    assert card == write_card(CONFIG, METRICS, DETAILS)
    assert "### By category, from image + report\n" in card
    ways = [result["dataset"]["config"] for result in read_metadata(card)["model-index"][0]["results"]]
    assert ways == ["study", "image", "text"]
    other = write_card(CONFIG, make_metrics(later=make_result(0.9, 7)), DETAILS)
    assert "| later | 7 | 0.900" in other


def test_two_views_have_their_rows():
    metrics = make_metrics(study=make_result(0.95, 65), study_views=make_result(0.9, 60))
    card = write_card(CONFIG, metrics, DETAILS)
    assert "| two views + report | 60 | 0.900" in card
    assert "study_views" in {
        result["dataset"]["config"] for result in read_metadata(card)["model-index"][0]["results"]
    }


def test_training_is_told_in_full():
    config = replace(CONFIG, weights=WeightsConfig(image="swin.safetensors", freeze=("image",)))
    card = write_card(config, METRICS, DETAILS)
    toml = card.split("```toml\n")[1].split("```")[0]
    assert change_settings(TrainConfig(name=""), tomllib.loads(toml)) == config
    assert "Image weights: `swin.safetensors`; text weights: from scratch." in card
    assert "168 s on CPU" in card
    assert f"commit {DETAILS['git_commit']}" in card
    assert DETAILS["data_sha256"] in card
    assert "python 3.11.7, torch 2.14.1" in card
    assert "commit unknown" in write_card(config, METRICS, {**DETAILS, "git_commit": None})


PRETRAINED = WeightsConfig(image="hf-hub:timm/swin_tiny", text="emilyalsentzer/Bio_ClinicalBERT")


@pytest.mark.parametrize(
    ("source", "weights", "licence", "words"),
    [
        ("phantom", WeightsConfig(), "mit", "nothing about patients"),
        ("phantom", WeightsConfig(), "mit", f"diagnosis.**\n\n**{PHANTOM_WARNING}**\n\n- Image"),
        ("phantom", PRETRAINED, "other", "Those licences apply too"),
        ("openi", WeightsConfig(), "other", "CC BY-NC-ND 4.0"),
        ("my hospital", WeightsConfig(), "other", "Source: my hospital."),
        (None, WeightsConfig(), "other", "does not name the collection"),
    ],
)
def test_licence_follows_data_and_weights(source, weights, licence, words):
    details = {**DETAILS, "data_source": source} if source else DETAILS
    card = write_card(replace(CONFIG, weights=weights), METRICS, details)
    data = read_metadata(card)
    assert data["license"] == licence
    assert ("license_link" in data) is (licence == "other")
    assert words in card
    assert ("Demner-Fushman" in card) is (source == "openi")


def test_hub_ids_are_named_and_files_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "bert").mkdir()
    hub = write_card(replace(CONFIG, weights=PRETRAINED), METRICS, {**DETAILS, "datasets": ["me/reports"]})
    assert read_metadata(hub)["base_model"] == ["timm/swin_tiny", "emilyalsentzer/Bio_ClinicalBERT"]
    assert read_metadata(hub)["datasets"] == ["me/reports"]
    for source in ("local/bert", "/data/bert", "./bert", "a/b/c", "bert.safetensors", "../x"):
        card = write_card(replace(CONFIG, weights=WeightsConfig(text=source)), METRICS, DETAILS)
        assert "base_model" not in read_metadata(card), source
        assert "datasets" not in read_metadata(card)


def test_only_methods_of_this_run_are_cited():
    card = write_card(CONFIG, METRICS, DETAILS)
    assert "Focal Loss" in card
    assert "Decoupled Weight Decay" in card
    other = replace(
        CONFIG,
        loss=LossConfig(bce_share=1.0, contrastive_weight=0.0),
        optimizer=OptimizerConfig(name="muon"),
    )
    card = write_card(other, METRICS, DETAILS)
    assert "Focal Loss" not in card
    assert "CLIP" not in card
    assert "Muon" in card


def test_a_name_cannot_break_the_metadata():
    name = 'x: "y"\n---\nlicense: mit'
    card = write_card(replace(CONFIG, name=name), METRICS, DETAILS)
    data = read_metadata(card)
    assert data["model-index"][0]["name"] == f"cxr-serving {name}"
    assert data["license"] == "other"


def test_evaluation_takes_the_place_of_the_note():
    card = write_card(CONFIG, METRICS, DETAILS)
    assert "Not run yet." in card
    first = insert_evaluation(card, "| controls |\n")
    assert "Not run yet." not in first
    assert first.endswith("| controls |\n<!-- end of evaluation -->\n")
    again = insert_evaluation(first, "Other figures.")
    assert "| controls |" not in again
    assert again.count("\n# Evaluation\n") == 1
    assert again.split("<!-- evaluation -->")[0] == card.split("<!-- evaluation -->")[0]
    assert read_metadata(again) == read_metadata(card)


@pytest.mark.parametrize(
    "card",
    ["", "Text.", "Text.\n<!-- evaluation -->\nhalf", "<!-- end of evaluation -->\n<!-- evaluation -->"],
)
def test_a_card_with_broken_marks_loses_nothing(card):
    written = insert_evaluation(card, "Figures.")
    assert written.startswith(card.rstrip())
    assert written.endswith("Figures.\n<!-- end of evaluation -->\n")


def test_the_card_says_how_well_views_are_told():
    score = {"laterals": 60, "frontals": 70, "accuracy": 0.985, "auroc": 0.997}
    score |= {"laterals_called_lateral": 0.9, "frontals_called_lateral": 0.0}
    card = write_card(CONFIG, METRICS | {"view_head": score}, DETAILS)
    assert "### View head" in card
    assert "Accuracy 0.985, AUROC 0.997 on 60 lateral and 70 frontal images" in card
    few = write_card(CONFIG, METRICS | {"view_head": {"laterals": 3, "frontals": 70}}, DETAILS)
    assert "Not measured: 3 lateral and 70 frontal images" in few
    for none in (METRICS, METRICS | {"view_head": {}}):  # of an older bundle, and without a head
        assert "answers 0.5 to every image and never warns" in write_card(CONFIG, none, DETAILS)
