"""Present, absent or uncertain: from the served model's parameters to the client's answer and the terminal."""

import io
import json
from dataclasses import replace

import pytest
from fake_triton import FakeTriton, FakeTritonClient
from rich.console import Console

from cli.show import print_prediction
from client import CxrClient
from client.prediction import ConformalSet, Finding
from client.triton import TritonTransport
from contract.decisions import Decisions, ServedLabel
from contract.errors import ArtifactError
from contract.labels import LABEL_KEYS, LABELS
from contract.notes import ImageNotes
from contract.training_data import UNDECIDED_WARNING

STATED = {"uncertain_low": 0.25, "uncertain_high": 0.75, "include": 0.1, "stated_recall": 0.9}
PLAIN = tuple(ServedLabel(label.key, label.name, 0.5) for label in LABELS)
BANDED = tuple(replace(label, **STATED) for label in PLAIN)
PROBABILITIES = [0.05, 0.25, 0.5, 0.75, *[0.0] * 18]


def predict(monkeypatch, decisions, **case):
    """Return the model that the real transport reads from its configuration, and a prediction of the fake one."""
    return predict_with(monkeypatch, FakeTritonClient(decisions=json.dumps(decisions)), case)


def predict_with(monkeypatch, tritonclient, case):
    triton = FakeTriton()
    triton.outputs = {
        "probabilities": [PROBABILITIES],
        "image_notes": [[ImageNotes("PA", "", "DX").to_json()]],
    }
    monkeypatch.setattr(TritonTransport, "_client", lambda _self: tritonclient)
    with CxrClient() as client:
        monkeypatch.setattr(client._tritons[0], "infer", triton.infer)
        return client.info(), client.predict(**(case or {"report": "Clear."}))


def describe(labels) -> dict:
    return Decisions.repeat(tuple(labels)).describe()


def test_decisions_come_with_the_served_model(monkeypatch):
    info, prediction = predict(monkeypatch, describe(BANDED))
    assert info.decisions == Decisions.repeat(BANDED)
    assert info.to_dict()["decisions"]["image"][0] == {
        "key": PLAIN[0].key,
        "name": PLAIN[0].name,
        "threshold": 0.5,
        **STATED,
    }
    decisions = [finding.decision for finding in prediction.findings]
    assert decisions == ["absent", "uncertain", "uncertain", "present", *["absent"] * 18]
    assert [finding.present for finding in prediction.findings[:4]] == [False, False, True, True]
    assert [finding.confidence for finding in prediction.findings[:4]] == pytest.approx(
        [0.95, 0.75, 0.5, 0.75]
    )
    assert prediction.conformal_set.keys == LABEL_KEYS[1:4]
    said = json.loads(json.dumps(prediction.to_dict()))
    assert said["conformal_set"] == {"keys": list(LABEL_KEYS[1:4]), "stated_recall": 0.9}
    assert said["findings"][1]["decision"] == "uncertain"
    assert said["findings"][1]["uncertain_high"] == 0.75


def test_a_model_without_bands_decides_everything(monkeypatch):
    info, prediction = predict(monkeypatch, describe(PLAIN))
    assert info.decisions == Decisions.repeat(PLAIN)
    assert {finding.decision for finding in prediction.findings} == {"present", "absent"}
    assert all((finding.decision == "present") == finding.present for finding in prediction.findings)
    assert prediction.conformal_set is None
    assert prediction.to_dict()["conformal_set"] is None
    assert Finding("x", "X", 0.5, 0.5).decision == "present"


def test_a_set_needs_a_statement_about_every_label(monkeypatch):
    labels = (*BANDED[:-1], PLAIN[-1])
    assert predict(monkeypatch, describe(labels))[1].conformal_set is None


def test_what_a_newer_server_says_besides_is_passed_over(monkeypatch):
    said = {
        way: [{**label, "colour": "blue"} for label in labels] for way, labels in describe(BANDED).items()
    }
    info, _ = predict(monkeypatch, said)
    assert info.decisions == Decisions.repeat(BANDED)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"uncertain_low": 0.6}, "band 0.6 to 0.75, which does not contain the threshold"),
        ({"uncertain_high": 1.5}, "uncertain high 1.5, not 0 to 1"),
        ({"threshold": "0.5"}, "a value that is not a number"),
        ({"include": None}, "only one of include and stated_recall"),
        ({"key": "other"}, "22 categories in their order"),
    ],
)
def test_a_server_whose_labels_make_no_sense_is_refused(monkeypatch, changes, words):
    decisions = describe(BANDED)
    decisions["image"][0] |= changes
    with pytest.raises(ArtifactError, match=words):
        predict(monkeypatch, decisions)
    with pytest.raises(ArtifactError, match="does not hold the labels of each way"):
        predict(monkeypatch, [5])


