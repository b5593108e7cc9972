"""Image backbones other than Swin: built by config or by the weights' own config, and the tokens are the original's.

The originals are made here by timm and by transformers, at random and small, and stored as they store them.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file

from contract.errors import ConfigError
from training.config.settings import DataConfig, ModelConfig, TrainConfig, WeightsConfig
from training.config.toml_file import format_config, load_config
from training.model import backbone
from training.model.adopt_image import adopt_image_model
from training.model.backbone import TokenLayout, read_layout, read_sizes
from training.model.model import CxrModel, ImageEncoder
from training.model.weights import enable_checkpointing, load_image_weights

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
SWIN = {
    "image_size": 56,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 1],
    "num_heads": [2, 2],
    "window_size": 7,
}
TRANSFORMERS = {  # model, config, tokens before those of the image
    "vit": (transformers.ViTModel, transformers.ViTConfig(**VIT, intermediate_size=96), 1),
    "dinov2": (transformers.Dinov2Model, transformers.Dinov2Config(**VIT), 1),
    "registers": (
        transformers.Dinov2WithRegistersModel,
        transformers.Dinov2WithRegistersConfig(**VIT, num_register_tokens=3),
        4,
    ),
    "swin": (transformers.SwinModel, transformers.SwinConfig(**SWIN), 0),
    "swinv2": (transformers.Swinv2Model, transformers.Swinv2Config(**SWIN), 0),
    "convnext": (
        transformers.ConvNextModel,
        transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], image_size=64),
        0,
    ),
}
TIMM = {  # arguments, side in pixels
    "vit_base_patch14_reg4_dinov2": ({"embed_dim": 32, "depth": 2, "num_heads": 2, "reg_tokens": 2}, 56),
    "convnext_tiny": ({"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, 64),
    "swinv2_tiny_window8_256": (
        {"embed_dim": 16, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4},
        64,
    ),
}


def shake(model) -> None:
    """Give every parameter a value that matters: layer scales and tokens start at almost nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 1 if "pos" in name else 0.1)


def read_tokens(model: CxrModel, pixels: torch.Tensor) -> torch.Tensor:
    encoder = model.image_encoder
    with torch.inference_mode():
        return encoder.layout.take_tokens(encoder.backbone.forward_features(pixels))


def name_weights(model: ModelConfig, source: Path) -> TrainConfig:
    return TrainConfig(model=model, weights=WeightsConfig(image=str(source)), data=DataConfig(max_length=64))


def make_model(config: ModelConfig, source: Path) -> CxrModel:
    adopted = adopt_image_model(name_weights(config, source))
    model = CxrModel(adopted.model).eval()
    loaded = load_image_weights(model, str(source))
    assert loaded.absent == ()
    assert loaded.loaded == len(list(model.image_encoder.backbone.parameters()))
    return model


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_both_libraries_give_the_same_tokens(small_config, tmp_path, kind):
    """`transformers` wrote the weights, timm reads them: the same picture has the same tokens."""
    make, config, prefix = TRANSFORMERS[kind]
    original = make(config).eval()
    shake(original)
    original.save_pretrained(tmp_path)
    model = make_model(small_config, tmp_path)
    side = model.config.image_size
    assert side == config.image_size
    pixels = torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = original(pixels.expand(-1, 3, -1, -1)).last_hidden_state
    expected = expected.flatten(2).transpose(1, 2) if expected.ndim == 4 else expected[:, prefix:]
    found = read_tokens(model, pixels)
    assert found.shape == (2, read_layout(model.config).grid ** 2, model.image_encoder.layout.width)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def write_timm(directory: Path, name: str, arguments: dict, side: int) -> torch.nn.Module:
    """Write a timm model for RGB images with a classifier as timm writes one for the hub; return it."""
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    original = timm.create_model(name, num_classes=5, **arguments, **({"img_size": side} if fixed else {}))
    shake(original)
    save_file(original.state_dict(), directory / "model.safetensors")
    stated = {"input_size": [3, side, side], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    values = {"architecture": name, "model_args": arguments, "pretrained_cfg": stated}
    (directory / "config.json").write_text(json.dumps(values))
    return original.eval()


@pytest.mark.parametrize("name", TIMM)
def test_weights_of_timm_bring_their_architecture(small_config, tmp_path, name):
    arguments, side = TIMM[name]
    original = write_timm(tmp_path, name, arguments, side)
    model = make_model(small_config, tmp_path)
    assert (model.config.image_size, model.config.pixel_mean, model.config.pixel_std) == (side, 0.5, 0.25)
    pixels = torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = original.forward_features(pixels.expand(-1, 3, -1, -1))
    expected = model.image_encoder.layout.take_tokens(expected)
    torch.testing.assert_close(read_tokens(model, pixels), expected, rtol=1e-5, atol=1e-5)


def use(name: str, side: int, arguments: dict) -> ModelConfig:
    return ModelConfig(image_backbone=name, image_size=side, image_arguments=arguments, width=32)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("vit_base_patch14_reg4_dinov2", TokenLayout("NLC", 4, 32, prefix=3)),
        ("convnext_tiny", TokenLayout("NCHW", 2, 32, unused=("head",))),
        ("swinv2_tiny_window8_256", TokenLayout("NHWC", 8, 32)),
    ],
)
def test_a_backbone_says_how_its_features_lie_and_all_of_it_learns(name, layout):
    arguments, side = TIMM[name]
    config = use(name, side, arguments)
    assert read_layout(config) == layout
    assert read_sizes(config)["N"] == layout.grid**2
    encoder = ImageEncoder(config)
    encoder(torch.zeros(2, 1, side, side)).square().sum().backward()
    assert [key for key, value in encoder.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("axes", ["NLC", "NHWC", "NCHW"])
def test_tokens_are_taken_row_by_row(axes):
    grid = torch.arange(2 * 3 * 3 * 5.0).reshape(2, 3, 3, 5)
    features = {
        "NLC": torch.cat([torch.full((2, 4, 5), -1.0), grid.reshape(2, 9, 5)], dim=1),
        "NHWC": grid,
        "NCHW": grid.permute(0, 3, 1, 2),
    }
    tokens = TokenLayout(axes, 3, 5, prefix=4).take_tokens(features[axes])
    assert torch.equal(tokens, grid.reshape(2, 9, 5))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            use("vit_bass_patch16_224", 224, {}),
            "no backbone 'vit_bass_patch16_224'.*; timm has vit_base_patch16_224",
        ),
        (use("convnext_tiny", 64, {"windows": 3}), "windows"),
        (use("vit_tiny_patch16_224", 56, {}), "patches of 16 pixels do not divide"),
        (use("crossvit_9_240", 240, {}), "a list.* no square grid"),
    ],
)
def test_a_backbone_that_cannot_be_used_is_refused(check_sentence, config, words):
    with pytest.raises(ConfigError, match=words) as info:
        CxrModel(config)
    check_sentence(info)


