"""Load pretrained weights into the two encoders, and freeze encoders.

A source is a weight file (safetensors, or a PyTorch state dict of which only tensors are read), a directory in the
layout of the Hugging Face hub, or a hub id. Nothing in a source is executed.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table_simple
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from contract.errors import ConfigError
from training.config.settings import SWIN, TrainConfig, WeightsConfig
from training.config.toml_file import change_settings
from training.model.model import CxrModel
from training.model.timm_names import use_timm_names
from training.model.weight_files import find_file, read_tensors

_TABLE: Final = "relative_position_bias_table"
_POSITIONS: Final = "pos_embed"
_COMPUTED: Final = (
    "relative_position_index",
    "relative_coords_table",
    "attn_mask",
    "position_ids",
    "token_type_ids",
)
_LAYER: Final = re.compile(r"(layers|stages|blocks|encoder\.layer)\.\d+\.")

_MODULES: Final = {"image": "backbone", "text": "bert"}  # an encoder's last name inside a model
_TITLES: Final = {
    "image": "image weights in the names of timm or of transformers",
    "text": "BERT weights in transformers' names",
}
_BERTS: Final = ("bert", "cxr-bert")  # the second is a BERT with a head of its own
_WORDS: Final = "embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class LoadedWeights:
    """The tensors that were loaded from a source, and the others.

    Attributes:
        kind: "image" or "text".
        source: File, directory or hub id.
        loaded: Number of loaded tensors.
        parameters: Number of values in them.
        absent: Buffers of the encoder that the file does not have.
        ignored: Tensors of the file that the encoder does not have, by their names in the file.
        resized: Tensors that were summed over colours or interpolated.
    """

    kind: str
    source: str
    loaded: int
    parameters: int
    absent: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return a description in one line."""
        text = (
            f"{self.kind} weights from {self.source}: {self.loaded} tensors, {self.parameters:,} parameters"
        )
        for title, names in (
            ("absent", self.absent),
            ("ignored", self.ignored),
            ("resized", self.resized),
        ):
            if names:
                more = ", ..." if len(names) > 3 else ""
                text += f"; {len(names)} {title} ({', '.join(names[:3])}{more})"
        return text


def adopt_text_model(config: TrainConfig) -> TrainConfig:
    """Return the config with the text encoder's sizes from `weights.text`, if that is set.

    Raises:
        ConfigError: The weights do not exist, are no BERT, or are a BERT that computes differently from the text
        encoder
            or reads fewer tokens than `data.max_length`.
    """
    source = config.weights.text
    if source is None:
        return config
    from transformers import BertConfig

    path = find_file("text", source, ("config.json",))
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        bert = BertConfig.from_dict(values)
    except Exception as error:  # transformers 5 has errors of its own for values of another type
        raise ConfigError(f"The config.json of the text weights {source} cannot be read.") from error
    if values.get("model_type") not in _BERTS:
        raise ConfigError(
            f"The text weights {source} have model_type {values.get('model_type')}; this model reads a BERT "
            f"({', '.join(_BERTS)})."
        )
    expected = {"hidden_act": "gelu", "position_embedding_type": "absolute", "layer_norm_eps": 1e-12}
    for name, value in expected.items():
        given = values.get(name, value)
        if given != value:
            raise ConfigError(f"The text weights {source} have {name} {given}; this model reads {value}.")
    sizes = {
        "vocabulary_size": bert.vocab_size,
        "text_width": bert.hidden_size,
        "text_layers": bert.num_hidden_layers,
        "text_heads": bert.num_attention_heads,
        "text_feedforward": bert.intermediate_size,
        "text_positions": bert.max_position_embeddings,
    }
    model = change_settings(config.model, sizes, "model")
    adopted = replace(config, model=model)
    adopted.check()
    return adopted


def load_image_weights(model: CxrModel, source: str) -> LoadedWeights:
    """Load pretrained weights into the image encoder. Names are those of timm, transformers or Swin's first release.

    Three kinds of tensors may have another shape:

    - The patch projection of RGB images is summed over the colours. The result is the same as for a grey image that is
      repeated in three channels.
    - A table of relative position biases of another window is interpolated (bicubic), as the authors of Swin do before
      they fine-tune on larger windows.
    - The positions of a ViT for images of another size are interpolated too.

    Args:
        model: Changed in place, unless an error is raised.
        source: A weight file, a directory or a hub id such as "timm/swin_tiny_patch4_window7_224.ms_in1k" ("timm/"
            may be left out).

    Raises:
        ConfigError: The weights do not exist or cannot be read, there is no network, or the architecture is another
            one. The message names a tensor and both shapes.
    """
    if model.config.image_backbone == SWIN and model.config.image_stem != "patch":
        raise ConfigError(
            'Pretrained Swin weights need model.image_stem "patch", as the configs tiny and base.'
        )
    return _load("image", model, source)


