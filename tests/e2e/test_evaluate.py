"""`cxr evaluate` of the served model and of PyTorch: the same questions, the same answers, written into the bundle."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from cli.app import app
from contract.bundle import load_bundle, seal_bundle
from training.data.rows import read_rows


def run(*arguments: object):
    """Run the command in this process, which has loaded what commands import."""
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "160"})


@pytest.fixture
def bundle(trained, tmp_path):
    shutil.copytree(trained.bundle.path, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def split_file(trained, tmp_path):
    """Most studies of the small table on the test side, so that labels have enough of them."""
    ids = [row["study_id"] for row in read_rows(trained.table)]
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ids[:20], "validation": ids[20:30], "test": ids[30:]}))
    return path


def test_served_and_pytorch_agree_and_the_bundle_holds_the_result(stack, trained, bundle, split_file):
    ended = run(
        *(trained.table, "--bundle", bundle, "--served", "--triton", stack.triton_url),
        *("--split-file", split_file, "--resamples", 20, "--json"),
    )
    assert ended.exit_code == 0, ended.stderr
    results = json.loads(ended.stdout)
    served = results["served"]
    assert 0 < served["probabilities"] < 1e-4
    assert served["embeddings"] < 1e-5
    assert served["macro"] < 1e-3
    assert all(row["macro"] for row in results["classification"])
    assert served["cases"] > 10 * results["studies"]["test"]
    amended = load_bundle(bundle)
    assert amended.fingerprint == trained.bundle.fingerprint == results["fingerprint"]
    assert json.loads((bundle / "evaluation" / "evaluation.json").read_text())["served"] == served
    assert {f"evaluation/{name}.png" for name in ("roc", "reliability", "retrieval")} <= set(
        amended.manifest["files"]
    )
    assert "largest difference of a probability" in (bundle / "evaluation" / "evaluation.md").read_text()
    assert "## Similar cases" in (bundle / "MODEL_CARD.md").read_text()
    assert results["view_head"]["laterals"] > 10
    assert 0.5 < results["view_head"]["accuracy"] <= 1
    assert "## View head" in (bundle / "MODEL_CARD.md").read_text()


def test_pytorch_alone_prints_tables_and_leaves_the_bundle(trained, bundle, tmp_path):
    before = load_bundle(bundle)
    ended = run(trained.table, "--bundle", bundle, "--resamples", 20, "--out", tmp_path / "out")
    assert ended.exit_code == 0, ended.stderr
    for words in ("another's image", "TF-IDF, full report", "random order", "image → report"):
        assert words in ended.stdout
    assert load_bundle(bundle) == before
    assert (tmp_path / "out" / "evaluation.md").is_file()


def test_the_bundle_of_another_model_is_not_what_is_served(stack, trained, bundle):
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps({**config, "note": "another"}))
    seal_bundle(bundle, {})
    ended = run(trained.table, "--bundle", bundle, "--served", "--triton", stack.triton_url)
    assert ended.exit_code == 3
    assert "was made by model" in ended.stderr


def test_controls_alone_over_splits(trained):
    ended = run(trained.table, "--splits", 2, "--json")
    assert ended.exit_code == 0, ended.stderr
    controls = json.loads(ended.stdout)
    assert controls["splits"] == 2
    row = controls["retrieval"]["with_normal"]["random order"]["p@5"]
    assert row["low"] <= row["value"] <= row["high"]
    assert run(trained.table, "--served").exit_code == 2
