"""Settings: every config file fits together and comes back as written, and a wrong setting is named."""

import json
import shlex
from dataclasses import asdict

import pytest
import torch

from contract.errors import ConfigError
from training.config.removed import REMOVED
from training.config.settings import DataConfig, ModelConfig, TrainConfig
from training.config.toml_file import (
    flatten_settings,
    format_config,
    list_configs,
    load_config,
    parse_settings,
    read_header,
    read_model_config,
    read_train_config,
)
from training.model.backbone import read_layout, read_sizes
from training.model.model import CxrModel
from training.optimizer import describe_rates, make_optimizers


@pytest.fixture
def write_config(tmp_path):
    def write(text: str, name: str = "mine.toml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", list_configs())
def test_every_config_fits_together_and_comes_back_as_written(name, write_config):
    config = load_config(name)
    assert config.name == name
    assert read_sizes(config.model)["N"] == read_layout(config.model).grid ** 2
    assert load_config(write_config(format_config(config))) == config


@pytest.mark.parametrize("name", list_configs())
def test_every_config_opens_with_the_command_that_runs_it(name):
    from typer.main import get_command

    from cli.commands.train import train_app

    line, *prose = read_header(name)
    program, command, *arguments = shlex.split(line)
    assert (program, command) == ("cxr", "train")
    parsed = get_command(train_app).commands["run"].make_context("train", arguments)  # parses, runs nothing
    assert parsed.params["config"] == name
    assert str(parsed.params["table"]) == "studies.parquet"
    assert any(prose)


def test_the_published_sizes_are_those_of_the_published_model():
    model = load_config("published").model
    assert (model.image_size, model.image_patch, model.image_stem, model.image_window) == (224, 4, "patch", 7)
    assert (model.image_width, model.image_depths, model.image_heads) == (128, (2, 2, 18, 2), (4, 8, 16, 32))
    assert (model.text_width, model.text_layers, model.text_positions) == (768, 12, 512)
    assert (model.width, model.fusion_layers, model.fusion_heads, read_sizes(model)["N"]) == (1024, 5, 8, 49)


@pytest.mark.parametrize(("name", "grid"), [("base", 7), ("base-384", 12)])
def test_base_can_fine_tune_its_encoders(name, grid):
    """Peak rates by the optimizer's own code. Swin and BERT are fine-tuned with 2e-5 to 5e-5, lower at their inputs."""
    config = load_config(name)
    with torch.device("meta"):
        model = CxrModel(config.model)
    rates = {layer.name: layer.rate for layer in describe_rates(model, config)}
    assert rates["rest"] == max(rates.values())
    assert 1e-4 <= rates["rest"] <= 1e-3
    for top, bottom in (
        ("backbone.norm", "backbone.patch_embed"),
        ("bert.encoder.layer.11", "bert.embeddings"),
    ):
        assert 2e-5 <= rates[top] <= 5e-5
        assert 1e-5 <= rates[bottom] < rates[top]
    groups = [group for optimizer in make_optimizers(model, config) for group in optimizer.param_groups]
    assert {group["lr"] for group in groups} == set(rates.values())
    assert sum(weight.numel() for group in groups for weight in group["params"]) > 200e6
    assert sum(weight.numel() for weight in model.fusion.parameters()) < 15e6
    assert (config.model.fusion_layers, config.model.width, model.sizes["N"]) == (2, 512, grid**2)
    assert config.data.text_dropout > 0
    assert config.data.rare_share > 0
    assert config.optimizer.ema_decay > 0


def test_the_published_sizes_are_no_recipe():
    """What `base` was: nothing but the head would learn, and that from few studies."""
    config = load_config("published")
    with torch.device("meta"):
        model = CxrModel(config.model)
    rates = {layer.name: layer.rate for layer in describe_rates(model, config)}
    assert rates["backbone.patch_embed"] < 2e-6
    assert sum(weight.numel() for weight in model.fusion.parameters()) > 100e6


def test_512_tokens_can_be_chosen():
    assert load_config("base", {"data.max_length": 512}).data.max_length == 512
    both = {"data.max_length": 512, "model.text_positions": 512}
    assert load_config("demo", both).model.text_positions == 512
    with pytest.raises(ConfigError, match=r"between 32 and model.text_positions, which is 256, not 512"):
        load_config("demo", {"data.max_length": 512})


