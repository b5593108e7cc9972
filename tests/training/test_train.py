"""A whole training run on a few phantoms: the bundle is complete, repeatable, and all or nothing."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from contract.bundle import load_bundle
from contract.errors import ConfigError
from contract.report.text import ReportTokenizer
from training import loop as loop_module
from training import train as train_module
from training.config.toml_file import load_config
from training.data.cache import fill_cache
from training.model.model import load_model
from training.muon import multiplies_bfloat16
from training.train import train
from training.watch import EpochReport, Silent, StepReport

from .conftest import SMALL

OTHER_PRECISION = "fp32" if multiplies_bfloat16() else "bf16"  # than the one that is chosen here


class Listener(Silent):
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.images: list[tuple[int, int]] = []
        self.steps: list[StepReport] = []
        self.epochs: list[EpochReport] = []
        self.notes: list[str] = []

    def on_images(self, done: int, total: int) -> None:
        self.images.append((done, total))

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)

    def on_epoch(self, report: EpochReport) -> None:
        self.epochs.append(report)

    def on_note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def table(phantom_table: Path) -> Path:
    return phantom_table


def test_equal_runs_give_equal_models_and_a_seed_changes_them(table, phantom_bundle, tmp_path):
    def fingerprint(name: str, seed: int) -> str:
        train(load_config("demo", {**SMALL, "seed": seed}), table, tmp_path / name)
        return load_bundle(tmp_path / name).fingerprint

    assert fingerprint("a", 0) == phantom_bundle.fingerprint
    assert fingerprint("b", 1) != phantom_bundle.fingerprint


def test_bundle_says_what_it_was_made_from(table, tmp_path, monkeypatch):
    monkeypatch.setattr("training.evaluation.labels.MIN_POSITIVES", 1)  # of 6 validation studies
    listener = Listener()
    config = load_config(
        "demo", {**SMALL, "loop.epochs": 2, "loop.validate_every": 2, "data.text_dropout": 0.0}
    )
    result = train(config, table, tmp_path / "bundle", watcher=listener)
    bundle = load_bundle(result.bundle)
    split = json.loads((bundle.path / "split.json").read_text())
    ids = [study for part in ("train", "validation", "test") for study in split[part]]
    assert len(ids) == len(set(ids)) == sum(part["studies"] for part in result.metrics["studies"].values())
    assert set(result.metrics["test"]) == {"study", "image", "text"}
    counts = result.metrics["studies"]["train"]
    assert counts["study"] == counts["image"] + counts["text"] - counts["studies"] > 0
    assert bundle.trained_ways == ("study", "image", "text")
    assert bundle.config["training"]["loop"]["epochs"] == 2
    assert bundle.manifest["seed"] == 0
    assert bundle.manifest["data_source"] == "phantom"
    assert "nothing about patients" in (bundle.path / "MODEL_CARD.md").read_text()
    assert "never" in (bundle.path / "MODEL_CARD.md").read_text()
    assert listener.images[-1] == (sum(map(bool, listener.images)), listener.images[-1][1])
    assert [report.step for report in listener.steps] == list(range(1, listener.steps[-1].steps + 1))
    assert [bool(report.validation) for report in listener.epochs] == [False, True]
    assert set(listener.epochs[0].losses) == {"labels/image", "labels/text", "labels/study", "contrastive"}
    lines = (tmp_path / "bundle.run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [asdict(report) for report in listener.epochs]
    assert result.metrics["history"] == [asdict(report) for report in listener.epochs]
    assert not list((tmp_path / "bundle.run").glob("checkpoint-*"))
    assert any(note.startswith("View head fitted on ") for note in listener.notes)
    assert load_model(bundle).fusion.lateral.is_fitted
    score = result.metrics["view_head"]
    assert score["laterals"] + score["frontals"] > 3
    assert "### View head" in (bundle.path / "MODEL_CARD.md").read_text()


def test_a_failure_in_the_middle_leaves_no_bundle_and_a_run_to_go_on_with(
    table, phantom_bundle, tmp_path, monkeypatch
):
    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "calibrate", fail)
        with pytest.raises(KeyboardInterrupt):
            train(load_config("demo", SMALL), table, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.run"]
    state = torch.load(tmp_path / "bundle.run" / "checkpoint-1" / "state.pt", weights_only=True)
    assert state["training"] is None  # nothing is left to train
    with pytest.raises(ConfigError, match="--resume"):
        train(load_config("demo", SMALL), table, tmp_path / "bundle")
    with pytest.raises(ConfigError, match=r"other settings \(seed = 0\)"):
        train(load_config("demo", {**SMALL, "seed": 1}), table, tmp_path / "bundle", resume=True)
    listener = Listener()
    resumed = train(load_config("demo", SMALL), table, tmp_path / "bundle", resume=True, watcher=listener)
    assert listener.steps == []
    assert "Resuming after epoch 1 of 1." in listener.notes
    assert load_bundle(resumed.bundle).fingerprint == phantom_bundle.fingerprint


@pytest.mark.parametrize("scores", [(0.5, 0.7, 0.1), (0.7, 0.5, 0.1)])
def test_the_best_weights_outlive_a_break_behind_the_best_epoch_and_later(
    table, tmp_path, monkeypatch, scores
):
    """The checkpoint holds them once: as the weights of its epoch, or beside them."""
    settings = {**SMALL, "loop.epochs": 3, "loop.validate_every": 1, "optimizer.ema_decay": 0.5}

    def start(name: str, given, **options):
        left = iter(given)
        monkeypatch.setattr(loop_module, "score", lambda *_: {"score": next(left)})
        return train(load_config("demo", settings), table, tmp_path / name, **options)

    straight = start("straight", scores)
    with pytest.raises((KeyboardInterrupt, StopIteration)):
        start("killed", scores[:2])
    state = torch.load(tmp_path / "killed.run" / "checkpoint-2" / "state.pt", weights_only=True)
    assert state["best"]["epoch"] == scores.index(0.7) + 1 == straight.metrics["best_epoch"]
    assert (state["best"]["state"] is None) == (scores[1] == 0.7)
    assert set(state["training"]) == {"optimizers", "schedules", "scaler"}
    resumed = start("killed", scores[2:], resume=True)
    assert load_bundle(resumed.bundle).fingerprint == load_bundle(straight.bundle).fingerprint


def test_without_labels_of_enough_studies_the_last_epoch_is_kept(table, tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "score", lambda *_: {})
    listener = Listener()
    config = load_config("demo", {**SMALL, "loop.epochs": 2, "loop.validate_every": 1, "loop.patience": 1})
    result = train(config, table, tmp_path / "bundle", watcher=listener)
    assert result.metrics["best_epoch"] == 2
    note, _ = listener.notes  # the second is of the view head
    assert note.startswith("No label has 5 validation studies with and without it")


def test_training_ends_early_with_the_best_weights(table, tmp_path, monkeypatch):
    scores = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    monkeypatch.setattr(loop_module, "score", lambda *given: {"score": next(scores)})
    listener = Listener()
    config = load_config("demo", {**SMALL, "loop.epochs": 5, "loop.validate_every": 1, "loop.patience": 2})
    result = train(config, table, tmp_path / "bundle", watcher=listener)
    assert [report.validation["score"] for report in listener.epochs] == [0.5, 0.7, 0.6, 0.65]
    assert result.metrics["best_epoch"] == 2
    assert listener.notes[0] == "Stopped early: the score has not improved since epoch 2."
    twice = load_config("demo", {**SMALL, "loop.epochs": 5, "loop.validate_every": 1, "loop.patience": 2})
    scores = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    monkeypatch.setattr(loop_module, "score", lambda *given: {"score": next(scores)})
    assert (
        load_bundle(train(twice, table, tmp_path / "twice").bundle).fingerprint
        == load_bundle(result.bundle).fingerprint
    )


USUAL = {**SMALL, "data.text_dropout": 0.0, "loop.batch_size": 24}


@pytest.fixture(scope="module")
def usual_weights(phantom_table, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights of a run in which no option is set."""
    result = train(load_config("demo", USUAL), phantom_table, tmp_path_factory.mktemp("usual") / "bundle")
    return load_file(result.bundle / "model.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.ema_decay": 0.5},
        {"loop.accumulate": 4},
        {"loop.precision": OTHER_PRECISION, "loop.deterministic": True},
        {"data.views": 2},
        {"model.pooling": "mean"},
        {"loss.bce_share": 1.0},
        {"weights.freeze": ["text"], "weights.checkpointing": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_option_trains_another_model(table, usual_weights, tmp_path, changes):
    result = train(load_config("demo", {**USUAL, **changes}), table, tmp_path / "bundle")
    ours = load_file(result.bundle / "model.safetensors")
    assert not torch.equal(ours["fusion.pooling.weight"], usual_weights["fusion.pooling.weight"])
    assert all(bool(torch.isfinite(value).all()) for value in ours.values())
    assert set(result.metrics["test"]) >= {"study", "image", "text"}
    assert ("views" in result.metrics["test"]) == (changes.get("data.views") == 2)
    load_model(load_bundle(result.bundle))


def test_the_lexical_part_is_fitted_beside_the_rest_and_adds_to_reports_alone(table, tmp_path):
    with_words, without = (
        train(
            load_config("demo", {**SMALL, "model.lexical_buckets": buckets}), table, tmp_path / str(buckets)
        )
        for buckets in (509, 0)
    )
    ours, theirs = (load_file(run.bundle / "model.safetensors") for run in (with_words, without))
    tables = {name for name in ours if name.startswith("fusion.lexical.")}
    assert ours.keys() - theirs.keys() == tables
    assert ours["fusion.lexical.unigrams"].abs().sum() > 0
    assert torch.equal(ours["fusion.pooling.weight"], theirs["fusion.pooling.weight"])
    bundle = load_bundle(with_words.bundle)
    model, tokenizer = load_model(bundle), ReportTokenizer.load(bundle.tokenizer_path)
    encoded = tokenizer.encode(["Large right pleural effusion."], 64)
    ids, mask = torch.from_numpy(encoded.input_ids), torch.from_numpy(encoded.attention_mask)
    with torch.inference_mode():
        tokens = model.text_encoder(ids, mask)
        added = (
            model.fusion(None, tokens, mask, input_ids=ids).logits - model.fusion(None, tokens, mask).logits
        )
    torch.testing.assert_close(added, model.fusion.lexical(ids, mask))
    assert added.abs().max() > 0.1


def test_half_precision_needs_a_gpu(table, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="needs a GPU"):
        train(load_config("demo", {**SMALL, "loop.precision": "fp16"}), table, tmp_path / "bundle")


def test_an_existing_directory_is_refused_before_the_work(table, tmp_path):
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        train(load_config("demo", SMALL), table, tmp_path / "bundle")


def test_a_cache_and_a_split_file_are_used(table, phantom_bundle, tmp_path, caplog):
    """The same bundle comes from the cache as from the files, and from the split of a bundle as from its seed."""
    config, drawn = load_config("demo", SMALL), phantom_bundle
    fill_cache(table, tmp_path / "cache", size=config.model.image_size, workers=1)
    listener = Listener()
    again = train(
        config,
        table,
        tmp_path / "again",
        cache=tmp_path / "cache",
        split_file=drawn.path / "split.json",
        watcher=listener,
    )
    assert load_bundle(again.bundle).fingerprint == drawn.fingerprint
    assert listener.images == [], "no image was read"
    split = json.loads((drawn.path / "split.json").read_text())
    moved = split["train"].pop()
    split["test"].append(moved)
    left_out = split["train"].pop()
    rows = [(number.removeprefix("CXR"), part) for part, ids in split.items() for number in ids]
    (tmp_path / "split.csv").write_text("uid,split\n" + "".join(f"{uid},{part}\n" for uid, part in rows))
    other = train(
        config, table, tmp_path / "other", cache=tmp_path / "cache", split_file=tmp_path / "split.csv"
    )
    used = json.loads((other.bundle / "split.json").read_text())
    assert {part: set(ids) for part, ids in used.items()} == {part: set(ids) for part, ids in split.items()}
    assert left_out not in str(used)
    assert "Leaving out 1 studies of the table that split.csv does not mention." in caplog.messages


def test_a_cache_of_another_size_is_refused(table, tmp_path):
    fill_cache(table, tmp_path / "cache", size=16, workers=1)
    with pytest.raises(ConfigError, match="images of 16 pixels"):
        train(load_config("demo", SMALL), table, tmp_path / "bundle", cache=tmp_path / "cache")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
