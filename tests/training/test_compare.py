"""Two runs side by side: settings, scores and results, and when figures rest on different studies."""

import hashlib
import json
from dataclasses import asdict

import pytest

from contract.errors import ConfigError
from training.checkpoint import RunDirectory
from training.compare import compare_runs, read_run
from training.config.settings import SECTIONS
from training.config.toml_file import load_config
from training.watch import EpochReport

SPLIT = {"train": ["CXR1", "CXR2"], "validation": ["CXR3"], "test": ["CXR4"]}
CHANGES = {"optimizer.learning_rate": 0.5, "weights.text": "some/bert"}


def make_history(*scores):
    return [
        asdict(
            EpochReport(
                epoch=epoch,
                loss=1.0 / epoch,
                losses={},
                validation={} if score is None else {"score": score, "image/auroc": score},
                rates={},
                seconds=10.0 * epoch,
            )
        )
        for epoch, score in enumerate(scores, start=1)
    ]


def make_result(value, **more):
    figures = {"auroc": value, "ap": value - 0.1, "f1": value - 0.2, **more}
    return {
        "macro": {
            name: {"value": figure, "low": figure - 0.05, "high": figure + 0.05}
            for name, figure in figures.items()
        }
    }


@pytest.fixture
def write_bundle(tmp_path):
    """A function that writes what a comparison reads of a bundle."""

    def write(
        name, *, changes=None, scores=(0.5, None, 0.7), test=None, split=SPLIT, data="d" * 64, vocabulary=None
    ):
        path = tmp_path / name
        path.mkdir()
        training = asdict(load_config("demo", changes or {}))
        model = training.pop("model") | ({"vocabulary_size": vocabulary} if vocabulary else {})
        config = {"model": model, "training": training, "text_mode": "findings"}
        metrics = {"history": make_history(*scores), "test": test or {"image": make_result(0.8)}}
        manifest = {"data_sha256": data, "seconds": 33.0, "device": "CPU"}
        for file, value in (
            ("config.json", config),
            ("metrics.json", metrics),
            ("manifest.json", manifest),
            ("split.json", split),
        ):
            (path / file).write_text(json.dumps(value, sort_keys=True))
        return path

    return write


@pytest.fixture
def write_run(tmp_path):
    """A function that writes a run directory as training does."""

    def write(name, *, changes=None, scores=(0.4, 0.6), split=SPLIT, data="d" * 64):
        run = RunDirectory(tmp_path / name)
        digest = hashlib.sha256(json.dumps(split, sort_keys=True).encode()).hexdigest()
        run.open(load_config("demo", changes or {}), {"table": data, "split": digest}, resume=False)
        run.write_epochs([EpochReport(**entry) for entry in make_history(*scores)])
        return run.path

    return write


def test_two_bundles_differ_in_settings_scores_and_results(write_bundle):
    a = write_bundle("a", scores=(0.5, None, 0.7, 0.7))
    b = write_bundle("b", changes=CHANGES, scores=(0.5, 0.8), test={"image": make_result(0.85)})
    comparison = compare_runs(a, b)
    assert comparison.settings == {
        "optimizer.learning_rate": (0.002, 0.5),
        "weights.text": (None, "some/bert"),
    }
    assert comparison.scores == [(1, 0.5, 0.5), (2, None, 0.8), (3, 0.7, None), (4, 0.7, None)]
    assert (comparison.a.best, comparison.b.best) == ((4, 0.7), (2, 0.8))
    auroc = comparison.test["image"]["auroc"]
    assert (auroc.a["value"], auroc.a["low"], auroc.b["value"], auroc.change) == (0.8, 0.75, 0.85, 0.05)
    assert (comparison.a.seconds, comparison.a.device) == (33.0, "CPU")
    assert comparison.notes == []


def test_a_run_compared_with_itself_differs_in_nothing(write_bundle):
    comparison = compare_runs(a := write_bundle("a"), a)
    assert comparison.settings == {}
    assert {figure.change for figure in comparison.test["image"].values()} == {0.0}