BAD_SETTINGS = {
    "optimizer.name": "sgd",
    "loop.epochs": 0,
    "loop.batch_size": 3.5,
    "loop.compile": 1,
    "seed": -1,
    "model.dropout": 1.5,
    "loss.positive_weight_limit": 0.5,
    "optimizer.weight_decay": -0.1,
    "data.text_dropout": 1.5,
    "data.impression_share": -0.1,
    "data.max_length": 1000,
    "data.held_out": ["cardaic"],
    "data.text_mode": "poem",
    "model.image_stem": "linear",
    "model.image_size": 100,
    "model.text_width": 130,
    "model.image_depths": 3,
    "model.image_arguments": "depth=2",
    "model.image_backbone": 3,
    "loss.focal_gamma": -0.1,
    "loss.contrastive_weight": -0.1,
    "optimizer.learning_rate": float("inf"),
    "weights.image": 3,
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_wrong_value_is_named(name):
    with pytest.raises(ConfigError, match=name):
        load_config("demo", {name: BAD_SETTINGS[name]})


def test_two_views_need_a_share_that_leaves_some_to_both():
    with pytest.raises(ConfigError, match=r"data\.views 2 needs a data\.lateral_share below 0\.5"):
        TrainConfig(data=DataConfig(views=2)).check()
    TrainConfig(data=DataConfig(views=2, lateral_share=0.4)).check()
    TrainConfig(data=DataConfig(views=1, lateral_share=1.0)).check()


UNKNOWN = {
    "ephocs": "did you mean loop.epochs?",
    "lerning_rate": "did you mean optimizer.learning_rate?",
    "optimizer.epochs": "did you mean loop.epochs?",
    "model.imagesize": "did you mean model.image_size?",
    "optimiser.name": "did you mean optimizer?",
    "sead": "did you mean seed?",
    "augment.zzz": "known are rotation_degrees, scale",
    "optimizer": "Write [optimizer]",
    "seed.value": "seed must be a whole number",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_setting_comes_with_the_one_that_was_meant(name):
    with pytest.raises(ConfigError) as info:
        load_config("demo", {name: 1})
    message = str(info.value)
    assert UNKNOWN[name] in message
    assert message.endswith((".", "?"))
    assert not message.endswith("?.")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("huge", "one of ablation/bce, "),
        ("dmo", "did you mean demo?"),
        ("missing.toml", "no config file"),
        ("../config", "no config"),
        (".", "no config"),
    ],
)
def test_an_unknown_config_names_those_there_are(name, words):
    with pytest.raises(ConfigError) as info:
        load_config(name)
    assert words in str(info.value)


