"""The training data of the served model: read from its configuration, and stated in results."""

import io
import json

import numpy as np
import pytest
from fake_triton import make_config
from rich.console import Console

from cli.show import print_checks, print_indexed, print_prediction
from client.cases import IndexResult
from client.exchange import read_answer
from client.health import Health
from client.prediction import Prediction
from client.served import parse_model
from contract.decisions import ServedLabel
from contract.labels import LABELS
from contract.tensors import EMBEDDING, PROBABILITIES
from contract.training_data import HELD_OUT, PHANTOM_WARNING, UNMEASURED, WAYS
from training.evaluation.selective import mark_unlearned


@pytest.mark.parametrize(
    ("said", "trained_on", "warnings"),
    [
        ({"trained_on": "phantom"}, "phantom", (PHANTOM_WARNING,)),
        ({"trained_on": "openi"}, "openi", ()),
        ({"trained_on": "unknown"}, "unknown", ()),
        ({"trained_on": ""}, "unknown", ()),
        ({"trained_on": "a\x1b[2Jb"}, "unknown", ()),  # a terminal would obey it
        ({}, "unknown", ()),  # published by an older version
    ],
)
def test_a_served_model_says_what_it_was_trained_on(said, trained_on, warnings):
    model = parse_model("predict_study", make_config(**said), source="Triton")
    assert model.trained_on == trained_on
    assert model.warnings == warnings
    told = json.loads(json.dumps(model.to_dict()))
    assert (told["trained_on"], told["warnings"]) == (trained_on, list(warnings))


@pytest.mark.parametrize(
    ("said", "ways"),
    [
        ({"trained_ways": "text"}, ("text",)),
        ({"trained_ways": "text,image"}, ("image", "text")),
        ({"trained_ways": "voice"}, ("study", "image", "text")),
        ({}, ("study", "image", "text")),  # published by an older version
    ],
)
def test_a_served_model_says_what_it_was_trained_to_read(said, ways):
    assert parse_model("predict_study", make_config(**said), source="Triton").trained_ways == ways


def test_a_label_that_was_held_out_is_not_decided_and_stands_last():
    served = tuple(ServedLabel(label.key, label.name, 0.4) for label in LABELS)
    learned = np.array([label.key != "cardiac" for label in LABELS])
    labels = [label.describe() for label in mark_unlearned(served, learned)]
    said = {"held_out": "cardiac", "decisions": json.dumps(dict.fromkeys(WAYS, labels))}
    model = parse_model("predict_text", make_config("predict_text", **said), source="Triton")
    assert model.held_out == ("cardiac",)
    assert parse_model("predict_text", make_config("predict_text"), source="Triton").held_out == ()
    probabilities = np.full((1, 22), 0.1, np.float32)
    probabilities[0, ~learned] = 0.5
    answer = {PROBABILITIES.name: probabilities, EMBEDDING.name: np.ones((1, 7), np.float32)}
    prediction = read_answer("text", model, answer)
    [finding] = [finding for finding in prediction.findings if finding.held_out]
    assert (finding.key, finding.decision, finding.remark) == ("cardiac", "uncertain", HELD_OUT)
    assert [entry["held_out"] for entry in prediction.to_dict()["findings"]].count(True) == 1
    console = make_console()
    print_prediction(console, prediction, top=22)
    lines = console.export_text().splitlines()
    [place] = [number for number, line in enumerate(lines) if HELD_OUT in line]
    names = [number for number, line in enumerate(lines) if any(label.name in line for label in LABELS)]
    assert place == names[-1] + 1  # its 0.5 is above all others, and comes behind them


@pytest.mark.parametrize(
    ("said", "keys"),
    [
        ({"unmeasured": "air_leak,malignancy"}, ("malignancy", "air_leak")),
        ({"unmeasured": "x"}, ()),
        ({}, ()),
    ],
)
def test_a_finding_says_that_its_label_was_not_measured(said, keys):
    model = parse_model("predict_text", make_config("predict_text", **said), source="Triton")
    assert model.unmeasured == keys
    answer = {
        PROBABILITIES.name: np.full((1, 22), 0.7, np.float32),
        EMBEDDING.name: np.ones((1, 7), np.float32),
    }
    prediction = read_answer("text", model, answer)
    assert tuple(finding.key for finding in prediction.findings if finding.unmeasured) == keys
    told = json.loads(json.dumps(prediction.to_dict()))["findings"]
    assert [finding["key"] for finding in told if finding["unmeasured"]] == list(keys)
    console = make_console()
    print_prediction(console, prediction, top=22)
    assert console.export_text().count(UNMEASURED) == len(keys)


@pytest.mark.parametrize(
    ("ways", "kind", "words"),
    [
        (("text",), "text", None),
        (("text",), "image", "trained without images. Its answer about one means nothing"),
        (("text",), "study", "trained without images. Its answer about one means nothing"),
        (("image",), "text", "trained without reports. Its answer about one means nothing"),
        (("image",), "study", "trained without reports"),
        (("image", "text"), "study", "trained on images and reports separately"),
        (("study", "text"), "image", "never trained on an image alone"),
        (("study",), "text", "never trained on a report alone"),
        (("study", "image", "text"), "study", None),
    ],
)
def test_an_answer_to_what_the_model_was_not_trained_to_read_says_so(ways, kind, words):
    prediction = Prediction(
        kind, (), np.ones(4, np.float32), "ab" * 32, trained_on="openi", trained_ways=ways
    )
    if words is None:
        assert prediction.warnings == ()
    else:
        (sentence,) = prediction.warnings
        assert words in sentence
        assert prediction.to_dict()["warnings"] == [sentence]


def make_console() -> Console:
    return Console(record=True, width=200, file=io.StringIO())


def test_indexing_says_it_once_and_not_of_every_case():
    console = make_console()
    warned = (("case", ("The image is a lateral view.",)),)
    print_indexed(console, IndexResult(30, 0, (), warned, "phantom"))
    shown = console.export_text().splitlines()
    assert shown[:2] == [
        "30 cases indexed (30 added, 0 replaced), 1 of them with a warning, 0 refused",
        f"Warning: {PHANTOM_WARNING}",
    ]
    assert sum(PHANTOM_WARNING in line for line in shown) == 1


@pytest.mark.parametrize(
    ("trained_on", "words", "warned"),
    [("phantom", "drawn phantoms", True), ("openi", "Open-i", False), ("[red]x", "[red]x", False)],
)
def test_doctor_says_what_the_served_model_was_trained_on(trained_on, words, warned):
    console = make_console()
    print_checks(console, (), Health(None, None, "ab" * 32, 5, trained_on))
    shown = console.export_text()
    assert f"model {'ab' * 6}, trained on {words}, 5 cases indexed" in shown
    assert (PHANTOM_WARNING in shown) == warned


def test_doctor_does_not_count_cases_that_it_cannot_see():
    health = Health(None, "The retrieval sidecar does not answer.", "ab" * 32, None, "phantom")
    console = Console(file=io.StringIO(), width=200)
    print_checks(console, [], health)
    assert (
        f"model {'ab' * 6}, trained on drawn phantoms, unknown how many cases indexed"
        in console.file.getvalue()
    )
