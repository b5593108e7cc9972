"""The image backbone that pretrained weights belong to, read from the config.json beside them.

A config.json of timm names the architecture. One of `transformers` states its sizes.
"""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from contract.errors import ConfigError
from training.config.settings import SWIN, TrainConfig
from training.config.toml_file import change_settings
from training.model.backbone import read_layout
from training.model.weight_files import find_file

_Values = Mapping[str, Any]
_READ_ERRORS: Final = (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, AttributeError)


def adopt_image_model(config: TrainConfig) -> TrainConfig:
    """Return the config with the backbone, its image size and grey values taken from `weights.image`.

    The sizes of a Swin, and a backbone that `model.image_backbone` names, stay as the config says. Weights for images
    of another size are then interpolated.

    Raises:
        ConfigError: This model cannot have the backbone of the weights, or its tokens form no square grid.
    """
    source = config.weights.image
    if source is None or config.model.image_backbone != SWIN:
        return _check_grid(config)
    values = _read_json(source, "config.json")
    try:
        settings = _read_backbone(source, values)
        if settings is None:
            return config
        settings |= _read_grey(source, values)
    except _READ_ERRORS as error:
        raise ConfigError(f"The config.json of the image weights {source} cannot be read.") from error
    adopted = replace(config, model=change_settings(config.model, settings, "model"))
    adopted.check()
    return _check_grid(adopted)


def _check_grid(config: TrainConfig) -> TrainConfig:
    """Build the backbone once. So an error in it shows before any image is read."""
    if read_layout(config.model).grid < 1:
        raise ConfigError(f"The backbone {config.model.image_backbone} makes no image tokens.")
    return config


def _read_backbone(source: str, values: _Values) -> dict[str, Any] | None:
    """Return settings of the section "model"; None for a Swin, or if the config.json does not name a backbone."""
    if "architecture" in values:
        name = str(values["architecture"])
        if name.startswith("swin_"):
            return None
        arguments = dict(values.get("model_args") or {})
        side = arguments.pop("img_size", values.get("pretrained_cfg", {}).get("input_size", [0])[-1])
        return _name_settings(name, side, arguments)
    kind = values.get("model_type")
    if kind in (None, "swin"):
        return None
    if kind not in _READERS:
        raise ConfigError(
            f"The image weights {source} have model_type {kind}; this model reads {', '.join(_READERS)} and swin, and "
            "timm's by their names."
        )
    expected = {"hidden_act": "gelu", "use_swiglu_ffn": False, "use_absolute_embeddings": False}
    for name, value in expected.items():
        if values.get(name, value) != value:
            raise ConfigError(
                f"The image weights {source} have {name} {values[name]}; this model reads {value}."
            )
    return _READERS[kind](values)


def _read_vit(values: _Values) -> dict[str, Any]:
    arguments = {"mlp_ratio": values["intermediate_size"] / values["hidden_size"]}
    if not values.get("qkv_bias", True):
        arguments["qkv_bias"] = False
    return _name_vit("vit_base_patch16_224", values, arguments)


def _read_dinov2(values: _Values) -> dict[str, Any]:
    return _name_vit("vit_base_patch14_dinov2", values, {"mlp_ratio": float(values.get("mlp_ratio", 4))})


def _read_dinov2_with_registers(values: _Values) -> dict[str, Any]:
    arguments = {
        "mlp_ratio": float(values.get("mlp_ratio", 4)),
        "reg_tokens": values.get("num_register_tokens", 4),
    }
    return _name_vit("vit_base_patch14_reg4_dinov2", values, arguments)


def _name_vit(name: str, values: _Values, arguments: _Values) -> dict[str, Any]:
    sizes = {
        "patch_size": values["patch_size"],
        "embed_dim": values["hidden_size"],
        "depth": values["num_hidden_layers"],
        "num_heads": values["num_attention_heads"],
    }
    return _name_settings(name, values["image_size"], {**sizes, **arguments})


def _read_swinv2(values: _Values) -> dict[str, Any]:
    names = ("patch_size", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio")
    arguments = {name: values[name] for name in names}
    arguments["pretrained_window_sizes"] = values.get("pretrained_window_sizes", [0] * len(values["depths"]))
    return _name_settings("swinv2_tiny_window8_256", values["image_size"], arguments)


def _read_convnext(values: _Values) -> dict[str, Any]:
    arguments = {
        "patch_size": values["patch_size"],
        "dims": values["hidden_sizes"],
        "depths": values["depths"],
    }
    return _name_settings("convnext_tiny", values.get("image_size", 224), arguments)


_READERS: Final[dict[str, Callable[[_Values], dict[str, Any]]]] = {
    "dinov2": _read_dinov2,
    "dinov2_with_registers": _read_dinov2_with_registers,
    "vit": _read_vit,
    "swinv2": _read_swinv2,
    "convnext": _read_convnext,
}


def _name_settings(name: str, side: Any, arguments: _Values) -> dict[str, Any]:
    if isinstance(side, list | tuple):
        if len(set(side)) != 1:
            raise ConfigError(
                f"The backbone {name} reads images of {side} pixels; this model reads square ones."
            )
        [side] = set(side)
    return {"image_backbone": name, "image_size": side, "image_arguments": dict(arguments)}


def _read_grey(source: str, values: _Values) -> dict[str, float]:
    """Return mean and standard deviation of 0..1 intensities, each averaged over the three channels."""
    stated = values.get("pretrained_cfg") or _read_json(source, "preprocessor_config.json")
    names = (("mean", "std"), ("image_mean", "image_std"))
    pairs = [(stated[mean], stated[std]) for mean, std in names if mean in stated and std in stated]
    if not pairs:
        return {}
    mean, std = (sum(channels) / len(channels) for channels in pairs[0])
    return {"pixel_mean": float(mean), "pixel_std": float(std)}


def _read_json(source: str, name: str) -> dict[str, Any]:
    """Return the content of a JSON file beside the weights; {} if there is no file.

    Raises:
        ConfigError: The file cannot be read, or is not a JSON object.
    """
    path: Path | None = None
    with contextlib.suppress(ConfigError):  # loading refuses weights that cannot be reached
        path = find_file("image", source, (name,))
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"The {name} of the image weights {source} cannot be read.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"The {name} of the image weights {source} must hold a JSON object.")
    return values
