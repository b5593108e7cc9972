"""Optimizers, the learning rate of every layer, and learning rate schedules.

"adamw" is AdamW for everything. "muon" orthogonalises the updates of the weight matrices inside the model
(Jordan et al. 2024; scaled to AdamW's step as in Liu et al. 2025, Muon is Scalable for LLM Training,
arXiv:2502.16982) and uses AdamW for the rest. From scratch on little data, the Swin learns much faster with it.

Layer-wise rates are for pretrained encoders: layers near the input are general and should change little. Clark et al.
2020, ELECTRA, arXiv:2003.10555 (for BERT); Bao et al. 2021, BEiT, arXiv:2106.08254 (for vision transformers).
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
_Depth = tuple[float, float]  # position of a layer in its encoder, from the input to the output
_DEEPEST: Final[_Depth] = (-1, 0)
_TOP: Final[_Depth] = (math.inf, 0)


class LayerRate(NamedTuple):
    """The peak learning rate of one layer. `name` is `REST` for everything outside the encoders."""

    name: str
    rate: float
    parameters: int


class _Layer(NamedTuple):
    encoder: str
    name: str
    depth: _Depth


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[optim.Optimizer]:
    """Return the optimizers, which together update every trainable parameter of the model once.

    Vectors (norms, biases, single embeddings) have no weight decay, and neither have the parameters that a module lists
    in `no_weight_decay` (timm's Swin: the tables of relative position biases). Frozen parameters are left out. The
    rates are those of `describe_rates`.

    Args:
        model: The model or a wrapper around it. Encoders are found by "backbone" and "bert" in parameter names.
        config: The run's config; its section `optimizer` is used.
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
    optimizers: list[optim.Optimizer] = []
    if groups[True]:
        optimizers.append(make_muon(_list_groups(groups[True]), adjust_lr_fn="match_rms_adamw"))
    if groups[False]:
        optimizers.append(optim.AdamW(_list_groups(groups[False])))
    return optimizers


def make_average(model: nn.Module, decay: float) -> optim.swa_utils.AveragedModel:
    """Return an exponential moving average of a model. Call its `update_parameters` after every training step.

    Floating-point tensors are averaged, also running statistics. Integers (positions, indices, counts) are copied,
    because even the average of two equal integers can be rounded down.
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
    """Return the peak learning rate of each trainable layer: each encoder from its input to its output, then the rest.

    A layer that is d layers below the top of its encoder has the rate `learning_rate * encoder_rate * layer_decay **
    d`. All other parameters, which are new in every run, have `learning_rate`. The layers of an image backbone are
    the patch embedding (with tokens and positions), each block (the first block of a stage together with the
    downsampling before it) and the last norm. The layers of BERT are the embeddings and each layer. If a backbone
    uses other names for its blocks, all its layers count as the last one.
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
    """Return one schedule per optimizer. Call `step` on each after every training step."""
    return [
        optim.lr_scheduler.LambdaLR(optimizer, lambda step: scale_rate(step, steps, warmup_share))
        for optimizer in optimizers
    ]


def scale_rate(step: int, steps: int, warmup_share: float) -> float:
    """Return the learning rate of a step relative to the peak: linear warm-up, then half a cosine."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _list_trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _find_layers(model: nn.Module) -> dict[str, _Layer]:
    """Return parameter name -> layer. Frozen layers count too."""
    return {name: _find_layer(name) for name, _ in model.named_parameters()}


def _find_layer(name: str) -> _Layer:
    for encoder in _ENCODERS:
        _, encoder_found, inside = f".{name}".partition(f".{encoder}.")
        if not encoder_found:
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
    """Return the learning rate of each layer, relative to the rate outside the encoders."""
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
    """Return the names of the weights of linear layers. Embeddings, tables and queries do not count as matrices."""
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _find_undecayed(model: nn.Module) -> set[str]:
    """Return the names of the parameters that a module lists for no weight decay."""
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
