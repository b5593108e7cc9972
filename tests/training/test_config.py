"""Settings: presets fit together, and a wrong setting is named."""

import pytest

from contract.errors import ConfigError
from training.config import PRESETS, ModelConfig, make_config, read_model_config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_together(name):
    config = make_config(name)
    config.check()
    assert config.model.sizes["N"] == config.model.grid**2


def test_base_has_the_sizes_of_the_published_model():
    model = make_config("base").model
    assert (model.image_size, model.image_patch, model.image_stem, model.image_window) == (224, 4, "patch", 7)
    assert (model.image_width, model.image_depths, model.image_heads) == (128, (2, 2, 18, 2), (4, 8, 16, 32))
    assert (model.text_width, model.text_layers, model.text_positions) == (768, 12, 512)
    assert (model.width, model.fusion_layers, model.fusion_heads, model.sizes["N"]) == (1024, 5, 8, 49)


BAD_SETTINGS = {
    "optimizer": {"optimizer": "sgd"},
    "epochs": {"epochs": 0},
    "text_dropout": {"text_dropout": 1.5},
    "impression_share": {"impression_share": -0.1},
    "max_length": {"max_length": 1000},
    "image_stem": {"model": {"image_stem": "linear"}},
    "image_size": {"model": {"image_size": 100}},
    "text_width": {"model": {"text_width": 130}},
    "ephocs": {"ephocs": 3},
    "imagesize": {"model": {"imagesize": 3}},
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_wrong_setting_is_named(name):
    with pytest.raises(ConfigError, match=name):
        make_config("demo", BAD_SETTINGS[name])


def test_an_unknown_preset_names_those_there_are():
    with pytest.raises(ConfigError, match="demo, reports, tiny, base"):
        make_config("huge")


def test_a_bundle_gives_back_its_model_config():
    stored = {**vars(ModelConfig()), "image_depths": [2, 2], "image_heads": [4, 8]}  # JSON knows no tuples
    assert read_model_config(stored) == ModelConfig()
