"""What a bundle records of its training data, and the sentence that a model of phantoms owes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from contract.bundle import Bundle
from contract.labels import LABEL_KEYS
from contract.training_data import (
    PHANTOM_WARNING,
    WAYS,
    describe_training,
    parse_keys,
    read_held_out,
    read_trained_on,
    read_trained_ways,
    read_unmeasured,
    warn_of_training,
)


@pytest.mark.parametrize(
    ("recorded", "name"),
    [
        *(
            ("phantom", "phantom"),
            ("openi", "openi"),
            (" openi\n", "openi"),
            ("Our hospital, 2024", "Our hospital, 2024"),
        ),
        *((value, "unknown") for value in (None, "", "  ", 7, ["phantom"], "a\nb", "a\x1b[31m", "x" * 101)),
    ],
)
def test_a_collection_is_one_short_line_or_unknown(recorded, name):
    manifest = json.loads(json.dumps({"data_source": recorded}))
    bundle = Bundle(Path("bundle"), "f" * 64, {}, (), manifest)
    assert bundle.trained_on == read_trained_on(recorded) == name


def test_an_old_bundle_is_of_unknown_data():
    bundle = Bundle(Path("bundle"), "f" * 64, {}, (), {"data_source": "phantom"})
    assert replace(bundle, manifest={}).trained_on == "unknown"


@pytest.mark.parametrize(
    ("counts", "ways"),
    [
        ({"studies": 9, "image": 9, "text": 9, "study": 9}, WAYS),
        ({"studies": 9, "image": 4, "text": 5, "study": 0}, ("image", "text")),
        ({"studies": 9, "image": 4, "text": 5}, ("image", "text")),  # from before "study" was counted
        ({"studies": 9, "image": 5, "text": 5}, WAYS),  # one has both, as only nine have either
        ({"studies": 9, "image": 0, "text": 9}, ("text",)),
        ({"studies": 9, "image": 9, "text": 0}, ("image",)),
    ],
)
def test_a_model_was_trained_for_what_its_studies_have(counts, ways):
    assert read_trained_ways({"studies": {"train": counts}}) == ways


@pytest.mark.parametrize(
    "metrics",
    [
        *({}, {"studies": None}, {"studies": {"train": []}}, {"studies": {"test": {"image": 0}}}),
        *(
            {"studies": {"train": {"studies": 9, "text": 9}}},
            {"studies": {"train": dict.fromkeys(WAYS, None)}},
        ),
        {"studies": {"train": {"studies": 0, "image": 0, "text": 0}}},
    ],
)
def test_a_model_that_records_nothing_is_held_to_every_way(metrics):
    assert read_trained_ways(metrics) == WAYS


def test_a_label_without_a_result_was_not_measured():
    ways = {"image": {"labels": {"cardiac": {}}}, "text": {"labels": {"pleural": {}, "cardiac": {}}}}
    expected = tuple(key for key in LABEL_KEYS if key not in {"cardiac", "pleural"})
    assert read_unmeasured({"test": ways}) == expected
    assert parse_keys(",".join(expected)) == expected
    assert read_unmeasured({"test": {"text": {"labels": dict.fromkeys(LABEL_KEYS)}}}) == ()


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ({"training": {"data": {"held_out": ["pleural", "cardiac"]}}}, ("cardiac", "pleural")),
        ({"training": {"data": {"held_out": []}}}, ()),
        ({"training": {"data": {}}}, ()),  # of an older version
        ({"training": {"data": {"held_out": "cardiac"}}}, ()),
        ({"training": None}, ()),
        ({}, ()),
    ],
)
def test_a_bundle_says_which_labels_were_held_out(config, keys):
    assert read_held_out(config) == keys


@pytest.mark.parametrize(
    "metrics", [{}, {"test": {}}, {"test": None}, {"test": {"text": {}}}, {"test": {"text": 5}}]
)
def test_where_nothing_was_measured_nothing_is_said(metrics):
    assert read_unmeasured(metrics) == ()


@pytest.mark.parametrize("said", [None, "", "unknown", 7])
def test_a_server_that_names_no_label_says_nothing(said):
    assert parse_keys(said) == ()


def test_only_phantoms_are_warned_of():
    assert warn_of_training("phantom") == (PHANTOM_WARNING,)
    assert PHANTOM_WARNING.isprintable()
    assert [warn_of_training(name) for name in ("openi", "unknown", "Our hospital")] == [(), (), ()]


def test_words():
    assert describe_training("phantom") == "trained on drawn phantoms"
    assert describe_training("openi") == "trained on Open-i"
    assert describe_training("unknown") == "trained on unknown data"
    assert describe_training("Our hospital") == "trained on Our hospital"
