"""Every trainable parameter is updated by exactly one optimizer, at the rate and decay of its layer and kind."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn, optim

from training.config.settings import ModelConfig, OptimizerConfig, TrainConfig
from training.model.model import CxrModel
from training.optimizer import (
    REST,
    describe_rates,
    make_average,
    make_optimizers,
    make_schedules,
    scale_rate,
)

CONFIG = TrainConfig(
    model=ModelConfig(
        image_size=56,
        image_stem="patch",
        image_patch=4,
        image_width=16,
        image_depths=(1, 2),
        image_heads=(2, 2),
        vocabulary_size=50,
        text_width=16,
        text_layers=2,
        text_heads=2,
        text_feedforward=32,
        lexical_buckets=64,
        width=16,
        embedding_size=16,
    ),
    optimizer=OptimizerConfig(learning_rate=0.01, encoder_rate=0.5, weight_decay=0.1),
)


def change(**values) -> TrainConfig:
    return replace(CONFIG, optimizer=replace(CONFIG.optimizer, **values))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.ModuleDict({"backbone": nn.Linear(3, 4)})
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(4, 2)


@pytest.fixture(scope="module")
def model() -> CxrModel:
    return CxrModel(CONFIG.model)


def name_kind(optimizer):
    """Return "Muon" or "AdamW"; which Muon it is depends on the processor."""
    return "Muon" if isinstance(optimizer, optim.Muon) else type(optimizer).__name__


def list_groups(optimizers):
    """Name of the optimizer, rate and decay of each parameter; one that came twice would be there twice."""
    entries = [
        (id(parameter), (name_kind(optimizer), group["lr"], group["weight_decay"]))
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(entries) == len(dict(entries))
    return dict(entries)


def name_groups(model, config):
    found = list_groups(make_optimizers(model, config))
    return {
        name: found[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in found
    }


def test_muon_takes_the_matrices_and_adamw_the_rest():
    model = Model()
    found = list_groups(make_optimizers(model, change(name="muon")))
    assert found == {
        id(model.image["backbone"].weight): ("Muon", 0.005, 0.1),
        id(model.image["backbone"].bias): ("AdamW", 0.005, 0.0),
        id(model.embedding.weight): ("AdamW", 0.01, 0.1),
        id(model.head.weight): ("Muon", 0.01, 0.1),
        id(model.head.bias): ("AdamW", 0.01, 0.0),
    }


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_updated_once(model, name):
    config = change(name=name, layer_decay=0.5)
    assert name_groups(model, config).keys() == dict(model.named_parameters()).keys()
    kinds = [name_kind(optimizer) for optimizer in make_optimizers(model, config)]
    assert kinds == (["AdamW"] if name == "adamw" else ["Muon", "AdamW"])


def test_muon_leaves_tables_and_vectors_of_the_model_to_adamw(model):
    found = name_groups(model, change(name="muon"))
    assert not any("lexical" in parameter for parameter in found)  # fitted, not trained
    assert found["fusion.view"] == ("AdamW", 0.01, 0.0)
    assert found["fusion.pooling.queries"] == ("AdamW", 0.01, 0.1)
    assert found["text_encoder.bert.embeddings.word_embeddings.weight"] == ("AdamW", 0.005, 0.1)
    assert found["image_encoder.backbone.patch_embed.proj.weight"] == ("AdamW", 0.005, 0.1)
    assert found["image_encoder.backbone.layers.0.blocks.0.mlp.fc1.weight"] == ("Muon", 0.005, 0.1)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_tables_of_relative_position_biases_are_not_decayed(model, name):
    found = name_groups(model, change(name=name))
    tables = [parameter for parameter in found if parameter.endswith("relative_position_bias_table")]
    assert len(tables) == 3  # one per block
    assert {found[parameter] for parameter in tables} == {("AdamW", 0.005, 0.0)}
    assert found["image_encoder.backbone.layers.0.blocks.0.attn.qkv.weight"][2] == 0.1
    wrapped = nn.ModuleDict({"module": model})
    assert found == {
        parameter.removeprefix("module."): group
        for parameter, group in name_groups(wrapped, change(name=name)).items()
    }


def test_a_moving_average_keeps_whole_numbers(model):
    """0.9 * 5 + 0.1 * 5 is 4.99 in float32, and would be cut to 4."""
    changing = copy.deepcopy(model)
    average = make_average(changing, 0.9)
    before = {name: value.clone() for name, value in changing.named_buffers()}
    for step in range(3):
        with torch.no_grad():
            for parameter in changing.parameters():
                parameter.fill_(step)
            changing.fusion.scale_image.fill_(step)
        average.update_parameters(changing)
    whole = {name: value for name, value in average.module.named_buffers() if not value.is_floating_point()}
    assert {name.rsplit(".", 1)[-1] for name in whole} >= {"relative_position_index", "position_ids"}
    for name, value in whole.items():
        assert torch.equal(value, before[name]), name
    expected = (0.9 * 0 + 0.1 * 1) * 0.9 + 0.1 * 2
    assert average.module.fusion.scale_image.tolist() == pytest.approx([expected] * 22)
    assert average.module.fusion.view.mean().item() == pytest.approx(expected)


def test_a_moving_average_follows_whole_numbers_that_change():
    norm = nn.BatchNorm1d(2)
    average = make_average(norm, 0.5)
    for _ in range(4):
        norm(torch.randn(8, 2))
        average.update_parameters(norm)
    assert int(average.module.num_batches_tracked) == 4


DISTANCES = {
    "image_encoder.backbone.patch_embed.proj.weight": 4,
    "image_encoder.backbone.patch_embed.norm.bias": 4,
    "image_encoder.backbone.layers.0.blocks.0.attn.relative_position_bias_table": 3,
    "image_encoder.backbone.layers.1.downsample.reduction.weight": 2,
    "image_encoder.backbone.layers.1.blocks.0.mlp.fc2.weight": 2,
    "image_encoder.backbone.layers.1.blocks.1.norm1.weight": 1,
    "image_encoder.backbone.norm.weight": 0,
    "text_encoder.bert.embeddings.position_embeddings.weight": 2,
    "text_encoder.bert.embeddings.LayerNorm.weight": 2,
    "text_encoder.bert.encoder.layer.0.attention.self.query.weight": 1,
    "text_encoder.bert.encoder.layer.1.output.dense.bias": 0,
}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_each_layer_learns_slower_than_the_one_above(model, name):
    found = name_groups(model, change(name=name, layer_decay=0.8))
    for parameter, distance in DISTANCES.items():
        assert found[parameter][1] == pytest.approx(0.005 * 0.8**distance), parameter
    for parameter in (
        "image_encoder.project.weight",
        "image_encoder.position",
        "text_encoder.project.weight",
    ):
        assert found[parameter][1] == 0.01


def test_wrappers_change_no_rate(model):
    config = change(layer_decay=0.8)
    wrapped = nn.ModuleDict({"module": nn.ModuleDict({"model": model})})
    plain = name_groups(model, config)
    assert name_groups(wrapped, config) == {f"module.model.{name}": group for name, group in plain.items()}
    assert describe_rates(wrapped, config) == describe_rates(model, config)
    assert name_groups(model.image_encoder, config)["backbone.patch_embed.proj.weight"][1] == pytest.approx(
        0.005 * 0.8**4
    )


def test_frozen_parameters_are_left_out_and_still_count_as_layers():
    model = CxrModel(CONFIG.model)
    model.image_encoder.backbone.requires_grad_(False)
    model.text_encoder.bert.encoder.layer[1].requires_grad_(False)
    config = change(name="muon", layer_decay=0.8)
    found = name_groups(model, config)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found.keys() == trainable
    assert found["text_encoder.bert.encoder.layer.0.output.dense.weight"][1] == pytest.approx(0.005 * 0.8)
    assert [row.name for row in describe_rates(model, config)] == [
        "bert.embeddings",
        "bert.encoder.layer.0",
        REST,
    ]


def test_rates_are_described_layer_by_layer(model):
    rows = describe_rates(model, change(layer_decay=0.5))
    assert [(row.name, row.rate) for row in rows] == [
        ("backbone.patch_embed", 0.005 / 16),
        ("backbone.layers.0.blocks.0", 0.005 / 8),
        ("backbone.layers.1.blocks.0", 0.005 / 4),
        ("backbone.layers.1.blocks.1", 0.005 / 2),
        ("backbone.norm", 0.005),
        ("bert.embeddings", 0.005 / 4),
        ("bert.encoder.layer.0", 0.005 / 2),
        ("bert.encoder.layer.1", 0.005),
        (REST, 0.01),
    ]
    assert sum(row.parameters for row in rows) == sum(parameter.numel() for parameter in model.parameters())
    assert rows[4].parameters == 2 * 32


def test_rate_warms_up_and_falls_to_nothing():
    rates = [scale_rate(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 0.001


def test_schedules_move_every_optimizer_and_keep_the_relation_of_layers():
    model = Model()
    optimizers = make_optimizers(model, change(name="muon"))
    schedules = make_schedules(optimizers, 10, 0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer, schedule in zip(optimizers, schedules, strict=True):
        optimizer.step()
        schedule.step()
    assert {group["lr"] for optimizer in optimizers for group in optimizer.param_groups} == {0.004, 0.002}
