"""`cxr calibrate`: what a person typed reaches the fit, and which labels kept their old values is said."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import training.recalibrate as recalibrate_module
from cli.app import app
from contract.labels import LABELS
from training.recalibrate import Recalibrated, RefittedWay

pytest.importorskip("torch")


def run(*arguments: str):
    return CliRunner().invoke(app, ["calibrate", *arguments], env={"COLUMNS": "120"})


@pytest.fixture
def bundle(write_bundle, small_config, tmp_path):
    return write_bundle(
        tmp_path / "bundle", small_config, seed=1, texts=["clear lungs"], thresholds=[0.5] * len(LABELS)
    )


@pytest.fixture
def calls(monkeypatch):
    kept = []

    def recalibrate(bundle, table, out, **given):
        kept.append((bundle, table, out, given))
        given["progress"](3, 4)
        ways = {"image": RefittedWay(41, ("air_leak", "msk_other")), "text": RefittedWay(40, ())}
        return Recalibrated(out, "ab" * 32, "cd" * 32, ways, 7)

    monkeypatch.setattr(recalibrate_module, "recalibrate", recalibrate)
    return kept


def test_what_was_fitted_and_what_was_kept_is_printed(calls, bundle):
    result = run(str(bundle.path), "own.parquet", "--out", "some/new", "--cache", "c")
    assert result.exit_code == 0, result.output
    [(loaded, table, out, given)] = calls
    assert (loaded.fingerprint, table, out) == (bundle.fingerprint, Path("own.parquet"), Path("some/new"))
    assert given["cache"] == Path("c")
    assert re.search(r"image alone +41 +20 +2 ", result.output)
    assert (
        "Old values kept: too few studies have or lack the label (image alone): air_leak, msk_other"
        in result.output
    )
    assert "label (report alone)" not in result.output
    assert "7 studies were left out" in result.output
    assert "Bundle: some/new, model abababababab, from cdcdcdcdcdcd" in result.output


def test_json_is_one_document(calls, bundle):
    document = json.loads(run(str(bundle.path), "own.parquet", "--out", "new", "--json").stdout)
    assert document == {
        "bundle": "new",
        "fingerprint": "ab" * 32,
        "source": "cd" * 32,
        "ways": {
            "image": {"studies": 41, "kept": ["air_leak", "msk_other"]},
            "text": {"studies": 40, "kept": []},
        },
        "left_out": 7,
    }


def test_an_error_is_one_sentence(bundle):
    result = run(str(bundle.path), "missing.parquet", "--out", "new")
    assert result.exit_code == 2
    assert "does not record how the model was trained" in result.stderr
