"""Optimizers, the learning rate of every layer, and how rates run over the steps.

"adamw" is AdamW for everything. "muon" orthogonalises the updates of the weight matrices inside the model
(Jordan et al. 2024; scaled to AdamW's step as in Liu et al. 2025, Muon is Scalable for LLM Training,
arXiv:2502.16982) and leaves the rest to AdamW: from scratch on little data the Swin learns far faster by it.

Layer-wise rates, for pretrained encoders: what lies deep is general and should change little. Clark et al. 2020,
ELECTRA, arXiv:2003.10555 (for BERT); Bao et al. 2021, BEiT, arXiv:2106.08254 (for vision transformers).
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from torch import Tensor, nn, optim

from training.config.settings import OptimizerConfig, TrainConfig
from training.muon import make_muon

REST: Final = "rest"
_ENCODERS: Final = ("backbone", "bert")
_STARTS: Final = ("patch_embed.", "stem.", "cls_token", "reg_token", "pos_embed", "embeddings.")
_Depth = tuple[float, float]  # of a layer in its encoder, ordered from the input to the output
_DEEPEST: Final[_Depth] = (-1, 0)
_TOP: Final[_Depth] = (math.inf, 0)


class LayerRate(NamedTuple):
    """The peak learning rate of one layer; `name` is `REST` for everything outside the encoders."""

    name: str
    rate: float
    parameters: int


class _Layer(NamedTuple):
    encoder: str
    name: str
    depth: _Depth


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[optim.Optimizer]:
    """Return the optimizers that together update every trainable parameter of the model once.

    Vectors (norms, biases, single embeddings) are not decayed, nor what a part of the model names in its own
    `no_weight_decay` (timm's Swin: the tables of relative position biases). Frozen parameters are left out. Rates are
    those of `describe_rates`.

    Args:
        model: The model or a wrapper around it: encoders are found by the "backbone" and "bert" in parameters' names.
        config: Its section `optimizer` decides.
    """
    matrices = _find_matrices(model) if config.optimizer.name == "muon" else set()
    layers, undecayed = _find_layers(model), _find_undecayed(model)
    scales = _scale_layers(layers, config.optimizer)
    groups: dict[bool, dict[tuple[float, float], list[Tensor]]] = {True: {}, False: {}}
    for name, parameter in _list_trainable(model):
        rate = config.optimizer.learning_rate * scales[layers[name]]
        decayed = parameter.ndim > 1 and name not in undecayed
        decay = config.optimizer.weight_decay if decayed else 0.0
        groups[name in matrices].setdefault((rate, decay), []).append(parameter)
    made: list[optim.Optimizer] = []
    if groups[True]:
        made.append(make_muon(_list_groups(groups[True]), adjust_lr_fn="match_rms_adamw"))
    if groups[False]:
        made.append(optim.AdamW(_list_groups(groups[False])))
    return made


def make_average(model: nn.Module, decay: float) -> optim.swa_utils.AveragedModel:
    """Return an exponential moving average of a model; call `update_parameters` on it after every training step.

    Numbers are averaged, also running statistics. Whole numbers (positions, indices, counts) are copied: an average of
    two that are equal can be rounded down.
    """
    blend = optim.swa_utils.get_ema_multi_avg_fn(decay)

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        """Change tensors of one type in place."""
        if averaged[0].is_floating_point():
            blend(averaged, current, count)
            return
        for old, new in zip(averaged, current, strict=True):
            old.copy_(new)

    return optim.swa_utils.AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def describe_rates(model: nn.Module, config: TrainConfig) -> list[LayerRate]:
    """Return the peak learning rate of each trainable layer, each encoder from its input to its output, then the rest.

    A layer d layers below the top of its encoder learns at `learning_rate * encoder_rate * layer_decay ** d`; the
    rest, new in every run, at `learning_rate`. From the input on, the layers of an image backbone are what makes the
    patches (with tokens and positions beside them), each block (the first of a stage together with the downsampling
    before it) and the last norm; those of BERT are the embeddings and each layer. Of a backbone that names its blocks
    in another way all layers count as the last.
    """
    layers = _find_layers(model)
    scales = _scale_layers(layers, config.optimizer)
    sizes = dict.fromkeys(sorted(scales, key=_order), 0)
    for name, parameter in _list_trainable(model):
        sizes[layers[name]] += parameter.numel()
    return [
        LayerRate(layer.name, config.optimizer.learning_rate * scales[layer], size)
        for layer, size in sizes.items()
        if size
    ]


def make_schedules(
    optimizers: Sequence[optim.Optimizer], steps: int, warmup_share: float
) -> list[optim.lr_scheduler.LambdaLR]:
    """Return one schedule per optimizer; call `step` on each after every training step."""
    return [
        optim.lr_scheduler.LambdaLR(optimizer, lambda step: scale_rate(step, steps, warmup_share))
        for optimizer in optimizers
    ]


def scale_rate(step: int, steps: int, warmup_share: float) -> float:
    """Return the learning rate of a step relative to its peak: linear warm-up, then half a cosine."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _list_trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _find_layers(model: nn.Module) -> dict[str, _Layer]:
    """Return the layer of each parameter, by the parameter's name; frozen ones count as layers, too."""
    return {name: _find_layer(name) for name, _ in model.named_parameters()}


def _find_layer(name: str) -> _Layer:
    for encoder in _ENCODERS:
        _, found, inside = f".{name}".partition(f".{encoder}.")
        if not found:
            continue
        if block := re.match(r"(layers|stages)\.(\d+)\.(?:blocks\.(\d+)|downsample)\.", inside):
            stage, index = int(block[2]), int(block[3] or 0)
            return _Layer(encoder, f"{encoder}.{block[1]}.{stage}.blocks.{index}", (stage, index))
        if block := re.match(r"blocks\.(\d+)\.", inside):
            return _Layer(encoder, f"{encoder}.blocks.{block[1]}", (int(block[1]), 0))
        if layer := re.search(r"\blayer\.(\d+)\.", inside):
            return _Layer(encoder, f"{encoder}.encoder.layer.{layer[1]}", (int(layer[1]), 0))
        if inside.startswith(_STARTS):
            start = "embeddings" if encoder == "bert" else "patch_embed"
            return _Layer(encoder, f"{encoder}.{start}", _DEEPEST)
        return _Layer(encoder, f"{encoder}.norm", _TOP)
    return _Layer(REST, REST, _TOP)


def _order(layer: _Layer) -> tuple[int, _Depth]:
    return (*_ENCODERS, REST).index(layer.encoder), layer.depth


def _scale_layers(layers: Mapping[str, _Layer], config: OptimizerConfig) -> dict[_Layer, float]:
    """Return the learning rate of each layer, relative to that of the rest."""
    scales = {}
    for layer in set(layers.values()):
        above = {
            other.depth
            for other in layers.values()
            if other.encoder == layer.encoder and other.depth > layer.depth
        }
        scale = config.encoder_rate * config.layer_decay ** len(above)
        scales[layer] = 1.0 if layer.encoder == REST else scale
    return scales


def _find_matrices(model: nn.Module) -> set[str]:
    """Return the names of the weights of linear layers: embeddings, tables and queries are no matrices here."""
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _find_undecayed(model: nn.Module) -> set[str]:
    """Return the names of the parameters that a part of the model wants without weight decay."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    }


def _list_groups(groups: dict[tuple[float, float], list[Tensor]]) -> list[dict[str, object]]:
    return [
        {"params": tensors, "lr": rate, "weight_decay": decay} for (rate, decay), tensors in groups.items()
    ]