def load_text_weights(model: CxrModel, source: str) -> LoadedWeights:
    """Load pretrained BERT weights into the text encoder.

    Args:
        model: Model of a config from `adopt_text_model`; changed in place, unless an error is raised.
        source: A weight file, a directory or a hub id such as "emilyalsentzer/Bio_ClinicalBERT".

    Raises:
        ConfigError: See `load_image_weights`; here no tensor may have another shape.
    """
    return _load("text", model, source)


def save_text_tokenizer(source: str, path: Path) -> None:
    """Write the tokenizer of text weights as one tokenizer.json.

    A tokenizer.json beside the weights is used without padding and truncation. With only a vocab.txt, BERT's tokenizer
    is made from it.

    Raises:
        ConfigError: There is no tokenizer, or it cannot be read or has no word pieces.
    """
    tokenizer_path = find_file("text", source, ("tokenizer.json", "vocab.txt"))
    try:
        state = _read_tokenizer(source, tokenizer_path)
        kind = state["model"]["type"]
    except Exception as error:  # a damaged tokenizer.json raises a bare Exception
        raise ConfigError(f"The tokenizer of the text weights {source} cannot be read.") from error
    if kind != "WordPiece":
        raise ConfigError(
            f"The tokenizer of the text weights {source} is a {kind}; this model reads word pieces."
        )
    state |= {"padding": None, "truncation": None}
    path.write_text(json.dumps(state), encoding="utf-8")


def _read_tokenizer(source: str, path: Path) -> dict[str, Any]:
    if path.name == "tokenizer.json":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
    else:
        from transformers import BertTokenizerFast

        with contextlib.suppress(ConfigError):  # from_pretrained reads the letter case from it, if it exists
            find_file("text", source, ("tokenizer_config.json",))
        tokenizer = BertTokenizerFast.from_pretrained(str(path.parent)).backend_tokenizer
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    return state


def freeze_encoders(model: nn.Module, weights: WeightsConfig) -> None:
    """Exclude the encoders in `weights.freeze` from training: the image backbone, the BERT, or both.

    Their parameters get no gradients, so no activations are stored for them. The new projections and positions beside
    them stay trainable. The running statistics of BatchNorm (of a conv stem), dropout and stochastic depth do not
    depend on `requires_grad` but on the training mode. So call `set_training_mode` at the start of every epoch. It
    keeps frozen encoders in evaluation mode, and an image always has the same features.

    Args:
        model: The model or a wrapper around it; changed in place.
        weights: The section `weights` of a config.
    """
    for kind in weights.freeze:
        _get_encoder(model, kind).requires_grad_(False)


def set_training_mode(model: nn.Module, frozen: Iterable[str]) -> None:
    """Put a model into training mode, except its frozen encoders ("image", "text"). Use this, not `model.train()`."""
    model.train()
    for kind in frozen:
        _get_encoder(model, kind).eval()


def enable_checkpointing(model: nn.Module, frozen: Iterable[str] = ()) -> None:
    """Store only the input of each block and layer of the encoders. The backward pass computes the rest again.

    Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174. Gradients stay the same, also
    with dropout, because the state of the random generator is stored. A conv stem is not recomputed, because its
    BatchNorm would count every batch twice. The layers of BERT are wrapped here because `TextEncoder` runs them itself,
    and older versions of transformers checkpoint only in their own loop.

    Args:
        model: Changed in place, before it is compiled or made parallel. Names of parameters stay.
        frozen: Encoders ("image", "text") to leave out. A frozen encoder stores no activations anyway.

    Raises:
        ConfigError: The image backbone does not support this.
    """
    if "image" not in frozen:
        _checkpoint_backbone(_get_encoder(model, "image"))
    for layer in _get_encoder(model, "text").encoder.layer if "text" not in frozen else ():
        if "forward" not in vars(layer):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def _checkpoint_backbone(backbone: Any) -> None:
    try:
        backbone.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:  # timm asserts that it can
        raise ConfigError(
            f"timm's {type(backbone).__name__} cannot compute its activations again: set weights.checkpointing to "
            "false."
        ) from error


def _get_encoder(model: nn.Module, kind: str) -> Any:
    """Return the backbone ("image") or BERT ("text") inside a model, wrapped or not."""
    module_name = _MODULES[kind]
    return next(module for name, module in model.named_modules() if name.split(".")[-1] == module_name)


