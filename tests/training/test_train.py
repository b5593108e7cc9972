"""A whole training run on a few phantoms: the bundle is complete, repeatable, and all or nothing."""

import json
from pathlib import Path

import pytest

from contract.bundle import load_bundle
from contract.errors import ConfigError
from training import train as train_module
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
