"""Evaluated bundles become rows of one table."""

import json
from dataclasses import replace

import pytest

from contract.bundle import load_bundle
from contract.errors import ConfigError
from training.evaluation.results_table import Row, choose_columns, format_markdown, read_rows

INTERVAL = {"value": 0.9126, "low": 0.851, "high": 0.949}


@pytest.fixture
def bundle(write_bundle, small_config, tmp_path):
    return write_bundle(
        tmp_path / "bundle", small_config, seed=1, texts=["clear lungs"], thresholds=[0.5] * 22
    )


def evaluate(bundle, **changed):
    row = {"key": "image", "macro": {"auroc": INTERVAL}}
    search = [{"title": "model, image", "values": {"p@5": INTERVAL}}, {"title": "random order", "values": {}}]
    results = {
        "classification": [row],
        "retrieval": {"test_to_train": {"without_normal": search}},
        "pairs": [{"title": "report → image", "values": {"r@10": INTERVAL}}],
        **changed,
    }
    (bundle.path / "evaluation").mkdir()
    (bundle.path / "evaluation" / "evaluation.json").write_text(json.dumps(results))


def test_a_row_holds_what_was_measured_and_no_more(bundle):
    evaluate(bundle)
    [row] = read_rows([bundle.path])
    assert row.figures == dict.fromkeys(
        ("image AUROC", "P@5 by image", "report → image R@10"), (0.9126, 0.851, 0.949)
    )
    lines = format_markdown([row], ["report → image R@10", "findings AP"]).splitlines()
    assert lines[0] == "| config | seed | report → image R@10 | findings AP | s |"
    assert lines[2] == "| bundle | 0 | 0.913 (0.85-0.95) | - | 0 |"
    assert choose_columns([row]) == ["image AUROC", "P@5 by image", "report → image R@10"]


def test_what_is_not_evaluated_is_named(bundle):
    with pytest.raises(ConfigError, match=r"was not evaluated\. Run `cxr evaluate`"):
        read_rows([bundle.path])
    evaluate(bundle, pairs=None)
    with pytest.raises(ConfigError, match="was not evaluated"):
        read_rows([load_bundle(bundle.path).path])


def test_an_unknown_column_is_refused(bundle):
    with pytest.raises(ConfigError, match=r"There is no column 'AUC'\. Choose from image AUROC"):
        choose_columns([], ["AUC"])


LEAD = {"value": 0.012, "low": -0.004, "high": 0.027, "p": 0.13}


def test_leads_are_those_of_the_paired_tests(bundle):
    search = {"title": "model, findings - TF-IDF + LR, findings", "values": {"p@5": LEAD}}
    paired = {
        "classification": [{"key": "findings", "values": {"ap": LEAD}}],
        "retrieval": {"without_normal": [search]},
    }
    evaluate(bundle, paired=paired)
    [row] = read_rows([bundle.path])
    assert row.figures["AP - TF-IDF"] == row.figures["P@5 - TF-IDF + LR"] == (0.012, -0.004, 0.027)
    assert "nDCG@5 - TF-IDF + LR" not in row.figures


def test_splits_of_one_config_have_a_mean():
    rows = [
        Row("reports", seed, 10.0, {"findings AP": (value, 0.8, 0.9)})
        for seed, value in enumerate((0.85, 0.88))
    ]
    assert (
        format_markdown(rows, ["findings AP", "image AP"]).splitlines()[-1]
        == "| reports | mean | 0.865 | - | |"
    )
    assert "mean" not in format_markdown(rows[:1])
    assert "mean" not in format_markdown([rows[0], replace(rows[1], name="demo")])
    assert format_markdown([rows[0], replace(rows[1], figures={})], ["findings AP"]).endswith(
        "| mean | - | |\n"
    )
