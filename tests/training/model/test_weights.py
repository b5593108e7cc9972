"""Pretrained image weights: every form of file gives the original's features, and whatever does not fit is refused.

The originals are made here by timm, at random and small.
"""

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from contract.errors import ConfigError
from training.model.model import CxrModel
from training.model.weights import (
    LoadedWeights,
    load_image_weights,
    load_text_weights,
)


@pytest.fixture
def model(small_config):
    torch.manual_seed(0)
    return CxrModel(small_config).eval()


def make_swin(config, **changes) -> nn.Module:
    """A timm Swin for RGB images with a classifier, of the architecture of a config."""
    sizes = {
        "img_size": config.image_size,
        "patch_size": config.image_patch,
        "embed_dim": config.image_width,
        "depths": config.image_depths,
        "num_heads": config.image_heads,
        "window_size": config.image_window,
    }
    torch.manual_seed(1)
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **{**sizes, **changes})
    with torch.no_grad():
        for parameter in swin.parameters():
            parameter.normal_(0, 0.2)
    return swin.eval()


def name_early(state):
    """Rename to the names of the authors' release, which merges patches at the end of a stage."""
    return {
        name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): value
        for name, value in state.items()
    }


def write_image(state, path: Path, form: str) -> Path:
    """Write a state dict in one of the forms it comes in, and return the source."""
    if form == "safetensors":
        save_file(state, path / "swin.safetensors")
        return path / "swin.safetensors"
    if form == "directory":
        save_file(state, path / "model.safetensors")
    elif form == "old directory":
        torch.save(state, path / "pytorch_model.bin")
    elif form == "checkpoint":
        wrapped = {f"module.{name}": value for name, value in state.items()}
        torch.save({"state_dict": wrapped, "epoch": 3}, path / "last.pth.tar")
        return path / "last.pth.tar"
    elif form == "early":
        buffers = {
            "layers.0.blocks.1.attn_mask": torch.zeros(4),
            "layers.0.blocks.0.attn.relative_position_index": torch.zeros(4),
        }
        torch.save({"model": {**name_early(state), **buffers}}, path / "swin.pth")
        return path / "swin.pth"
    return path


