"""`cxr train`: what a person types reaches the training, and what a run tells reaches the person."""

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cli.app import app
from cli.watch import show_training
from training.watch import EpochReport, StepReport

RESULT = {"macro": {"auroc": {"value": 0.8, "low": 0.7, "high": 0.9}}, "studies": 9, "averaged": ["normal"]}
METRICS = {"test": {"image": RESULT}, "history": []}


def run(*arguments: str):
    return CliRunner().invoke(app, ["train", *arguments], env={"COLUMNS": "120"})


@pytest.fixture
def calls(monkeypatch):
    """Training is not run: what it was called with is kept."""
    kept = []

    def train(config, table, out, **given):
        kept.append((config, table, out, given))
        given["watcher"].on_note("weights loaded")
        return SimpleNamespace(bundle=out, metrics=METRICS)

    module = ModuleType("training.train")
    module.train = train
    monkeypatch.setitem(sys.modules, "training.train", module)
    monkeypatch.delenv("RANK", raising=False)
    return kept


def test_options_become_settings(calls):
    result = run(
        *("t.parquet", "--out", "some/b", "--config", "tiny", "--set", "optimizer.learning_rate=1e-3"),
        *("--set", "loop.epochs=9", "--epochs", "3", "--seed", "5", "--image-weights", "swin.bin"),
        *(
            "--text-weights",
            "bert",
            "--split-file",
            "s.csv",
            "--cache",
            "c",
            "--resume",
            "--log-with",
            "none",
        ),
    )
    assert result.exit_code == 0, result.output
    [(config, table, out, given)] = calls
    assert (config.name, config.seed, config.loop.epochs) == ("tiny", 5, 3)
    assert config.optimizer.learning_rate == 1e-3
    assert (config.weights.image, config.weights.text) == ("swin.bin", "bert")
    assert (table, out) == (Path("t.parquet"), Path("some/b"))
    assert (given["split_file"], given["cache"], given["resume"]) == (Path("s.csv"), Path("c"), True)
    assert (given["run"], given["trackers"]) == (Path("some/b.run"), [])
    assert "learning_rate = 0.001" in result.output
    assert "weights loaded" in result.output
    assert "0.800 (0.70-0.90)" in result.output


def test_options_may_stand_first_and_defaults_are_those_of_the_config(calls):
    result = run("--out", "b", "--run", "r", "t.parquet")
    assert result.exit_code == 0, result.output
    [(config, _, _, given)] = calls
    assert (config.name, config.seed) == ("demo", 0)
    assert given["run"] == Path("r")
    assert not given["resume"]
    assert given["start"] is None
    assert len(given["trackers"]) == 1


def test_a_run_starts_from_a_bundle_with_its_config_or_a_named_one(
    calls, write_bundle, small_config, tmp_path, monkeypatch
):
    from contract.labels import LABELS
    from training.config import toml_file

    bundle = write_bundle(
        tmp_path / "bundle", small_config, seed=1, texts=["clear lungs"], thresholds=[0.5] * len(LABELS)
    )
    given = ("t.parquet", "--out", "b", "--from", str(bundle.path))
    result = run(*given, "--config", "tiny", "--epochs", "3")
    assert result.exit_code == 0, result.output
    assert "does not record how the model was trained" in run(*given).stderr
    recorded = replace(toml_file.load_config("reports"), name="earlier")
    monkeypatch.setattr("training.start.read_start_config", lambda _: recorded)
    assert run(*given, "--epochs", "2").exit_code == 0
    (named, *_, first), (own, *_, second) = calls
    assert (named.name, named.loop.epochs, own.name, own.loop.epochs) == ("tiny", 3, "earlier", 2)
    assert first["start"].fingerprint == second["start"].fingerprint == bundle.fingerprint


def test_json_is_one_document_with_the_config(calls):
    result = run("t.parquet", "--out", "b", "--json", "--epochs", "2")
    document = json.loads(result.stdout)
    assert document["config"]["loop"]["epochs"] == 2
    assert (document["bundle"], document["run"], document["metrics"]) == ("b", "b.run", METRICS)


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_only_the_first_process_of_torchrun_reports(calls, monkeypatch, more):
    monkeypatch.setenv("RANK", "1")
    result = run("t.parquet", "--out", "b", *more)
    assert (result.exit_code, result.output) == (0, "")
    assert calls[0][3]["trackers"] == []


@pytest.mark.parametrize("arguments", [(), ("--help",), ("t.parquet", "--help")])
def test_help_shows_how_to_train_and_what_else_there_is(arguments):
    result = run(*arguments)
    assert result.exit_code == (0 if arguments else 2)  # without a word it is a wrong call
    for word in ("--config", "--from", "--set", "--resume", "--log-with", "compare", "configs"):
        assert word in result.output


