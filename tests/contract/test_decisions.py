"""What a model decides: by way, inside and outside a band, and which numbers are refused."""

import json
from dataclasses import replace

import pytest

from contract.decisions import UNDECIDED, Decisions, ServedLabel, check_decisions, parse_decisions
from contract.errors import ArtifactError
from contract.labels import LABEL_KEYS, LABELS

SERVED = tuple(ServedLabel(label.key, label.name, 0.5, 1.5, -0.25) for label in LABELS)
BANDED = replace(
    SERVED[0],
    uncertain_low=0.3,
    uncertain_high=0.7,
    stated_missed=0.1,
    stated_false_alarms=0.05,
    include=0.2,
    stated_recall=0.9,
)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ((), "22 categories in their order"),
        (SERVED[:-1], "22 categories in their order"),
        ((*SERVED, SERVED[0]), "22 categories in their order"),
        (SERVED[::-1], "22 categories in their order"),
        ((SERVED[1], SERVED[0], *SERVED[2:]), "22 categories in their order"),
        (
            (replace(SERVED[0], threshold=float("nan")), *SERVED[1:]),
            f"a value that is not a number for {LABEL_KEYS[0]}",
        ),
        ((replace(SERVED[0], scale="2"), *SERVED[1:]), f"a value that is not a number for {LABEL_KEYS[0]}"),
        (
            (replace(SERVED[0], bias=float("inf")), *SERVED[1:]),
            f"a value that is not a number for {LABEL_KEYS[0]}",
        ),
        ((replace(SERVED[0], threshold=1.5), *SERVED[1:]), "threshold 1.5, not 0 to 1"),
        ((replace(SERVED[0], threshold=-0.1), *SERVED[1:]), "threshold -0.1, not 0 to 1"),
        ((replace(BANDED, uncertain_low=-0.1), *SERVED[1:]), "uncertain low -0.1, not 0 to 1"),
        ((replace(BANDED, uncertain_high=1.1), *SERVED[1:]), "uncertain high 1.1, not 0 to 1"),
        (
            (replace(BANDED, uncertain_low=float("nan")), *SERVED[1:]),
            f"a value that is not a number for {LABEL_KEYS[0]}",
        ),
        ((replace(BANDED, include="0.1"), *SERVED[1:]), f"a value that is not a number for {LABEL_KEYS[0]}"),
        ((replace(BANDED, uncertain_low=None), *SERVED[1:]), "only one of uncertain_low and uncertain_high"),
        ((replace(BANDED, stated_recall=None), *SERVED[1:]), "only one of include and stated_recall"),
        ((replace(BANDED, include=2.0), *SERVED[1:]), "include 2.0, not 0 to 1"),
        ((replace(BANDED, stated_missed=-1.0), *SERVED[1:]), "stated missed -1.0, not 0 to 1"),
        ((replace(BANDED, uncertain_low=0.6), *SERVED[1:]), "band 0.6 to 0.7, which does not contain"),
        ((replace(BANDED, uncertain_high=0.4), *SERVED[1:]), "band 0.3 to 0.4, which does not contain"),
        (UNDECIDED, f"a value that is not a number for {LABEL_KEYS[0]}"),
    ],
)
def test_wrong_labels(labels, words):
    decisions = Decisions({"study": SERVED, "text": labels})
    with pytest.raises(ArtifactError, match=words):
        check_decisions(decisions, source="here")
    with pytest.raises(ArtifactError, match=words):
        parse_decisions(json.loads(json.dumps(decisions.to_dict())), source="here")


@pytest.mark.parametrize("value", [None, [], {"study": None}, {"study": [5]}, {"image": [{"x": 1}]}])
def test_no_decisions(value):
    with pytest.raises(ArtifactError, match="here does not hold the labels of each way"):
        parse_decisions(value, source="here")


def test_what_is_stated_is_read_back():
    decisions = Decisions({"text": (BANDED, *SERVED[1:]), "image": SERVED})
    written = decisions.to_dict()
    assert list(written) == ["image", "text"]  # in the order of the ways
    assert parse_decisions(json.loads(json.dumps(written)), source="here") == decisions
    assert set(written["text"][1]) == {"key", "name", "threshold", "scale", "bias"}
    said = decisions.describe()["text"]
    assert said[0].keys() == written["text"][0].keys() - {"scale", "bias"}
    assert said[1] == {"key": SERVED[1].key, "name": SERVED[1].name, "threshold": 0.5}


def test_what_a_newer_version_says_besides_is_passed_over():
    said = {"voice": 5, "image": [{**label.to_dict(), "colour": "blue"} for label in SERVED]}
    assert parse_decisions(said, source="here") == Decisions({"image": SERVED})


def test_each_way_decides_by_itself():
    low = tuple(replace(label, threshold=0.1) for label in SERVED)
    decisions = Decisions({"study": SERVED, "image": low})
    assert [decisions.of(way)[0].decide(0.3) for way in ("study", "image", "text")] == [
        "absent",
        "present",
        "undecided",
    ]
    assert decisions.get_thresholds("image").tolist() == [0.1] * 22
    assert decisions.get_thresholds("text") is None
    assert [label.key for label in decisions.of("text")] == list(LABEL_KEYS)


@pytest.mark.parametrize(
    ("probability", "plain", "banded"),
    [
        (0.29, "absent", "absent"),
        (0.3, "absent", "uncertain"),
        (0.49, "absent", "uncertain"),
        (0.5, "present", "uncertain"),
        (0.69, "present", "uncertain"),
        (0.7, "present", "present"),
    ],
)
def test_decisions(probability, plain, banded):
    assert SERVED[0].decide(probability) == plain
    assert BANDED.decide(probability) == banded
    assert replace(BANDED, uncertain_low=0.5, uncertain_high=0.5).decide(probability) == plain
