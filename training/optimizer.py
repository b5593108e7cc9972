"""Optimizers and the learning rate over a run.

"adamw" is AdamW for everything. "muon" orthogonalises the updates of the weight matrices inside the model
(Jordan et al. 2024; scaled to AdamW's step as in Liu et al. 2025, Muon is Scalable for LLM Training,
arXiv:2502.16982) and leaves the rest to AdamW: from scratch on little data the Swin learns far faster by it.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn, optim

from training.config import TrainConfig

_ENCODERS = (".swin.", ".bert.")


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[optim.Optimizer]:
    """Return the optimizers that together update every parameter of the model once.

    Vectors (norms, biases) and single embeddings are not decayed; the encoders learn at `encoder_rate` times
    the rate of the rest.
    """
    matrices = _find_matrices(model) if config.optimizer == "muon" else set()
    groups: dict[bool, dict[tuple[float, float], list[Tensor]]] = {True: {}, False: {}}
    for name, parameter in model.named_parameters():
        slower = any(part in name for part in _ENCODERS)
        rate = config.learning_rate * (config.encoder_rate if slower else 1.0)
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups[name in matrices].setdefault((rate, decay), []).append(parameter)
    made: list[optim.Optimizer] = []
    if groups[True]:
        made.append(optim.Muon(_list_groups(groups[True]), adjust_lr_fn="match_rms_adamw"))
    if groups[False]:
        made.append(optim.AdamW(_list_groups(groups[False])))
    return made


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


def _find_matrices(model: nn.Module) -> set[str]:
    """Return the names of the weights of linear layers: embeddings, tables and queries are no matrices here."""
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _list_groups(groups: dict[tuple[float, float], list[Tensor]]) -> list[dict[str, object]]:
    return [
        {"params": tensors, "lr": rate, "weight_decay": decay} for (rate, decay), tensors in groups.items()
    ]
