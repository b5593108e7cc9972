"""Turn cases into inputs of a served model: raw files, or tensors made by the server's own first steps."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError
from contract.tensors import ATTENTION_MASK, IMAGE_BYTES, IMAGE_TOKENS, INPUT_IDS, PIXELS, REPORT, TEXT_TOKENS

Arrays = dict[str, NDArray[Any]]
Ask = Callable[[str, Mapping[str, NDArray[Any]], Sequence[str]], Arrays]  # served model, inputs, outputs

_TEXT: Final = (INPUT_IDS.name, ATTENTION_MASK.name)
# The server's preprocessing steps: model -> (inputs, outputs). Preprocessing exists only there.
_STEPS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "preprocess_image": ((IMAGE_BYTES.name,), (PIXELS.name,)),
    "preprocess_text": ((REPORT.name,), _TEXT),
    "image_encoder": ((PIXELS.name,), (IMAGE_TOKENS.name,)),
    "text_encoder": (_TEXT, (TEXT_TOKENS.name,)),
}
_FROM_IMAGE: Final = {IMAGE_BYTES.name, PIXELS.name, IMAGE_TOKENS.name}
_FROM_REPORT: Final = {REPORT.name, *_TEXT, TEXT_TOKENS.name}
_PADDED: Final = {*_TEXT, TEXT_TOKENS.name}  # axis 1 is L


@dataclass(frozen=True)
class RawCase:
    """One case as files: an image (DICOM, PNG, JPEG), a report, or both."""

    image: bytes | None = None
    report: bytes | None = None


def prepare_inputs(
    ask: Ask,
    names: Collection[str],
    cases: Sequence[RawCase],
    *,
    batch: int = 1,
    length: int | None = None,
) -> list[Arrays]:
    """Make the inputs of a served model from cases, one request for each case.

    Args:
        ask: Runs a served model. It makes the tensors, so that they are the same as the server's.
        names: The model's inputs.
        cases: Cases. A case without an image or report that the model needs is left out.
        batch: Cases per request: a case and the ones after it.
        length: Pad text to at least this many tokens, and leave out longer cases. None: the server's bucket.

    Returns:
        For each request, name -> batched array.

    Raises:
        ConfigError: An input cannot be made from cases, or no case has the inputs of the model.
        InputError, ServiceError: The server's errors.
    """
    if unknown := set(names) - _FROM_IMAGE - _FROM_REPORT:
        raise ConfigError(f"Requests cannot be made for a model with the input {min(unknown)}.")
    requests = [make_case(ask, names, case) for case in cases if _has_inputs(names, case)]
    if length is not None:
        requests = [inputs for inputs in requests if _count_tokens(inputs) <= length]
    if not requests:
        raise ConfigError("No case has all inputs of the model (image, report, at most --length tokens).")
    groups = [
        [requests[(start + step) % len(requests)] for step in range(batch)] for start in range(len(requests))
    ]
    return [join_cases(group, length or 0) for group in groups]


def make_case(ask: Ask, names: Collection[str], case: RawCase) -> Arrays:
    """Return the named inputs of one case, each with a batch of one."""
    arrays: Arrays = {}
    for spec, value in ((IMAGE_BYTES, case.image), (REPORT, case.report)):
        if value is not None:
            arrays[spec.name] = np.array([[value]], dtype=np.object_)  # (1, 1)

    def get(name: str) -> NDArray[Any]:
        if name not in arrays:
            model, (needed, outputs) = next(entry for entry in _STEPS.items() if name in entry[1][1])
            arrays.update(ask(model, {source: get(source) for source in needed}, outputs))
        return arrays[name]

    return {name: get(name) for name in names}


def join_cases(cases: Sequence[Arrays], length: int = 0) -> Arrays:
    """Return cases as one batch. Text is padded with zeros to the longest case, and at least to `length`."""
    longest = max(length, *map(_count_tokens, cases))

    def pad(name: str, array: NDArray[Any]) -> NDArray[Any]:
        if name not in _PADDED or array.shape[1] == longest:
            return array
        widths = [(0, 0), (0, longest - array.shape[1]), *[(0, 0)] * (array.ndim - 2)]
        return np.pad(array, widths)

    return {
        name: np.ascontiguousarray(np.concatenate([pad(name, case[name]) for case in cases]))
        for name in cases[0]
    }


def draw_inputs(
    names: Collection[str], *, image_size: int, length: int, batch: int, count: int = 16, seed: int = 0
) -> list[Arrays]:
    """Draw requests of random pixels and token ids, which take as long as real ones.

    Args:
        names: The model's inputs; pixels, input_ids and attention_mask can be drawn.
        image_size: S, in pixels.
        length: L, in tokens, without padding.
        batch: B.
        count: Number of requests.
        seed: Seed of the generator.

    Raises:
        ConfigError: The model has another input.
    """
    if unknown := set(names) - {PIXELS.name, *_TEXT}:
        raise ConfigError(f"The input {min(unknown)} cannot be drawn at random. Give --table.")
    generator = np.random.default_rng(seed)
    makers: dict[str, Callable[[], NDArray[Any]]] = {
        PIXELS.name: lambda: generator.integers(0, 256, (batch, 1, image_size, image_size), dtype=np.uint8),
        INPUT_IDS.name: lambda: generator.integers(5, 100, (batch, length), dtype=np.int64),
        ATTENTION_MASK.name: lambda: np.ones((batch, length), np.int64),
    }
    return [{name: makers[name]() for name in names} for _ in range(count)]


def describe_inputs(requests: Sequence[Arrays]) -> dict[str, Any]:
    """Return the number of requests, their shapes, and their mean size in bytes."""
    shapes: dict[str, dict[str, int]] = {}
    for inputs in requests:
        for name, array in inputs.items():
            shape = "x".join(map(str, array.shape))
            shapes.setdefault(name, {}).setdefault(shape, 0)
            shapes[name][shape] += 1
    size = sum(_count_bytes(array) for inputs in requests for array in inputs.values())
    return {"requests": len(requests), "shapes": shapes, "mean_bytes": round(size / len(requests))}


def _has_inputs(names: Collection[str], case: RawCase) -> bool:
    image, report = bool(_FROM_IMAGE & set(names)), bool(_FROM_REPORT & set(names))
    return (case.image is not None or not image) and (case.report is not None or not report)


def _count_tokens(inputs: Arrays) -> int:
    return max((array.shape[1] for name, array in inputs.items() if name in _PADDED), default=0)


def _count_bytes(array: NDArray[Any]) -> int:
    return sum(map(len, array.ravel())) if array.dtype == np.object_ else array.nbytes