def _load(kind: str, model: nn.Module, source: str) -> LoadedWeights:
    encoder = _get_encoder(model, kind)
    places = encoder.state_dict()
    projection = _find_projection(encoder) if kind == "image" else None
    read = read_tensors(kind, source)
    tensors, ignored = _match_names(
        kind, source, use_timm_names(read) if kind == "image" else read, places, projection or _WORDS
    )
    parameters = {name for name, _ in encoder.named_parameters()}
    absent = sorted(places.keys() - tensors.keys())
    missing = [name for name in absent if name in parameters]
    if missing:
        raise ConfigError(
            f"The {kind} weights {source} lack {len(missing)} of the encoder's {len(parameters)} tensors, "
            f"{missing[0]} among them: they are of another architecture than the config's model."
        )
    fitted = {
        name: _fit(encoder, name, tensors[name], places[name], projection)
        for name in places
        if name in tensors
    }
    for name, tensor in fitted.items():
        if tensor.shape != places[name].shape:
            given, expected = tuple(tensors[name].shape), tuple(places[name].shape)
            raise ConfigError(
                f"The {kind} weights {source} hold {name} of shape {given}, where the config's model has {expected}."
            )
    encoder.load_state_dict(fitted, strict=False)
    return LoadedWeights(
        kind,
        source,
        loaded=len(fitted),
        parameters=sum(tensor.numel() for tensor in fitted.values()),
        absent=tuple(absent),
        ignored=tuple(sorted(ignored)),
        resized=tuple(sorted(name for name in fitted if fitted[name] is not tensors[name])),
    )


def _match_names(
    kind: str, source: str, read: Mapping[str, Tensor], places: Mapping[str, Tensor], anchor: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of the encoder by its names, and the names of the other tensors in the file.

    Every such encoder has the tensor `anchor`. The text before its name is the prefix of all names.
    """
    prefixes = [name[: -len(anchor)] for name in read if name == anchor or name.endswith(f".{anchor}")]
    if len(prefixes) != 1:
        raise ConfigError(f"{source} holds {len(prefixes) or 'no'} {_TITLES[kind]}, where one set is needed.")
    [prefix] = prefixes
    early = any(name.startswith(f"{prefix}layers.0.downsample.") for name in read)
    tensors: dict[str, Tensor] = {}
    ignored: list[str] = []
    for name, tensor in read.items():
        own = _rename(name.removeprefix(prefix), early) if name.startswith(prefix) else ""
        if own in places:
            tensors[own] = tensor
        elif not own.endswith(_COMPUTED):
            ignored.append(name)
            if _LAYER.match(own):
                raise ConfigError(
                    f"The {kind} weights {source} hold {name}, for which the config's model has no layer: they are "
                    f"of another architecture."
                )
    return tensors, ignored


def _rename(name: str, early: bool) -> str:
    """Return the current name of a tensor. `early`: patches are merged at the end of a stage, not before the next."""
    if early:
        name = re.sub(
            r"^layers\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample.", name
        )
    # As in the first releases of BERT; bert-base-uncased still has them.
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _find_projection(encoder: nn.Module) -> str:
    """Return the name of the weight that reads the pixels."""
    return next(f"{name}.weight" for name, part in encoder.named_modules() if isinstance(part, nn.Conv2d))


def _fit(encoder: nn.Module, name: str, tensor: Tensor, place: Tensor, projection: str | None) -> Tensor:
    """Return a tensor in the shape of its target as `load_image_weights` describes it, else unchanged.

    `projection` is the name of the weight that reads the pixels.
    """
    if tensor.shape == place.shape:
        return tensor
    if name == projection and tensor.ndim == 4 and (tensor.shape[1], place.shape[1]) == (3, 1):
        return tensor.float().sum(dim=1, keepdim=True)
    square = tensor.ndim == 2 and math.isqrt(len(tensor)) ** 2 == len(tensor)
    if name.endswith(_TABLE) and square and tensor.shape[1] == place.shape[1]:
        window = encoder.get_submodule(name.removesuffix(f".{_TABLE}")).window_size
        return resize_rel_pos_bias_table_simple(tensor.float(), window, tuple(place.shape))
    if name == _POSITIONS and tensor.ndim == 3 and tensor.shape[2] == place.shape[2]:
        return _resample_positions(encoder, tensor, place)
    return tensor


def _resample_positions(encoder: nn.Module, positions: Tensor, place: Tensor) -> Tensor:
    """Return the positions (1, prefix + N, F) of a ViT for another grid; those of prefix tokens stay."""
    grid = encoder.patch_embed.grid_size
    prefix = place.shape[1] - grid[0] * grid[1]
    count = positions.shape[1] - prefix
    if count < 1 or math.isqrt(count) ** 2 != count:
        return positions
    return resample_abs_pos_embed(positions.float(), new_size=list(grid), num_prefix_tokens=prefix)
