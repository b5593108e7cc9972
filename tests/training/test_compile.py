"""torch.compile is a switch: the same losses, from compiled encoders and fusion."""

import shutil

import pytest

from training.config.toml_file import load_config
from training.data.openi import build_table, write_table
from training.phantom import draw_dataset
from training.train import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.mark.filterwarnings("ignore")  # what the compiler says to its developers
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_model_has_the_losses_of_a_plain_one(tmp_path):
    draw_dataset(tmp_path / "phantom", studies=60, seed=2, scale=0.05)
    write_table(build_table(tmp_path / "phantom", tmp_path / "phantom"), tmp_path / "studies.parquet")
    changes = {
        "loop.epochs": 1,
        "loop.precision": "fp32",
        "model.dropout": 0.0,
        "model.image_drop_path": 0.0,
        "model.text_layers": 1,
        "data.text_dropout": 0.0,
    }
    losses = {}
    for compiled in (False, True):
        config = load_config("demo", {**changes, "loop.compile": compiled})
        result = train(config, tmp_path / "studies.parquet", tmp_path / f"compiled-{compiled}")
        losses[compiled] = result.metrics["history"][0]["losses"]
    assert losses[True] == pytest.approx(losses[False], rel=2e-3)
