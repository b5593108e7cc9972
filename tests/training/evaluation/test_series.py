"""Several models with splits of their own, averaged: what is right, what ties, and what a draw of patients does."""

import numpy as np
import pytest

from contract.errors import ConfigError
from training.evaluation.image_control import TITLES
from training.evaluation.series import MODEL, Member, format_series, measure_series

from .conftest import make_studies


def make_member(numbers, **ranks) -> Member:
    """A member whose answers are the truth ("right"), its contrary ("wrong") or noise, by name."""
    studies = make_studies(numbers)
    truth = studies.targets.astype(np.float32)
    noise = np.random.default_rng(len(numbers)).random(truth.shape).astype(np.float32)
    kinds = {"right": truth, "wrong": 1 - truth, "noise": noise}
    return Member(studies, {name: kinds[kind] for name, kind in ranks.items()})


def test_models_that_are_right_lead_controls_that_are_not():
    members = [
        make_member(range(30), model="right", pixels="wrong", hog="right"),
        make_member(range(20, 50), model="right", pixels="wrong", hog="right"),
    ]
    series = measure_series(members, resamples=50)
    assert (series.models, series.studies, series.patients) == (2, 60, 50)
    assert series.macro[MODEL]["auroc"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    leads = {lead.control: lead.values["auroc"] for lead in series.leads}
    assert leads["pixels"]["value"] == 1
    assert leads["pixels"]["p"] == pytest.approx(2 / 51, abs=1e-4)
    assert (leads["hog"]["value"], leads["hog"]["low"], leads["hog"]["p"]) == (0, 0, 1)
    assert set(series.labels) == {"cardiac", "pleural", "normal"}
    assert series.labels["cardiac"]["positives"] == 20


def test_the_value_is_the_mean_over_models_and_labels():
    right = make_member(range(30), model="right", pixels="noise", hog="noise")
    wrong = make_member(range(30, 60), model="wrong", pixels="noise", hog="noise")
    series = measure_series([right, wrong], resamples=0)
    assert series.macro[MODEL]["auroc"]["value"] == 0.5
    alone = [
        measure_series([member], resamples=0).macro["hog"]["auroc"]["value"] for member in (right, wrong)
    ]
    assert series.macro["hog"]["auroc"]["value"] == pytest.approx(np.mean(alone), abs=1e-4)
    by_label = [found["macro"]["hog"]["auroc"]["value"] for found in series.labels.values()]
    assert series.macro["hog"]["auroc"]["value"] == pytest.approx(np.mean(by_label), abs=1e-4)


def test_a_patient_of_two_splits_is_drawn_for_both():
    """The same model twice is no more evidence than once: the interval stays as wide."""
    member = make_member(range(40), model="noise", pixels="right", hog="right")
    once, twice = (measure_series([member] * count, resamples=200) for count in (1, 2))
    assert once.macro == twice.macro
    other = make_member(range(40, 80), model="noise", pixels="right", hog="right")
    apart = measure_series([member, other], resamples=200).macro[MODEL]["auroc"]
    same = once.macro[MODEL]["auroc"]
    assert apart["high"] - apart["low"] < same["high"] - same["low"]


def test_unknown_labels_are_left_out():
    members = [make_member(range(30), model="right", pixels="right", hog="right")]
    studies = make_studies(range(30), unknown_labels=["cardiac"], labels=["normal"])
    few = Member(studies, members[0].answers)
    with pytest.raises(ConfigError, match="No label has 5 test studies"):
        measure_series([few])
    assert measure_series([*members, few], resamples=0).labels["cardiac"]["positives"] == 10


def test_the_tables_name_models_controls_and_labels():
    text = format_series(
        measure_series([make_member(range(30), model="right", pixels="noise", hog="right")], resamples=20)
    )
    assert text.startswith("1 model, on the test side of its own split: 30 answers about 30 patients.")
    for title in TITLES.values():
        assert f"| image - {title} |" in text
    assert "| Cardiomegaly / Heart Failure | 10 | 1.000 (1.000-1.000) |" in text
