"""Labels that are held out of training: nothing of them reaches the model, and the bundle remembers them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from cli.evaluate import evaluate_bundle
from contract.bundle import Bundle, load_bundle
from contract.errors import ConfigError
from contract.labels import LABEL_INDEX, LABEL_KEYS, LABEL_NAMES
from contract.report.text import ReportTokenizer
from training.batch import choose_batch, make_batch
from training.config.settings import DataConfig, LossConfig
from training.config.toml_file import change_config, load_config, read_train_config
from training.data.openi import SCHEMA, read_table, write_table
from training.data.studies import hold_out, read_studies
from training.evaluation.report import write_report
from training.evaluation.split_predictions import Options
from training.model.model import CxrModel
from training.objective import Objective
from training.start import read_start_config
from training.train import train

from .conftest import SMALL

HELD_OUT = ("cardiac", "pleural")
CONFIG = {**SMALL, "data.held_out": list(HELD_OUT), "loss.spare_alike": True, "model.lexical_buckets": 101}


def change_table(table: Path, out: Path, *, turned: bool) -> Path:
    """Write the table with a split of its own; `turned`: every study has the held-out labels that it had not."""
    rows = read_table(table).to_pylist()
    for number, row in enumerate(rows):
        row["split"] = ("train", "train", "validation", "test")[number % 4]
        if turned:
            row["labels"] = sorted(set(row["labels"]) ^ set(HELD_OUT))
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), out)
    return out


@pytest.fixture(scope="module")
def plain_table(phantom_table, tmp_path_factory) -> Path:
    return change_table(phantom_table, tmp_path_factory.mktemp("held") / "plain.parquet", turned=False)


@pytest.fixture(scope="module")
def held(plain_table) -> Bundle:
    return load_bundle(train(load_config("demo", CONFIG), plain_table, plain_table.parent / "bundle").bundle)


def test_a_label_that_is_held_out_gets_no_gradient(plain_table, held):
    config = load_config("demo", CONFIG)
    studies = read_studies(plain_table, "findings", config.model.image_size)
    tokenizer = ReportTokenizer.load(held.tokenizer_path)
    columns = [LABEL_INDEX[key] for key in HELD_OUT]
    others = [k for k in range(len(LABEL_KEYS)) if k not in columns]
    gradients = {}
    for name, chosen in (("all", studies), ("held out", hold_out(studies, HELD_OUT))):
        torch.manual_seed(0)
        model = CxrModel(config.model)
        batch = make_batch(chosen, tokenizer, choose_batch(chosen, np.arange(8), DataConfig()), DataConfig())
        objective = Objective(model, torch.ones(len(LABEL_KEYS)), LossConfig(spare_alike=True))
        counts = dict.fromkeys(("image", "text", "study"), float(batch.known.sum()))
        objective(batch, batch.pixels, counts)["loss"].backward()
        pooling = model.fusion.pooling
        gradients[name] = [
            part.grad.reshape(len(LABEL_KEYS), -1) for part in pooling.parameters(recurse=False)
        ]
    for every, kept in zip(gradients["all"], gradients["held out"], strict=True):  # queries, weight, bias
        assert (every != 0).any(1).all()
        assert (kept[columns] == 0).all()
        assert (kept[others] != 0).any(1).all()


def test_nothing_of_a_bundle_depends_on_what_is_held_out(held, plain_table, phantom_table, tmp_path):
    turned = change_table(phantom_table, tmp_path / "turned.parquet", turned=True)
    other = load_bundle(train(load_config("demo", CONFIG), turned, tmp_path / "bundle").bundle)
    ours, theirs = (load_file(bundle.weights_path) for bundle in (held, other))
    assert all(torch.equal(values, theirs[name]) for name, values in ours.items())
    assert held.decisions == other.decisions
    assert held.fingerprint == other.fingerprint
    assert held.split == other.split


def test_a_bundle_remembers_what_was_held_out(held):
    assert held.held_out == HELD_OUT
    assert not set(HELD_OUT) & set(held.unmeasured)
    assert read_train_config(held.config).data.held_out == HELD_OUT
    for labels in held.decisions.ways.values():
        for label in labels:
            decisions = {label.decide(value) for value in (0.0, 0.5, 0.999)}
            assert (decisions == {"uncertain"}) == (label.key in HELD_OUT)
            assert (label.scale == 0) == (label.key in HELD_OUT)
    card = (held.path / "MODEL_CARD.md").read_text()
    names = ", ".join(LABEL_NAMES[key] for key in HELD_OUT)
    assert f"**Held out of training on purpose (`data.held_out`): {names}.**" in card
    assert card.count("| held out |") == 2
    assert "Never learned" not in card


def test_a_run_cannot_hold_out_what_its_start_was_trained_with(held, phantom_bundle, phantom_table, tmp_path):
    config = change_config(read_start_config(phantom_bundle), {"data.held_out": ["cardiac"]})
    with pytest.raises(ConfigError, match=r"was trained with cardiac, so data\.held_out cannot name it"):
        train(config, phantom_table, tmp_path / "new", start=phantom_bundle)
    assert not list(tmp_path.glob("new*"))
    assert read_start_config(held).data.held_out == HELD_OUT


def test_every_label_cannot_be_held_out():
    with pytest.raises(ConfigError, match="leaves no label to train on"):
        load_config("demo", {"data.held_out": list(LABEL_KEYS)})
    with pytest.raises(ConfigError, match=r"names 'cardaic', which is no label; did you mean cardiac\?"):
        load_config("demo", {"data.held_out": ["cardaic"]})


def test_evaluation_measures_what_was_held_out_apart(held, plain_table):
    _, results = evaluate_bundle(
        Console(quiet=True), held, plain_table, split_file=None, options=Options(resamples=5)
    )
    assert results["zero_shot"]["labels"] == list(HELD_OUT)
    titles = [row["title"] for row in results["zero_shot"]["rows"]]
    assert titles == ["image + findings", "image", "findings", "TF-IDF, findings"]
    for row in (*results["classification"], *results["prompt_scores"]):
        assert not set(HELD_OUT) & set(row["labels"])
    report = write_report(results)
    assert "## Zero-shot (labels held out of training)" in report
    assert f"held out of training: {', '.join(LABEL_NAMES[key] for key in HELD_OUT)}" in report