def test_a_file_extends_another_and_the_command_line_has_the_last_word(write_config):
    write_config('extends = "tiny"\n[loop]\nepochs = 7\n[weights]\ntext = "some/bert"\n', "parent.toml")
    path = write_config('extends = "parent.toml"\nseed = 4\n[optimizer]\nlearning_rate = 1\n', "child.toml")
    config = load_config(path, parse_settings(["loop.batch_size=64", "weights.text=none", "loop.patience=2"]))
    assert (config.name, config.seed) == ("child", 4)
    assert config.optimizer.learning_rate == 1.0
    assert isinstance(config.optimizer.learning_rate, float)
    assert (config.loop.epochs, config.loop.batch_size, config.loop.patience) == (7, 64, 2)
    assert config.weights.text is None
    assert config.model == load_config("tiny").model


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('extends = "mine.toml"', "extends itself"),
        ("extends = 3", "extends must name one config"),
        ('extends = "nobody"', "mine.toml: There is no config"),
        ("[loop\nepochs = 3", "is not valid TOML"),
        ("[loop]\nephocs = 3", "mine.toml: There is no setting loop.ephocs"),
        ("loop = 3", "loop is a section"),
    ],
)
def test_a_bad_file_is_named(text, words, write_config):
    with pytest.raises(ConfigError) as info:
        load_config(write_config(text))
    assert "mine.toml" in str(info.value)
    assert words in str(info.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(str(tmp_path / "mine.toml"))


def test_settings_are_read_as_typed():
    pairs = ["a=1e-3", "b.c=true", "d=[1, 2]", "e=muon", "f=a/path#1", 'g="5"', "h=", "i=x=y"]
    assert parse_settings(pairs) == {
        "a": 1e-3,
        "b.c": True,
        "d": [1, 2],
        "e": "muon",
        "f": "a/path#1",
        "g": "5",
        "h": "",
        "i": "x=y",
    }


@pytest.mark.parametrize("pair", ["epochs", "=3", "loop..epochs=3", " =3", "loop.=3"])
def test_a_setting_without_name_or_value_is_refused(pair):
    with pytest.raises(ConfigError, match=r"section\.name=value"):
        parse_settings([pair])


def test_texts_beyond_ascii_come_back_as_written(write_config):
    config = load_config("demo", {"weights.image": 'gewicht "é" \\ 😀', "name": "x"})
    assert load_config(write_config(format_config(config))) == config


def test_a_header_is_the_comment_at_the_top(write_config):
    path = write_config("# cxr train t --out b\n#\n# Prose.\nseed = 1\n# not this\n")
    assert read_header(path) == ["cxr train t --out b", "", "Prose."]
    assert read_header(write_config("seed = 1\n")) == []


def test_flattened_settings_have_dotted_names():
    flat = flatten_settings(asdict(TrainConfig()))
    assert flat["optimizer.learning_rate"] == TrainConfig().optimizer.learning_rate
    assert load_config("demo", {key: value for key, value in flat.items() if key != "name"}) == TrainConfig()


def test_a_bundle_gives_back_its_model_config():
    stored = {**vars(ModelConfig()), "image_depths": [2, 2], "image_heads": [4, 8]}  # JSON knows no tuples
    assert read_model_config(stored) == ModelConfig()


OLDER = {
    "augment": {"occlusion": 0.0},
    "loss": {
        "labels": "bce_focal",
        "asymmetric_gammas": [1.0, 4.0],
        "asymmetric_clip": 0.05,
        "headings_weight": 0.0,
    },
    "pretraining": {"epochs": 0, "learning_rate": 1e-3, "masked_share": 0.15},
}
USED = {
    "augment.occlusion": 0.3,
    "loss.labels": "asymmetric",
    "loss.headings_weight": 0.1,
    "pretraining.epochs": 2,
}


def nest(name, value):
    section, setting = name.split(".")
    return {section: {**OLDER[section], setting: value}}


def test_a_config_of_an_older_version_is_read_where_its_removed_settings_were_off(write_config):
    text = format_config(load_config("demo"))
    for section, settings in OLDER.items():
        lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
        header = f"[{section}]"
        text = (
            text.replace(header, f"{header}\n{lines}") if header in text else f"{text}\n{header}\n{lines}\n"
        )
    assert load_config(write_config(text)) == load_config("demo")
    flat = flatten_settings(OLDER)
    assert load_config("demo", flat) == load_config("demo")
    assert set(flat) == set(REMOVED)


@pytest.mark.parametrize("name", USED)
def test_a_removed_setting_that_is_switched_on_is_refused_by_its_name(name, write_config):
    message = rf"The setting {name} was removed \(docs/training.md says why\)\. Leave it out\.$"
    with pytest.raises(ConfigError, match=message):
        load_config("demo", {name: USED[name]})
    section, setting = name.split(".")
    with pytest.raises(ConfigError, match=rf"mine\.toml: {message}"):
        load_config(write_config(f"[{section}]\n{setting} = {json.dumps(USED[name])}\n"))


def test_a_bundle_of_an_older_version_is_read_whatever_it_was_trained_with():
    config = load_config("demo")
    recorded = {name: value for name, value in asdict(config).items() if name != "model"}
    older = {**recorded, "pretraining": OLDER["pretraining"]}
    for name in ("augment", "loss"):
        older[name] = {**recorded[name], **OLDER[name]}
    stored = {"model": asdict(config.model), "training": older}
    assert read_train_config(stored) == config
    for name, value in USED.items():
        section, _ = name.split(".")
        changed = {**older, section: {**older[section], **nest(name, value)[section]}}
        assert read_train_config({**stored, "training": changed}) == config
    older["loss"]["from_the_future"] = 1
    with pytest.raises(ConfigError, match=r"There is no setting loss\.from_the_future"):
        read_train_config(stored)
