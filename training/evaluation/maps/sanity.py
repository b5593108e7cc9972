"""Whether a map depends on what it must depend on, and on nothing else.

Cascading randomisation: Adebayo et al. 2018, Sanity Checks for Saliency Maps, arXiv:1810.03292.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from training.evaluation.maps.agreement import correlate
from training.evaluation.maps.ssim import compare_structure
from training.evaluation.maps.subject import Array, MakeMap, Subject

# The limits were set before any map was measured.
MOST_SIMILAR: Final = 0.5  # mean SSIM of the map and that of a model with random weights
MOST_ALIKE: Final = 0.95  # mean correlation of the maps of two findings of one case
MOST_CHANGE: Final = 0.02  # largest relative change of a map by padding or by storing the image inverted
MOST_MISSING: Final = 0.01  # median share of the logit difference that a complete method misses


def list_layers(model: Any) -> list[tuple[str, list[nn.Module]]]:
    """Return the parts of the model from the logits down to the pixels, by name."""
    encoder = model.image_encoder
    stages = [child for child in encoder.backbone.children() if next(child.parameters(), None) is not None]
    parts: list[nn.Module] = []
    for child in stages:  # the stages of a Swin or the blocks of a ViT stand in one container
        inner = list(child.children()) if isinstance(child, nn.Sequential | nn.ModuleList) else []
        parts += inner or [child]
    named = [("pooling", [model.fusion.pooling])]
    if len(model.fusion.blocks):
        named.append(("fusion", [model.fusion.blocks, model.fusion.norm]))
    named.append(("projection", [encoder.project]))
    return named + [
        (f"encoder {number}", [part]) for number, part in reversed(list(enumerate(parts, start=1)))
    ]


def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Replace the weights of a module by random ones of the same spread; each parameter keeps mean and deviation."""
    with torch.no_grad():
        for parameter in module.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            spread = float(parameter.std()) if parameter.numel() > 1 else float(parameter.abs())
            parameter.copy_((values * max(spread, 1e-3) + float(parameter.mean())).to(parameter.device))


def cascade(
    model: Any, subjects: Sequence[Subject], make_map: MakeMap, key: str, *, seed: int = 0
) -> tuple[list[str], Array]:
    """Randomise a copy of the model from the top to the bottom and compare the maps with those of the model.

    Args:
        model: The model; it stays as it is.
        subjects: M findings.
        make_map: Makes the maps.
        key: The method.
        seed: Seed of the weights.

    Returns:
        The names of the P parts in their order, and the SSIM (M, P) after each part.
    """
    broken = deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    before = [make_map(model, one.inputs, one.label, key).shown for one in subjects]
    names, rows = [], []
    for name, modules in list_layers(broken):
        for module in modules:
            randomise(module, generator)
        after = [make_map(broken, one.inputs, one.label, key).shown for one in subjects]
        names.append(name)
        pairs = zip(subjects, before, after, strict=True)
        rows.append([compare_structure(one, two, subject.frame) for subject, one, two in pairs])
    return names, np.array(rows, np.float32).T


def compare_findings(maps: Sequence[Array]) -> float | None:
    """Return the mean correlation of the maps (S, S) of different findings of one case; None for fewer than two."""
    flat = [values.ravel().astype(np.float64) for values in maps]
    pairs = [correlate(flat[one], flat[two]) for one in range(len(flat)) for two in range(one + 1, len(flat))]
    return float(np.mean(pairs)) if pairs else None


def compare_inputs(model: Any, subject: Subject, make_map: MakeMap, key: str, other: Any) -> float:
    """Return the relative change of a map when the same case is given in another form.

    Args:
        model: The model.
        subject: The finding.
        make_map: Makes the maps.
        key: The method.
        other: The case in the other form.

    Returns:
        Largest absolute change of the values, as a share of the largest value.
    """
    first = make_map(model, subject.inputs, subject.label, key).values
    second = make_map(model, other, subject.label, key).values
    return float(np.abs(first - second).max()) / max(float(np.abs(first).max()), 1e-12)