DIFFERENT = {
    "another table": ({"data": "e" * 64}, "tables differ"),
    "another test split": ({"split": {**SPLIT, "test": ["CXR5"]}}, "test studies differ"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_figures_of_other_studies_have_no_difference(name, write_bundle):
    given, words = DIFFERENT[name]
    comparison = compare_runs(write_bundle("a"), write_bundle("b", **given))
    assert comparison.test["image"]["auroc"].change is None
    assert [note for note in comparison.notes if words in note]


def test_other_training_studies_and_another_order_leave_the_test_comparable(write_bundle):
    split = {"train": ["CXR2"], "validation": ["CXR3"], "test": ["CXR4"]}
    comparison = compare_runs(write_bundle("a"), write_bundle("b", split=split))
    assert comparison.test["image"]["auroc"].change == 0.0
    assert comparison.notes == ["The training studies differ."]
    shuffled = {**SPLIT, "train": SPLIT["train"][::-1]}
    assert compare_runs(write_bundle("c"), write_bundle("d", split=shuffled)).notes == []


def test_a_way_or_a_figure_that_one_run_lacks(write_bundle):
    a = write_bundle("a", test={"image": {"macro": {}}, "text": make_result(0.9)})
    comparison = compare_runs(a, write_bundle("b"))
    assert comparison.test["image"]["auroc"].a is None
    assert comparison.test["image"]["auroc"].change is None
    assert comparison.test["text"]["f1"].b is None


def test_an_unfinished_run_beside_a_bundle(write_bundle, write_run):
    run, bundle = write_run("b.run", changes=CHANGES), write_bundle("a")
    comparison = compare_runs(bundle, run)
    assert set(comparison.settings) == set(CHANGES)
    assert comparison.b.best == (2, 0.6)
    assert comparison.b.seconds == 20.0
    assert comparison.test["image"]["auroc"].change is None
    assert len(comparison.notes) == 1
    assert "Only a bundle has test figures" in comparison.notes[0]


def test_the_settings_of_a_run_are_those_of_its_bundle(write_bundle, write_run):
    bundle = write_bundle(
        "a", changes=CHANGES, vocabulary=1234
    )  # the tokenizer learned fewer pieces than it may
    assert compare_runs(bundle, write_run("a.run", changes=CHANGES)).settings == {}
    other = write_bundle("b", changes=CHANGES, vocabulary=1235)
    assert compare_runs(bundle, other).settings == {"model.vocabulary_size": (1234, 1235)}


def test_runs_of_other_splits_are_noted(write_run):
    other = write_run("b", split={**SPLIT, "train": []})
    notes = compare_runs(write_run("a"), other).notes
    assert [note for note in notes if "splits differ" in note]


def test_a_run_before_its_first_epoch(write_run):
    run = read_run(write_run("a", scores=()))
    assert (run.history, run.best, run.seconds) == ([], None, None)


def test_an_epoch_done_again_counts_once(write_run):
    path = write_run("a", scores=(0.4,))
    [line] = (path / "metrics.jsonl").read_text().splitlines()
    again = json.loads(line) | {"validation": {"score": 0.9}}
    (path / "metrics.jsonl").write_text(f"{line}\n{json.dumps(again)}\n")
    assert read_run(path).scores == {1: 0.9}


def test_everything_goes_into_json_but_study_ids(write_bundle):
    a = write_bundle("a", split={**SPLIT, "train": ["CXR4711"]})
    text = json.dumps(compare_runs(a, write_bundle("b", changes=CHANGES)).to_dict(), allow_nan=False)
    read = json.loads(text)
    assert "4711" not in text
    assert read["settings"]["optimizer.learning_rate"] == [0.002, 0.5]
    assert read["a"]["best"] == {"epoch": 3, "score": 0.7}
    assert len(read["b"]["history"]) == 3
    assert {name.split(".")[0] for name in read["a"]["settings"]} == {"name", "seed", *SECTIONS}


def break_json(path):
    (path / "metrics.json").write_text("{")


def break_history(path):
    (path / "metrics.json").write_text('{"history": [{"loss": 1}], "test": {}}')


def break_manifest(path):
    (path / "manifest.json").write_text("[]")


def break_split(path):
    (path / "split.json").unlink()


@pytest.mark.parametrize("damage", [break_json, break_history, break_manifest, break_split])
def test_a_damaged_bundle_is_named(damage, write_bundle):
    path = write_bundle("a")
    damage(path)
    with pytest.raises(ConfigError) as info:
        compare_runs(path, path)
    assert str(path) in str(info.value)


def test_a_damaged_run_is_named(write_run):
    path = write_run("a")
    (path / "metrics.jsonl").write_text("{")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is damaged"):
        read_run(path)
    (path / "metrics.jsonl").unlink()
    (path / "config.toml").write_text("[")
    with pytest.raises(ConfigError, match=r"config\.toml is not valid TOML"):
        read_run(path)


@pytest.mark.parametrize("name", ["missing", "."])
def test_what_is_neither_bundle_nor_run_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match="neither a bundle nor the run directory"):
        read_run(tmp_path / name)
