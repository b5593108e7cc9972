"""A table without reports: trained, measured beside controls of images, and controls without a model."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from cli.app import app
from contract.bundle import load_bundle
from contract.errors import ConfigError
from contract.labels import LABEL_KEYS
from training.config.toml_file import load_config
from training.data.openi import build_table, write_table
from training.data.rows import choose_rows, read_rows
from training.phantom import draw_dataset
from training.train import train

SMALL = {
    "loop.epochs": 1,
    "model.image_size": 56,
    "model.image_width": 16,
    "model.image_depths": [1],
    "model.image_heads": [2],
    "model.text_width": 32,
    "model.text_layers": 1,
    "model.text_heads": 2,
}
KNOWN = ("cardiac", "pleural", "normal")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A directory with `studies.parquet`, which holds images and three labels, and a bundle."""
    root = tmp_path_factory.mktemp("images")
    draw_dataset(root / "phantom", studies=120, seed=5, scale=0.05, workers=1)
    table = build_table(root / "phantom", root / "phantom")
    rows = []
    for row in table.to_pylist():
        silent = dict.fromkeys(("indication", "comparison", "findings", "impression"), "")
        labels = [key for key in row["labels"] if key in KNOWN]
        unknown = [key for key in LABEL_KEYS if key not in KNOWN]
        number = int(row["patient_id"].removeprefix("CXR"))
        named = {"study_id": f"{number:08d}_{number % 3:03d}"}  # as ChestX-ray14 does
        rows.append({**row, **silent, **named, "labels": labels, "unknown_labels": unknown})
    write_table(pa.Table.from_pylist(rows, schema=table.schema), root / "studies.parquet")
    ids = [row["study_id"] for row in rows]
    split = {"train": ids[:40], "validation": ids[40:60], "test": ids[60:]}
    (root / "split.json").write_text(json.dumps(split))
    config = load_config("demo", SMALL)
    train(config, root / "studies.parquet", root / "bundle", split_file=root / "split.json")
    return root


def evaluate(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_model_of_images_stands_beside_controls_of_images(root):
    options = ("--bundle", root / "bundle", "--resamples", 20)
    results = json.loads(evaluate(root / "studies.parquet", *options, "--json"))
    rows = {row["key"]: row for row in results["classification"]}
    assert set(rows) == {"image", "image/swapped_image", "pixels", "hog"}
    assert all(set(row["averaged"]) <= set(KNOWN) for row in rows.values())
    assert {row["control"] for row in results["paired"]["classification"]} == {"pixels", "hog"}
    assert set(results["unstated"]) == set(LABEL_KEYS) - set(KNOWN)
    assert not results["pairs"]
    assert not results["prompt_scores"]  # its text encoder never learned a word
    report = (root / "bundle" / "evaluation" / "evaluation.md").read_text()
    assert "| HOG + LR *(control)* |" in report
    assert "no test study states" in report
    assert "| Lymphadenopathy |" not in report
    card = (root / "bundle" / "MODEL_CARD.md").read_text()
    assert "| HOG + LR *(control)* |" in card


def test_ids_of_the_bundle_are_taken_as_they_are(root):
    """Some look like names of Open-i images, which a published split may hold in the place of study ids."""
    rows = read_rows(root / "studies.parquet")
    chosen = choose_rows(rows, root / "bundle" / "split.json", "test")
    assert [row["study_id"] for row in chosen] == load_bundle(root / "bundle").split["test"]
    with pytest.raises(ConfigError, match=r"names 5\d studies that the table does not hold"):
        choose_rows(chosen, root / "bundle" / "split.json", "train")


def test_a_split_without_the_part_is_refused(root, tmp_path):
    rows = read_rows(root / "studies.parquet")
    (tmp_path / "split.json").write_text(json.dumps({"test": [rows[0]["study_id"]]}))
    with pytest.raises(ConfigError, match="names no study for train"):
        choose_rows(rows, tmp_path / "split.json", "train")


def test_a_series_is_held_against_the_controls(root):
    options = ("--resamples", "10", "--json")
    command = ["train", "series", str(root / "studies.parquet"), *[str(root / "bundle")] * 2, *options]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    series = json.loads(done.stdout)
    assert (series["models"], series["studies"]) == (2, 2 * series["patients"])
    assert [lead["control"] for lead in series["leads"]] == ["pixels", "hog"]
    evaluated = json.loads((root / "bundle" / "evaluation" / "evaluation.json").read_text())
    rows = {row["key"]: row["macro"]["auroc"]["value"] for row in evaluated["classification"]}
    assert series["macro"]["model"]["auroc"]["value"] == rows["image"]
    assert series["macro"]["hog"]["auroc"]["value"] == rows["hog"]


def test_controls_need_no_model(root):
    found = json.loads(evaluate(root / "studies.parquet", "--splits", 2, "--json"))
    assert set(found["findings"]) == {"32 x 32 pixels + LR", "HOG + LR"}
    assert found["retrieval"] == {}
    printed = evaluate(root / "studies.parquet", "--splits", 2)
    assert "HOG + LR" in printed
    assert "Split by patient;" in printed
