"""Integrated Gradients of a class logit, or of a similarity, on pixels and word embeddings together.

Sundararajan et al. 2017, arXiv:1703.01365. With an image and a report, the integral follows one straight path through
both. So the attributions of pixels and words have the same unit, and their sum is the value minus the baseline value.

The path is the same for all findings of a case. So each point of it goes forward through the model once for all of
them, and back once for each.

The lexical part (`training.model.lexical`) adds a sum over n-grams to a logit. The share of each token in this sum is
exact and needs no integral. Its baseline is a text without n-grams.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.explain.baselines import BLACK
from client.explain.case import Inputs
from client.explain.network import Points, fuse_points, make_path_ends
from client.explanation import BaselineResult
from contract.errors import ConfigError

try:
    import torch
    from torch import Tensor

    from training.model.model import CxrModel
except (ModuleNotFoundError, ConfigError) as error:
    raise ConfigError("Explanations need the 'explain' extra: pip install 'cxr-serving[explain]'.") from error

Array = NDArray[np.float32]
Finish = Callable[[int], None]
CHUNK: Final = 8  # points of the path in one batch, which limits the memory
FIRST_STEPS: Final = 32
MOST_STEPS: Final = 512
TOLERANCE: Final = (
    0.01  # of |value - baseline value|; the convergence delta of an accurate integral is below it
)
LEAST_DELTA: Final = (
    1e-3  # in the unit of the value; a smaller delta is accurate however small the difference is
)
TEXT_BASELINE: Final = "a report of the same length whose every token is [PAD] between [CLS] and [SEP]"


class Attributions(NamedTuple):
    """Integrated Gradients of one value, in its unit: logits for the logit of a label.

    Those of several baselines are their mean, and `baseline_logit` is the mean, too.
    """

    pixels: Array | None  # (S, S)
    tokens: Array | None  # (L,); 0 on padding, [CLS] and [SEP], which the baseline has too
    logit: float
    baseline_logit: float
    steps: int
    baselines: tuple[BaselineResult, ...] = ()  # of the image

    @property
    def convergence_delta(self) -> float:
        """|sum of all attributions - (logit - baseline_logit)|, which is 0 for an exact integral."""
        parts = (part for part in (self.pixels, self.tokens) if part is not None)
        total = sum(float(part.sum(dtype=np.float64)) for part in parts)
        return abs(total - (self.logit - self.baseline_logit))

    @property
    def is_accurate(self) -> bool:
        """Whether the convergence delta is below the tolerance."""
        return self.convergence_delta <= max(TOLERANCE * abs(self.logit - self.baseline_logit), LEAST_DELTA)


def attribute(
    model: CxrModel,
    inputs: Inputs,
    index: int,
    *,
    steps: int | None = None,
    baselines: Sequence[str] = (BLACK,),
) -> Attributions:
    """Integrate the gradient of one logit from the baseline to the inputs; see `attribute_findings`."""
    return attribute_findings(model, inputs, [index], steps=steps, baselines=baselines)[0]


def attribute_findings(
    model: CxrModel,
    inputs: Inputs,
    indices: Sequence[int],
    *,
    steps: int | None = None,
    baselines: Sequence[str] = (BLACK,),
    finish: Finish | None = None,
) -> list[Attributions]:
    """Integrate the gradients of several logits from the baseline to the inputs.

    Args:
        model: The model, in evaluation mode.
        inputs: The case, on the device of the model.
        indices: Indices of the labels, 0 to K - 1.
        steps: Number of points of the integral (Gauss-Legendre). None: `FIRST_STEPS`, doubled for a label until its
            convergence delta is below the tolerance, at most `MOST_STEPS`.
        baselines: Keys of the baselines of the image, at least one; the result is the mean over them. A case without an
            image has one baseline.
        finish: Called with the number of labels whose integral from the last baseline has just been finished.

    Returns:
        The attributions of each label, in the order of `indices`.
    """

    def compute_logits(*points: Tensor) -> Tensor:
        return fuse_points(model, inputs, points).logits[:, list(indices)]  # (B, F)

    keys = list(baselines) if inputs.pixels is not None else [BLACK]
    runs = [
        _integrate_together(
            compute_logits,
            model,
            inputs,
            steps=steps,
            baseline=key,
            finish=finish if place == len(keys) - 1 else None,
        )
        for place, key in enumerate(keys)
    ]
    found = []
    for index, *own in zip(indices, *runs, strict=True):
        words, bias = _attribute_words(model, inputs, index)  # the same from every baseline of the image
        added = [_add_words(run, words, bias) for run in own]
        found.append(_average(keys, added, has_image=inputs.pixels is not None))
    return found


def _average(keys: Sequence[str], runs: Sequence[Attributions], *, has_image: bool) -> Attributions:
    """Return the mean over the baselines, and what each gave."""
    results = tuple(
        BaselineResult(key, run.baseline_logit, run.steps, run.convergence_delta)
        for key, run in zip(keys, runs, strict=True)
    )
    return Attributions(
        _average_arrays([run.pixels for run in runs]),
        _average_arrays([run.tokens for run in runs]),
        runs[0].logit,
        float(np.mean([run.baseline_logit for run in runs])),
        max(run.steps for run in runs),
        results if has_image else (),
    )


def _average_arrays(arrays: Sequence[Array | None]) -> Array | None:
    stated = [array for array in arrays if array is not None]
    return np.mean(stated, axis=0, dtype=np.float64).astype(np.float32) if stated else None


def _add_words(parts: Attributions, words: Array, bias: float) -> Attributions:
    """Add what the lexical part adds to the logit: (L,) for each token, and a number for a text without words."""
    if parts.tokens is None:
        return parts
    return parts._replace(
        tokens=parts.tokens + words,
        logit=parts.logit + float(words.sum(dtype=np.float64)) + bias,
        baseline_logit=parts.baseline_logit + bias,
    )


def integrate(
    compute: Callable[..., Tensor],
    model: CxrModel,
    inputs: Inputs,
    *,
    steps: int | None = None,
    baseline: str = BLACK,
) -> Attributions:
    """Integrate the gradient of any value of a case.

    Args:
        compute: Points -> (B,).
        model: The model, in evaluation mode.
        inputs: The case, on the device of the model.
        steps: As in `attribute`.
        baseline: Key of the baseline of the image.
    """

    def compute_one(*points: Tensor) -> Tensor:
        return compute(*points)[:, None]

    return _integrate_together(compute_one, model, inputs, steps=steps, baseline=baseline)[0]


def _integrate_together(
    compute: Callable[..., Tensor],
    model: CxrModel,
    inputs: Inputs,
    *,
    steps: int | None,
    baseline: str,
    finish: Finish | None = None,
) -> list[Attributions]:
    """Integrate the gradients of F values of a case. `compute` is points -> (B, F)."""
    ends = make_path_ends(model, inputs, baseline)
    with torch.no_grad():
        values, baseline_values = (compute(*end)[0].tolist() for end in ends)
    found: dict[int, Attributions] = {}
    waiting = list(range(len(values)))
    count = FIRST_STEPS if steps is None else steps
    while waiting:
        with torch.enable_grad():  # also for a caller that needs no gradients
            parts = _integrate_once(compute, *ends, waiting, count)
        for place, own in zip(waiting, parts, strict=True):
            found[place] = Attributions(
                *_read_parts(inputs, own), values[place], baseline_values[place], count
            )
        is_last = steps is not None or 2 * count > MOST_STEPS
        left = [] if is_last else [place for place in waiting if not found[place].is_accurate]
        if finish is not None:
            finish(len(waiting) - len(left))
        waiting, count = left, 2 * count
    return [found[place] for place in range(len(values))]


def _integrate_once(
    compute: Callable[..., Tensor], values: Points, baselines: Points, places: Sequence[int], steps: int
) -> list[Points]:
    """Return, for each of the values at `places`, the attributions of one case, in the shapes of the points."""
    alphas, shares = _find_rule(steps)
    spans = [value - baseline for value, baseline in zip(values, baselines, strict=True)]
    sums = [[torch.zeros_like(span) for span in spans] for _ in places]
    for start in range(0, steps, CHUNK):
        part = slice(start, start + CHUNK)
        points = tuple(
            (baseline + _align(alphas[part], span) * span).requires_grad_()
            for baseline, span in zip(baselines, spans, strict=True)
        )
        outputs = compute(*points)  # (B, F)
        for number, place in enumerate(places, start=1):
            is_last = number == len(places)
            found = torch.autograd.grad(outputs[:, place].sum(), points, retain_graph=not is_last)
            sums[number - 1] = [
                total + (_align(shares[part], gradients) * gradients).sum(0, keepdim=True)
                for total, gradients in zip(sums[number - 1], found, strict=True)
            ]
    return [_multiply_by_path(own, spans) for own in sums]


def _find_rule(steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the points of the Gauss-Legendre rule, from 0 to 1, and their weights, which sum to 1."""
    find: Any = np.polynomial.legendre.leggauss  # numpy 1.26 states no types
    nodes, weights = find(steps)  # from -1 to 1
    return (nodes + 1) / 2, weights / 2


