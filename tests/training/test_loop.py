"""A step in half precision, where all optimizers share one loss scale; damaged checkpoints; deterministic runs."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from contract.errors import ArtifactError
from training.config.settings import LoopConfig, OptimizerConfig, TrainConfig
from training.loop import Trainer
from training.optimizer import make_optimizers
from training.train import _use_accelerator


class Net(nn.Module):
    """A matrix for Muon, a vector for AdamW."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4, bias=False)
        self.vector = nn.Parameter(torch.zeros(4))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return ((self.linear(values) + self.vector) ** 2).mean()


@pytest.fixture
def make_trainer():
    """A function that returns a trainer of a small net with Muon and AdamW, with or without a loss scale."""

    def make(*, scaled: bool) -> SimpleNamespace:
        accelerator = Accelerator(cpu=True)
        if scaled:  # as with precision fp16, which Accelerate allows on a GPU alone
            accelerator.scaler = torch.amp.GradScaler("cpu")
        config = replace(TrainConfig(), optimizer=OptimizerConfig(name="muon", learning_rate=1e-2))
        net = Net()
        objective, *optimizers = accelerator.prepare(net, *make_optimizers(net, config))
        assert len(optimizers) == 2
        if scaled:  # after `prepare`, so that the net computes in float32
            accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
        return SimpleNamespace(
            accelerator=accelerator,
            config=config,
            objective=objective,
            model=net,
            optimizers=optimizers,
            schedules=[],
            average=None,
            step=0,
        )

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


def make_steps(trainer, count=5):
    values = 0.01 * torch.arange(32.0).reshape(8, 4) / 32
    for _ in range(count):
        trainer.accelerator.backward(trainer.objective(values))
        Trainer._update_weights(trainer)


def test_a_loss_scale_changes_no_step_of_any_optimizer(make_trainer):
    plain, scaled = make_trainer(scaled=False), make_trainer(scaled=True)
    for trainer in (plain, scaled):
        make_steps(trainer)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(scaled.model.state_dict()[name], value, msg=name)


def test_an_overflow_skips_the_step_of_every_optimizer(make_trainer):
    trainer = make_trainer(scaled=True)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    scale = trainer.accelerator.scaler.get_scale()
    trainer.accelerator.backward(trainer.objective(torch.ones(8, 4)))
    trainer.model.linear.weight.grad[0, 0] = float("nan")
    Trainer._update_weights(trainer)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert trainer.accelerator.scaler.get_scale() == scale / 2
    make_steps(trainer, 1)
    assert not torch.equal(trainer.model.vector, before["vector"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no checkpoint"])
def test_a_damaged_checkpoint_is_named(content, tmp_path):
    """A machine that lost its power can leave an empty file."""
    (tmp_path / "state.pt").write_bytes(content)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"))
    with pytest.raises(ArtifactError, match=r"The checkpoint .* cannot be read\. Remove it"):
        Trainer._load(trainer, tmp_path)


def test_a_deterministic_run_sets_what_cublas_needs(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is gone after the test
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    plain = TrainConfig(loop=LoopConfig(precision="fp32"))
    with _use_accelerator(plain):
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with _use_accelerator(replace(plain, loop=replace(plain.loop, deterministic=True))):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