@pytest.mark.parametrize("form", ["safetensors", "directory", "old directory", "checkpoint", "early"])
def test_image_weights_give_the_features_of_the_original(model, tmp_path, form):
    swin = make_swin(model.config)
    source = str(write_image(swin.state_dict(), tmp_path, form))
    loaded = load_image_weights(model, source)
    pixels = torch.rand(2, 1, 56, 56)
    with torch.inference_mode():
        found = model.image_encoder.backbone.forward_features(pixels)
        expected = swin.forward_features(pixels.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    encoder = list(model.image_encoder.backbone.parameters())
    assert (loaded.kind, loaded.source, loaded.absent) == ("image", source, ())
    assert loaded.loaded == len(encoder)
    assert loaded.parameters == sum(parameter.numel() for parameter in encoder)
    assert loaded.resized == ("patch_embed.proj.weight",)
    assert [name.split("head.")[1].removeprefix("fc.") for name in loaded.ignored] == ["bias", "weight"]


def test_weights_of_another_model_of_this_stack_can_be_taken(model, tmp_path):
    torch.manual_seed(5)
    other = CxrModel(model.config)
    save_file(other.state_dict(), tmp_path / "model.safetensors")
    image = load_image_weights(model, str(tmp_path))
    text = load_text_weights(model, str(tmp_path))
    assert (image.resized, text.resized) == ((), ())
    assert "fusion.view" in image.ignored
    for name in ("image_encoder.backbone", "text_encoder.bert"):
        torch.testing.assert_close(
            model.get_submodule(name).state_dict(), other.get_submodule(name).state_dict(), rtol=0, atol=0
        )


def test_half_precision_weights_become_single(model, tmp_path):
    state = {name: value.half() for name, value in make_swin(model.config).state_dict().items()}
    load_image_weights(model, str(write_image(state, tmp_path, "safetensors")))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_tables_of_another_window_are_interpolated(small_config, tmp_path):
    model = CxrModel(replace(small_config, image_size=112, image_window=14))
    swin = make_swin(small_config)
    loaded = load_image_weights(model, str(write_image(swin.state_dict(), tmp_path, "safetensors")))
    tables = [
        name for name, _ in model.image_encoder.backbone.named_parameters() if name.endswith("bias_table")
    ]
    assert loaded.resized == (*sorted(tables), "patch_embed.proj.weight")
    small = swin.layers[0].blocks[0].attn.relative_position_bias_table.reshape(13, 13, 2)
    large = (
        model.image_encoder.backbone.layers[0].blocks[0].attn.relative_position_bias_table.reshape(27, 27, 2)
    )
    torch.testing.assert_close(large[13, 13], small[6, 6])  # no distance stays none
    assert abs(large.mean() - small.mean()) < 0.02


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embed_dim": 32}, ["patch_embed.proj.weight", "(32, 3, 4, 4)", "(16, 1, 4, 4)"]),
        ({"patch_size": 2, "img_size": 28}, ["patch_embed.proj.weight", "(16, 3, 2, 2)", "(16, 1, 4, 4)"]),
        ({"num_heads": (4, 2)}, ["relative_position_bias_table", "(169, 4)", "(169, 2)"]),
        ({"depths": (1, 1)}, ["lack 13 of", "layers.0.blocks.1."]),
        ({"depths": (2, 2)}, ["layers.1.blocks.1.", "no layer"]),
    ],
)
def test_weights_of_another_swin_are_refused_and_change_nothing(
    model, tmp_path, check_sentence, changes, words
):
    source = write_image(make_swin(model.config, **changes).state_dict(), tmp_path, "safetensors")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError) as info:
        load_image_weights(model, str(source))
    check_sentence(info)
    for word in (*words, str(source)):
        assert word in str(info.value)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_weights_for_five_channels_are_refused(model, tmp_path):
    source = write_image(make_swin(model.config, in_chans=5).state_dict(), tmp_path, "safetensors")
    with pytest.raises(ConfigError, match=r"\(16, 5, 4, 4\)"):
        load_image_weights(model, str(source))


def test_a_conv_stem_takes_no_pretrained_weights(small_config, tmp_path):
    with pytest.raises(ConfigError, match='image_stem "patch"'):
        load_image_weights(CxrModel(replace(small_config, image_stem="conv")), str(tmp_path))


class Trap:
    """Pickled, it creates a file as soon as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("load", [load_image_weights, load_text_weights])
@pytest.mark.parametrize("form", ["text", "cut", "trap", "plain pickle", "number", "others"])
def test_unreadable_weights_are_refused(model, tmp_path, check_sentence, load, form):
    path = tmp_path / ("weights.safetensors" if form == "cut" else "weights.pth")
    trap = Trap(tmp_path / "sprung")
    if form == "text":
        path.write_text("4711")
    elif form == "cut":
        save_file(make_swin(model.config).state_dict(), path)
        path.write_bytes(path.read_bytes()[:-100])
    elif form == "plain pickle":
        path.write_bytes(pickle.dumps({"state_dict": trap}, protocol=2))
    else:
        torch.save(
            {"trap": {"a": trap}, "number": 4711, "others": {"other.weight": torch.zeros(2)}}[form], path
        )
    with pytest.raises(ConfigError) as info:
        load(model, str(path))
    check_sentence(info)
    assert not (tmp_path / "sprung").exists()


def test_a_directory_without_weights_is_named(model, tmp_path):
    with pytest.raises(ConfigError, match=r"no model.safetensors or pytorch_model.bin"):
        load_image_weights(model, str(tmp_path))


def test_what_was_loaded_is_said_in_one_line():
    loaded = LoadedWeights("image", "swin.pth", 3, 1_234_567, ignored=("a", "b", "c", "d"), resized=("e",))
    assert loaded.describe() == (
        "image weights from swin.pth: 3 tensors, 1,234,567 parameters; 4 ignored (a, b, c, ...); 1 resized (e)"
    )
