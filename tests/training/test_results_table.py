"""Evaluated bundles become rows of one table."""

import json

import pytest

from contract.bundle import load_bundle
from contract.errors import ConfigError
from training.results_table import choose_columns, format_markdown, read_rows

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
    with pytest.raises(ConfigError, match="was not evaluated: run `cxr evaluate`"):
        read_rows([bundle.path])
    evaluate(bundle, pairs=None)
    with pytest.raises(ConfigError, match="was not evaluated"):
        read_rows([load_bundle(bundle.path).path])


def test_an_unknown_column_is_refused(bundle):
    with pytest.raises(ConfigError, match="There is no column 'AUC'; choose of image AUROC"):
        choose_columns([], ["AUC"])
