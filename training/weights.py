"""Pretrained weights: from a file or directory, or from the hub."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from contract.errors import ConfigError
from training.config import TrainConfig
from training.model import CxrModel
from training.swin import create_swin

logger = logging.getLogger(__name__)
_LOAD_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
)  # what timm and transformers raise, offline or not


def adopt_text_model(config: TrainConfig) -> TrainConfig:
    """Return the config with the text encoder's sizes taken from `text_weights`, where that is given."""
    if config.text_weights is None:
        return config
    from transformers import BertConfig

    source = config.text_weights
    try:
        found = BertConfig.from_pretrained(source)
    except _LOAD_ERRORS as error:
        raise _not_found("text", source) from error
    if getattr(found, "model_type", "bert") != "bert":
        raise ConfigError(
            f"Text weights {source} are of type {found.model_type}; this model reads BERT weights."
        )
    model = replace(
        config.model,
        vocabulary_size=found.vocab_size,
        text_width=found.hidden_size,
        text_layers=found.num_hidden_layers,
        text_heads=found.num_attention_heads,
        text_feedforward=found.intermediate_size,
        text_positions=found.max_position_embeddings,
    )
    return replace(config, model=model)


def load_image_weights(model: CxrModel, source: str) -> None:
    """Put pretrained Swin weights into the image encoder.

    Args:
        model: Changed in place.
        source: A weight file (safetensors or state dict), or a hub id such as
            "timm/swin_tiny_patch4_window7_224.ms_in1k". RGB weights are summed to one channel.

    Raises:
        ConfigError: Nothing there, no network, or weights of another architecture.
    """
    if model.config.image_stem != "patch":
        raise ConfigError('Pretrained Swin weights need the image_stem "patch": use the preset tiny or base.')
    overlay: dict[str, Any] = {
        "num_classes": 0,
        "input_size": (3, model.config.image_size, model.config.image_size),
    }
    if Path(source).exists():
        overlay |= {"file": source}
    else:
        name = source.removeprefix("hf-hub:").removeprefix("hf_hub:")
        overlay |= {"hf_hub_id": name if "/" in name else f"timm/{name}", "file": None, "url": None}
    try:
        swin = create_swin(model.config, pretrained=True, pretrained_cfg_overlay=overlay)
    except _LOAD_ERRORS as error:
        raise _not_found("image", source) from error
    model.image_encoder.swin.load_state_dict(swin.state_dict())


def load_text_weights(model: CxrModel, source: str) -> None:
    """Put pretrained BERT weights, a directory or a hub id, into the text encoder; raises ConfigError."""
    from transformers import BertModel

    try:
        bert = BertModel.from_pretrained(source, add_pooling_layer=False, attn_implementation="eager")
        model.text_encoder.bert.load_state_dict(bert.state_dict())
    except _LOAD_ERRORS as error:
        raise _not_found("text", source) from error


def save_text_tokenizer(source: str, path: Path) -> None:
    """Write the tokenizer that belongs to text weights as one tokenizer.json; raises ConfigError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True)
        state = json.loads(tokenizer.backend_tokenizer.to_str())
    except (*_LOAD_ERRORS, AttributeError) as error:
        raise _not_found("text", source) from error
    state |= {"padding": None, "truncation": None}
    path.write_text(json.dumps(state), encoding="utf-8")


def _not_found(kind: str, source: str) -> ConfigError:
    return ConfigError(
        f"The {kind} weights {source} could not be loaded: give a local path, or check the hub id, the "
        f"network and that the preset has the same architecture."
    )