def test_a_server_of_an_older_version_is_refused(monkeypatch):
    old = FakeTritonClient(labels=json.dumps([label.describe() for label in PLAIN]))
    with pytest.raises(ArtifactError, match=r"one threshold per label .* Publish the bundle again"):
        predict_with(monkeypatch, old, {})


def test_each_way_is_decided_by_its_own_thresholds_and_sets(monkeypatch):
    low, high = (tuple(replace(label, threshold=value) for label in PLAIN) for value in (0.2, 0.6))
    decisions = Decisions({"image": low, "text": high, "study": BANDED}).describe()
    counts = {}
    for case in ({"image": b"x"}, {"report": "Clear."}, {"image": b"x", "report": "Clear."}):
        _, prediction = predict(monkeypatch, decisions, **case)
        assert not prediction.warnings
        found = [finding.decision for finding in prediction.findings]
        counts[prediction.kind] = (found.count("present"), prediction.conformal_set is not None)
    assert counts == {"image": (3, False), "text": (1, False), "study": (1, True)}


def test_a_way_without_thresholds_decides_nothing_and_says_so(monkeypatch):
    of_reports = Decisions({"text": BANDED}).describe()
    assert not predict(monkeypatch, of_reports)[1].warnings
    info, prediction = predict(monkeypatch, of_reports, image=b"x")
    assert list(info.to_dict()["decisions"]) == ["text"]
    assert UNDECIDED_WARNING in prediction.warnings
    assert prediction.conformal_set is None
    finding = prediction.findings[3]
    assert (finding.probability, finding.present, finding.decision) == (0.75, None, "undecided")
    said = json.loads(json.dumps(prediction.to_dict()))["findings"][3]
    assert (said["present"], said["threshold"], said["confidence"]) == (None, None, None)
    shown = show(prediction)
    assert "not decided" in shown
    assert UNDECIDED_WARNING in shown


def show(prediction) -> str:
    console = Console(record=True, width=160, file=io.StringIO())
    print_prediction(console, prediction, top=4)
    return console.export_text()


def test_the_terminal_says_uncertain(monkeypatch):
    shown = show(predict(monkeypatch, describe(BANDED))[1])
    rows = {line.split("│")[1].strip(): line for line in shown.splitlines() if line.startswith("│")}
    assert "uncertain (0.250 to 0.750)" in rows[PLAIN[1].name]
    assert "present" in rows[PLAIN[3].name]
    assert "below" in rows[PLAIN[0].name]
    names = ", ".join(label.name for label in PLAIN[1:4])
    assert f"Possible labels from the report: {names}. Such a list holds at least 90 % of a study's" in shown
    shown = show(predict(monkeypatch, describe(PLAIN))[1])
    assert "uncertain" not in shown
    assert "Possible labels" not in shown


@pytest.mark.parametrize("kind", ["study", "image", "text"])
def test_a_set_is_named_where_it_is_short_and_else_said_to_narrow_nothing(kind):
    read = {"study": "the image and the report", "image": "the image", "text": "the report"}[kind]
    recall = "at least 90 % of a study's labels on average."
    first = LABELS[0].name
    assert (
        ConformalSet((), 0.9).to_sentence(kind)
        == f"Possible labels from {read}: none. Such a list holds {recall}"
    )
    assert f"from {read}: {first}. Such" in ConformalSet(LABEL_KEYS[:1], 0.9).to_sentence(kind)
    five = ConformalSet(LABEL_KEYS[:5], 0.9).to_sentence(kind)
    assert all(label.name in five for label in LABELS[:5])
    six = ConformalSet(LABEL_KEYS[:6], 0.9).to_sentence(kind)
    verb = "do" if kind == "study" else "does"
    assert six == (
        f"{read.capitalize()} {verb} not narrow the labels down: 6 of 22 would have to be named to hold {recall}"
    )
    assert "14 of 22" in ConformalSet(LABEL_KEYS[:14], 0.9).to_sentence(kind)