def _multiply_by_path(gradients: Sequence[Tensor], spans: Sequence[Tensor]) -> Points:
    """Return attributions: the mean gradients along the path, times the way from the baseline to the case."""
    return tuple(gradient * span for gradient, span in zip(gradients, spans, strict=True))


def _align(numbers: NDArray[np.float64], like: Tensor) -> Tensor:
    """Return numbers (B,) as a tensor (B, 1, ...) that multiplies a batch."""
    return torch.from_numpy(numbers).to(like).reshape(-1, *[1] * (like.ndim - 1))


def _read_parts(inputs: Inputs, parts: Points) -> tuple[Array | None, Array | None]:
    """Return the attributions of pixels (S, S) and tokens (L,)."""
    found = iter(parts)
    pixels = None if inputs.pixels is None else next(found)[0, 0].cpu().numpy().astype(np.float32)
    if inputs.input_ids is None:
        return pixels, None
    return pixels, next(found)[0].sum(-1).cpu().numpy().astype(np.float32)


def _attribute_words(model: CxrModel, inputs: Inputs, index: int) -> tuple[Array, float]:
    """Return what the lexical part adds to a logit: (L,) for each token, and a number for a text without words."""
    lexical = model.fusion.lexical
    if lexical is None or inputs.input_ids is None:
        return np.zeros((), np.float32), 0.0
    with torch.no_grad():
        added = lexical.attribute(inputs.input_ids, inputs.attention_mask)[0, :, index]  # (L,)
        bias = lexical.find_bias(inputs.input_ids)[0, index]
    return added.cpu().numpy().astype(np.float32), float(bias)
