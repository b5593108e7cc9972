"""What a bundle records of its training data, and the sentence that a model of phantoms owes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from contract.bundle import Bundle
from contract.training_data import PHANTOM_WARNING, describe_training, read_trained_on, warn_of_training


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


def test_only_phantoms_are_warned_of():
    assert warn_of_training("phantom") == (PHANTOM_WARNING,)
    assert PHANTOM_WARNING.isprintable()
    assert [warn_of_training(name) for name in ("openi", "unknown", "Our hospital")] == [(), (), ()]


def test_words():
    assert describe_training("phantom") == "trained on drawn phantoms"
    assert describe_training("openi") == "trained on Open-i"
    assert describe_training("unknown") == "trained on unknown data"
    assert describe_training("Our hospital") == "trained on Our hospital"
