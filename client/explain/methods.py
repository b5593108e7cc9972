"""The registry of the methods: what each needs, what it costs, and how its map is made."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.explain.attention import compute_attention, compute_rollout, find_rollout_obstacle
from client.explain.cam import compute_grad_cam
from client.explain.case import Inputs
from client.explain.gradients import attribute
from client.explain.network import Probe
from client.explain.perturbation import compute_occlusion, compute_shapley, fill_grey
from client.explanation import ImageMap
from contract.errors import ConfigError

try:
    import torch

    from training.model.model import CxrModel
except (ModuleNotFoundError, ConfigError) as error:
    raise ConfigError("Explanations need the 'explain' extra: pip install 'cxr-serving[explain]'.") from error

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        key: Name on the command line.
        title: Display name.
        needs: What it needs of the model.
        cost: Passes through the model for one map.
        signed: Whether a value below 0 speaks against the finding. Other maps have no sign.
        unit: Unit of the values.
        compute: Model, case with an image, label, steps of the integral (None: as many as needed; other methods ignore
            it) -> the map (S, S) or (G, G), and the convergence delta as a share of the difference of the logits (None
            where the method promises no sum).
        is_slow: Whether it is the reference that takes many times as long as the others.
    """

    key: str
    title: str
    needs: str
    cost: str
    signed: bool
    unit: str
    compute: Callable[[CxrModel, Inputs, int, int | None], tuple[Array, float | None]]
    is_slow: bool = False


def _run_gradients(
    model: CxrModel, inputs: Inputs, index: int, steps: int | None
) -> tuple[Array, float | None]:
    parts = attribute(model, inputs, index, steps=steps)
    if parts.pixels is None:
        raise ConfigError("A map needs an image, and the case has none.")
    difference = abs(parts.logit - parts.baseline_logit)
    return parts.pixels, parts.convergence_delta / max(difference, 1e-6)


def _run_probe(compute: Callable[[Probe], Array]) -> Callable[..., tuple[Array, float | None]]:
    def run(model: CxrModel, inputs: Inputs, index: int, _: int | None) -> tuple[Array, float | None]:
        return compute(Probe(model, inputs, index)), None

    return run


def _run_shapley(model: CxrModel, inputs: Inputs, index: int, _: int | None) -> tuple[Array, float | None]:
    probe = Probe(model, inputs, index)
    found = compute_shapley(probe)
    with torch.no_grad():
        difference = float(probe(probe.pixels) - probe(fill_grey(probe)))
    return found, abs(float(found.sum(dtype=np.float64)) - difference) / max(abs(difference), 1e-6)


# In the order in which they are preferred as the map of a bundle, if they pass its checks.
METHODS: Final[dict[str, Method]] = {
    method.key: method
    for method in (
        Method(
            "integrated_gradients",
            "Integrated Gradients",
            "gradients",
            "32 to 512 passes there and back",
            True,
            "logits",
            _run_gradients,
        ),
        Method(
            "grad_cam",
            "Grad-CAM",
            "gradients",
            "1 pass there and back",
            False,
            "logits",
            _run_probe(compute_grad_cam),
        ),
        Method(
            "occlusion",
            "Occlusion",
            "passes only",
            "4 passes for each patch",
            True,
            "logits",
            _run_probe(compute_occlusion),
        ),
        Method(
            "attention",
            "Attention of the label",
            "attention of the fusion",
            "1 pass",
            False,
            "share of the attention",
            _run_probe(compute_attention),
        ),
        Method(
            "rollout",
            "Attention rollout",
            "attention of the image encoder",
            "1 pass",
            False,
            "share of the attention",
            _run_probe(compute_rollout),
        ),
        Method(
            "shapley",
            "Shapley values",
            "passes only",
            "12 passes for each patch",
            True,
            "logits",
            _run_shapley,
            is_slow=True,
        ),
    )
}


def make_map(model: CxrModel, inputs: Inputs, index: int, key: str, *, steps: int | None = None) -> ImageMap:
    """Make the map of one method for one label of one case.

    Args:
        model: The model, in evaluation mode.
        inputs: A case with an image, on the device of the model.
        index: Index of the label, 0 to K - 1.
        key: Key of the method, as in `METHODS`.
        steps: Number of points of the integral of Integrated Gradients. None: as many as needed.

    Raises:
        ConfigError: The method does not exist, or the model has not what it needs.
    """
    method = require_method(key)
    started = time.perf_counter()
    values, delta = method.compute(model, inputs, index, steps)
    seconds = time.perf_counter() - started
    return ImageMap(method.key, method.title, values, method.signed, method.unit, seconds, delta)


def require_method(key: str) -> Method:
    """Return a method. Raise ConfigError if there is none of this key."""
    if key not in METHODS:
        raise ConfigError(f"There is no method {key!r}. Choose one of {', '.join(METHODS)}.")
    return METHODS[key]


def find_obstacle(model: CxrModel, key: str) -> str:
    """Return why a model cannot give the map of a method; "" if it can."""
    return find_rollout_obstacle(model) if key == "rollout" else ""
