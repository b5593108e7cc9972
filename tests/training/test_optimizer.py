"""Every parameter is updated by exactly one optimizer, at the rate and decay of its kind."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from training.config import make_config
from training.optimizer import make_optimizers, make_schedules, scale_rate

CONFIG = make_config("demo", {"learning_rate": 0.01, "encoder_rate": 0.5, "weight_decay": 0.1})


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.ModuleDict({"swin": nn.Linear(3, 4)})
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(4, 2)


def list_groups(optimizers):
    """Name of the optimizer, rate and decay of each parameter."""
    return {
        id(parameter): (type(optimizer).__name__, group["lr"], group["weight_decay"])
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_muon_takes_the_matrices_and_adamw_the_rest():
    model = Model()
    found = list_groups(make_optimizers(model, replace(CONFIG, optimizer="muon")))
    assert found == {
        id(model.image["swin"].weight): ("Muon", 0.005, 0.1),
        id(model.image["swin"].bias): ("AdamW", 0.005, 0.0),
        id(model.embedding.weight): ("AdamW", 0.01, 0.1),
        id(model.head.weight): ("Muon", 0.01, 0.1),
        id(model.head.bias): ("AdamW", 0.01, 0.0),
    }


def test_adamw_takes_everything():
    model = Model()
    (optimizer,) = make_optimizers(model, replace(CONFIG, optimizer="adamw"))
    assert set(list_groups([optimizer])) == {id(parameter) for parameter in model.parameters()}
    assert type(optimizer).__name__ == "AdamW"


def test_rate_warms_up_and_falls_to_nothing():
    rates = [scale_rate(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 0.001


def test_schedules_move_every_optimizer():
    model = Model()
    optimizers = make_optimizers(model, replace(CONFIG, optimizer="muon"))
    schedules = make_schedules(optimizers, 10, 0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer, schedule in zip(optimizers, schedules, strict=True):
        optimizer.step()
        schedule.step()
    assert {group["lr"] for optimizer in optimizers for group in optimizer.param_groups} == {0.004, 0.002}