@pytest.mark.parametrize("arguments", [("t.parquet",), ("--out", "b"), ("a", "b", "--out", "c")])
def test_a_wrong_call_shows_the_usage(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.stderr


def test_configs_are_listed_and_printed_as_files(tmp_path):
    listed = run("configs").output
    assert "demo" in listed
    assert "Swin-B and BERT-base" in listed
    assert set(json.loads(run("configs", "--json").stdout)) >= {"demo", "reports", "tiny", "base"}
    (tmp_path / "mine.toml").write_text(run("configs", "base").stdout)
    again = json.loads(run("configs", str(tmp_path / "mine.toml"), "--json").stdout)
    assert again == json.loads(run("configs", "base", "--json").stdout)
    assert run("configs", "huge").exit_code == 2


@pytest.fixture
def runs(tmp_path):
    """Two run directories of 100 epochs, every other one validated, of other learning rates."""
    from training.checkpoint import RunDirectory
    from training.config.toml_file import load_config

    for name, rate, best in (("a", 0.1, 31), ("b", 0.2, 77)):
        directory = RunDirectory(tmp_path / name)
        config = load_config("demo", {"optimizer.learning_rate": rate})
        directory.open(config, {"table": "d", "split": "s"}, resume=False)
        directory.write_epochs(
            [
                replace(EPOCH, epoch=epoch, validation={"score": 0.9 if epoch == best else 0.5})
                for epoch in range(1, 101, 2)
            ]
        )
    return tmp_path / "a", tmp_path / "b"


def test_compare_prints_few_epochs_and_json_holds_all(runs):
    a, b = map(str, runs)
    result = run("compare", a, b)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line for line in lines if "optimizer.learning_rate" in line and "0.1" in line and "0.2" in line]
    assert "best 0.9000 in epoch 31" in result.output
    assert [line for line in lines if line.split()[:2] == ["31", "0.9000"]]
    assert [line for line in lines if line.split()[:2] == ["99", "0.5000"]]
    assert len(lines) < 60
    assert len(json.loads(run("compare", a, b, "--json").stdout)["scores"]) == 50


def test_compare_of_a_run_with_itself(runs):
    assert "No setting differs" in run("compare", str(runs[0]), str(runs[0])).output


def test_compare_refuses_a_damaged_run(runs):
    shutil.rmtree(runs[0])
    result = run("compare", *map(str, runs))
    assert result.exit_code == 2
    assert "neither a bundle" in result.stderr


STEP = StepReport(3, 9, 2, 0.5, {"labels/image": 0.25}, 1e-3, 12.0)
EPOCH = EpochReport(
    epoch=2,
    loss=0.75,
    losses={},
    validation={"score": 0.7, "image/auroc": 0.71, "image/ap": 0.3},
    rates={"both": 55.0, "waiting_share": 0.4},
    seconds=3.0,
)


def watch(reports, *, terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, _environ={"TERM": "xterm"})
    with show_training(console, 4) as watcher:
        for report in reports:
            if isinstance(report, StepReport):
                watcher.on_step(report)
            elif isinstance(report, EpochReport):
                watcher.on_epoch(report)
            elif isinstance(report, tuple):
                watcher.on_images(*report)
            else:
                watcher.on_note(report)
        watcher._bars.refresh()
    return console.file.getvalue()


def test_without_a_terminal_there_is_a_line_per_validated_epoch():
    worse = replace(EPOCH, epoch=4, validation={"score": 0.6}, rates={})
    text = watch(
        [(1, 2), STEP, replace(EPOCH, epoch=1, validation={}), EPOCH, "Note [x]", worse], terminal=False
    )
    assert "\x1b" not in text
    assert text.splitlines() == [
        "Epoch   2/4  loss 0.750  validation 0.7000 best  AUROC image 0.710  3 s  55 studies/s  "
        "40% of it waiting for images",
        "Note [x]",
        "Epoch   4/4  loss 0.750  validation 0.6000       3 s",
    ]


def test_on_a_terminal_a_bar_shows_the_step_and_its_figures():
    text = watch([(2, 2), EPOCH, STEP], terminal=True)
    for words in (
        "Training  epoch 2/4",
        "3/9",
        "12 studies/s",
        "loss 0.500 (labels/image 0.250)",
        "learning rate 1.0e-03",
        "best 0.7000 in epoch 2",
    ):
        assert words in text
    assert "\x1b" in text


def test_images_move_the_bar_and_training_begins_anew():
    assert "Reading images" in watch([(1, 2)], terminal=True)
    text = watch([(8, 8), STEP], terminal=True)
    assert "3/9" in text
