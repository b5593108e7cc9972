"""Whether the model uses what a map marks: deletion and insertion, infidelity and sensitivity.

Deletion and insertion: Petsiuk et al. 2018, RISE, arXiv:1806.07421. Infidelity and sensitivity: Yeh et al. 2019,
arXiv:1901.09392, as Captum computes them. What is taken away gets the mean grey of the radiograph.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor

from training.evaluation.maps.controls import GRID
from training.evaluation.maps.subject import Array, MakeMap, Map, Subject

STEPS: Final = 16  # parts in which the pixels are taken away or put back
TAKEN: Final = 0.2  # probability that a square is taken away for infidelity
DRAWN: Final = 32  # pictures for infidelity
RADIUS: Final = 2.55  # 1 % of the grey levels: the largest change for sensitivity
CHANGED: Final = 3  # changed pictures for sensitivity
METRICS: Final = {"deletion": "deletion", "insertion": "insertion"}


def measure_curves(compute: Callable[[Tensor], Tensor], subject: Subject, shown: Array) -> dict[str, float]:
    """Return the mean logits of a deletion and of an insertion.

    The pixels of the radiograph are taken away, or put back onto grey, in `STEPS` equal parts, the strongest first.
    A map is good if the logit falls early (low deletion) or rises early (high insertion).

    Args:
        compute: Pixels (B, 1, S, S), 0 to 255 -> the logits (B,) of the finding.
        subject: The finding.
        shown: (S, S), signed or not.

    Returns:
        "deletion" and "insertion", the areas under the curves over shares of the pixels from 0 to 1, in logits.
    """
    pixels = subject.inputs.pixels
    inside = subject.draw_frame()
    ranked = np.flatnonzero(inside.ravel())
    ranked = ranked[np.argsort(-shown.ravel()[ranked], kind="stable")]
    steps = torch.full(inside.shape, float(STEPS + 1)).ravel()  # the step at which a pixel is taken away
    steps[torch.from_numpy(ranked)] = torch.from_numpy(
        np.arange(len(ranked)) * STEPS // max(len(ranked), 1) + 1.0
    ).float()
    steps = steps.reshape(1, 1, *inside.shape).to(pixels.device)
    grey = torch.full_like(pixels, float(pixels[..., torch.from_numpy(inside).to(pixels.device)].mean()))
    done = torch.arange(STEPS + 1, device=pixels.device).reshape(-1, 1, 1, 1)
    is_gone = steps <= done  # (STEPS + 1, 1, S, S)
    is_real = steps <= STEPS
    with torch.no_grad():
        deleted = compute(torch.where(is_gone, grey, pixels))
        inserted = compute(torch.where(is_gone | ~is_real, pixels, grey))
    return {"deletion": _area(deleted), "insertion": _area(inserted)}


def _area(curve: Tensor) -> float:
    return float(torch.trapezoid(curve.double(), dx=1 / STEPS))


def measure_infidelity(compute: Callable[[Tensor], Tensor], subject: Subject, found: Map) -> float:
    """Return how badly a map predicts the change of the logit when random squares are taken away.

    The squares are patches of `controls.GRID` x `controls.GRID`; each is taken away with probability `TAKEN`. The map
    has its best scale. The squared error is given as a share of that of a map of zeros, which is 1; 0 is perfect.
    """
    pixels = subject.inputs.pixels
    size = pixels.shape[-1]
    values = torch.from_numpy(_enlarge(found.values, size))[None, None].to(pixels.device)
    inside = torch.from_numpy(subject.draw_frame()).to(pixels.device)
    grey = pixels[..., inside].mean()
    answers: list[Tensor] = []

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        drawn = (torch.rand(len(inputs), 1, GRID, GRID) < TAKEN).float()
        gone = torch.nn.functional.interpolate(drawn, size=(size, size), mode="nearest").to(inputs.device)
        return gone, torch.where((gone > 0) & inside, grey, inputs)

    def record(inputs: Tensor) -> Tensor:
        answers.append(compute(inputs))
        return answers[-1]

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        error = float(infidelity(record, perturb, pixels, values, n_perturb_samples=DRAWN, normalize=True)[0])
    changed, whole = answers  # in the order in which Captum asks
    zeros = float(((whole - changed) ** 2).mean())
    return min(error / zeros, 1.0) if zeros > 0 and np.isfinite(error) else 1.0


def measure_sensitivity(model: Any, subject: Subject, make_map: MakeMap, key: str) -> float:
    """Return the largest relative change of a map when each pixel changes by at most 1 % of the grey levels."""
    inputs: Any = subject.inputs

    def explain(inputs_of_captum: tuple[Tensor, ...], **_: Any) -> Tensor:
        [pixels] = inputs_of_captum
        values = [
            make_map(model, inputs._replace(pixels=one[None]), subject.label, key).values for one in pixels
        ]
        return torch.from_numpy(np.stack(values)[:, None])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = sensitivity_max(explain, inputs.pixels, perturb_radius=RADIUS, n_perturb_samples=CHANGED)
    return float(found[0])


def _enlarge(values: Array, size: int) -> Array:
    side = size // len(values)
    return np.kron(values, np.ones((side, side), np.float32)) / side**2 if side > 1 else values