def test_tokens_that_do_not_divide_the_image_are_refused(check_sentence, monkeypatch):
    """Explanations sum pixels by token; a backbone that states no stride is held to its grid."""
    monkeypatch.setattr(backbone, "_read_stride", lambda _: None)
    with pytest.raises(ConfigError, match="3 tokens a side do not divide images of 100 pixels") as info:
        read_layout(use("convnext_atto", 100, {"dims": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}))
    check_sentence(info)


def test_a_backbone_without_checkpointing_says_so(check_sentence):
    model = torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match=r"Linear cannot .* weights\.checkpointing") as info:
        enable_checkpointing(model, frozen=["text"])
    check_sentence(info)


def test_arguments_without_a_backbone_are_refused():
    with pytest.raises(ConfigError, match="image_backbone"):
        ModelConfig(image_arguments={"depth": 2}).check()


@pytest.mark.parametrize("value", [{"a": 1}, float("nan"), None])
def test_an_argument_that_cannot_be_written_out_is_refused(value):
    with pytest.raises(ConfigError, match=r"model\.image_arguments\.depth"):
        load_config("demo", {"model.image_arguments": {"depth": value}})


def test_a_backbone_is_written_out_and_read_back(tmp_path):
    changes = {
        "model.image_backbone": "convnext_tiny",
        "model.image_arguments": {"dims": [8, 16], "act_layer": "gelu", "ls_init_value": 1e-6},
    }
    config = load_config("demo", changes)
    (tmp_path / "again.toml").write_text(format_config(config))
    assert load_config(str(tmp_path / "again.toml")).model == config.model


def test_a_backbone_that_the_config_names_stays_and_positions_are_interpolated(small_config, tmp_path):
    arguments, side = TIMM["vit_base_patch14_reg4_dinov2"]
    original = write_timm(tmp_path, "vit_base_patch14_reg4_dinov2", arguments, side)
    named = replace(
        small_config,
        image_backbone="vit_base_patch14_reg4_dinov2",
        image_size=112,
        image_arguments=arguments,
    )
    config = name_weights(named, tmp_path)
    assert adopt_image_model(config) is config
    model = CxrModel(named)
    assert load_image_weights(model, str(tmp_path)).resized == ("patch_embed.proj.weight", "pos_embed")
    positions = model.image_encoder.backbone.pos_embed
    assert positions.shape == (1, 64, 32)
    torch.testing.assert_close(positions.mean(), original.pos_embed.mean(), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "clip"}, "model_type clip"),
        ({"hidden_act": "relu"}, "hidden_act relu"),
        ({"image_size": [56, 28]}, "square"),
        ({"hidden_size": "wide"}, "config.json"),
        ({"num_attention_heads": 5}, "cannot build"),
        ({"num_hidden_layers": 3}, "lack"),
    ],
)
def test_another_image_model_is_refused(small_config, tmp_path, check_sentence, values, words):
    make, config, _ = TRANSFORMERS["vit"]
    make(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(ConfigError, match=words) as info:
        make_model(small_config, tmp_path)
    check_sentence(info)


@pytest.mark.parametrize("content", ["", "[]", '{"model_type": "vit"}', '{"architecture": 3}'])
def test_a_damaged_image_config_is_refused(small_config, tmp_path, check_sentence, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError) as info:
        make_model(small_config, tmp_path)
    check_sentence(info)


def test_bundles_from_before_the_backbone_could_be_chosen_load(small_config, tmp_path):
    torch.manual_seed(3)
    model = CxrModel(small_config)
    old = {name.replace(".backbone.", ".swin."): value for name, value in model.state_dict().items()}
    save_file(old, tmp_path / "model.safetensors")
    again = CxrModel(small_config)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
