"""A whole training run on a few phantoms: the bundle is complete, repeatable, and all or nothing."""

import json
from pathlib import Path

import pytest

from contract.bundle import load_bundle
from contract.errors import ConfigError
from training import train as train_module
from training.cache import fill_cache
from training.config import make_config
from training.openi import build_table, write_table
from training.phantom import draw_dataset
from training.train import train

SMALL = {
    "epochs": 1,
    "model": {"image_width": 16, "image_heads": (2, 2), "text_width": 32, "text_layers": 1, "text_heads": 2},
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("train")
    draw_dataset(root / "phantom", studies=60, seed=5, scale=0.05)
    write_table(build_table(root / "phantom", root / "phantom"), root / "studies.parquet")
    return root / "studies.parquet"


def test_equal_runs_give_equal_models_and_a_seed_changes_them(table, tmp_path):
    def fingerprint(name: str, seed: int) -> str:
        train(make_config("demo", {**SMALL, "seed": seed}), table, tmp_path / name)
        return load_bundle(tmp_path / name).fingerprint

    assert fingerprint("a", 0) == fingerprint("b", 0)
    assert fingerprint("c", 1) != fingerprint("a2", 0)


def test_bundle_says_what_it_was_made_from(table, tmp_path):
    steps = []
    result = train(
        make_config("demo", SMALL),
        table,
        tmp_path / "bundle",
        progress=lambda done, total: steps.append((done, total)),
    )
    bundle = load_bundle(result.bundle)
    split = json.loads((bundle.path / "split.json").read_text())
    ids = [study for part in ("train", "validation", "test") for study in split[part]]
    assert len(ids) == len(set(ids)) == sum(part["studies"] for part in result.metrics["studies"].values())
    assert set(result.metrics["test"]) == {"study", "image", "text"}
    assert bundle.config["training"]["epochs"] == 1
    assert bundle.manifest["seed"] == 0
    assert "never" in (bundle.path / "MODEL_CARD.md").read_text()
    assert steps[-1][0] == steps[-1][1]


def test_a_failure_in_the_middle_leaves_nothing(table, tmp_path, monkeypatch):
    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "_calibrate", fail)
    with pytest.raises(KeyboardInterrupt):
        train(make_config("demo", SMALL), table, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_an_existing_directory_is_refused_before_the_work(table, tmp_path):
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        train(make_config("demo", SMALL), table, tmp_path / "bundle")


def test_a_cache_and_a_split_file_are_used(table, tmp_path, caplog):
    """The same bundle comes from the cache as from the files, and from the split of a bundle as from its seed."""
    config = make_config("demo", SMALL)
    drawn = load_bundle(train(config, table, tmp_path / "drawn").bundle)
    fill_cache(table, tmp_path / "cache", size=config.model.image_size, workers=1)
    steps = []
    again = train(
        config,
        table,
        tmp_path / "again",
        cache=tmp_path / "cache",
        split_file=drawn.path / "split.json",
        progress=lambda done, total: steps.append((done, total)),
    )
    assert load_bundle(again.bundle).fingerprint == drawn.fingerprint
    assert steps[0][0] == 1, "no image was read, so none counts as a step"
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
        train(make_config("demo", SMALL), table, tmp_path / "bundle", cache=tmp_path / "cache")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
