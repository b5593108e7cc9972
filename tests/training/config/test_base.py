"""The config `base`, Swin-B and BERT-base, takes three steps on a CPU and becomes a bundle."""

import pytest

from contract.bundle import load_bundle
from training.config.toml_file import load_config
from training.data.openi import build_table, write_table
from training.model.model import load_model
from training.phantom import draw_dataset
from training.train import train
from training.watch import Silent, StepReport

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


class Listener(Silent):
    def __init__(self) -> None:
        self.steps: list[StepReport] = []

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)


def test_base_trains_three_steps_and_loads(tmp_path):
    draw_dataset(tmp_path / "phantom", studies=20, seed=2, scale=0.1)
    write_table(build_table(tmp_path / "phantom", tmp_path / "phantom"), tmp_path / "studies.parquet")
    listener = Listener()
    changes = {
        "loop.epochs": 1,
        "loop.batch_size": 8,
        "loop.precision": "fp32",
        "weights.checkpointing": True,
    }
    result = train(
        load_config("base", changes), tmp_path / "studies.parquet", tmp_path / "base", watcher=listener
    )
    assert [report.step for report in listener.steps] == [1, 2, 3]
    assert all(0 < report.loss < 20 for report in listener.steps)
    model = load_model(load_bundle(result.bundle))
    # Swin-B 87 M, BERT-base 86 M with its embeddings of a small vocabulary, fusion 13 M
    assert 180e6 < sum(weight.numel() for weight in model.parameters()) < 190e6
    assert model.sizes == {"S": 224, "N": 49, "C": 512, "D": 534}
