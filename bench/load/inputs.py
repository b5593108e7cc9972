"""Cases as the inputs of a served model: raw files, or tensors that the server's own first steps made once."""

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
# What the server's steps make of what: model -> (inputs, outputs). Preprocessing exists once, and there.
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
        ask: Runs a served model; called for tensors, so that they are what the server itself would make.
        names: The model's inputs.
        cases: Those without an image or a report that the model needs are left out.
        batch: Cases in a request: a case and those after it.
        length: Pad text to at least this many tokens, and leave out cases with more; None keeps the server's bucket.

    Returns:
        Request by request, name -> batched array.

    Raises:
        ConfigError: An input cannot be made from cases, or no case has what the model needs.
        InputError, ServiceError: As the server answers.
    """
    if unknown := set(names) - _FROM_IMAGE - _FROM_REPORT:
        raise ConfigError(f"Requests cannot be made for a model with the input {min(unknown)}.")
    made = [make_case(ask, names, case) for case in cases if _has_inputs(names, case)]
    if length is not None:
        made = [inputs for inputs in made if _count_tokens(inputs) <= length]
    if not made:
        raise ConfigError("No case has all that the model reads (image, report, at most --length tokens).")
    groups = [[made[(start + step) % len(made)] for step in range(batch)] for start in range(len(made))]
    return [join_cases(group, length or 0) for group in groups]


def make_case(ask: Ask, names: Collection[str], case: RawCase) -> Arrays:
    """Return the named inputs of one case, each with a batch of one."""
    known: Arrays = {}
    for spec, value in ((IMAGE_BYTES, case.image), (REPORT, case.report)):
        if value is not None:
            known[spec.name] = np.array([[value]], dtype=np.object_)  # (1, 1)

    def get(name: str) -> NDArray[Any]:
        if name not in known:
            model, (needed, outputs) = next(entry for entry in _STEPS.items() if name in entry[1][1])
            known.update(ask(model, {source: get(source) for source in needed}, outputs))
        return known[name]

    return {name: get(name) for name in names}


def join_cases(cases: Sequence[Arrays], length: int = 0) -> Arrays:
    """Return cases as one batch; text is padded with zeros to the longest of them, at least to `length`."""
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
    """Draw requests of random pixels and token ids: as slow to answer as real ones, without meaning.

    Args:
        names: The model's inputs; pixels, input_ids and attention_mask can be drawn.
        image_size: S, in pixels.
        length: L, in tokens; all of them count.
        batch: B.
        count: How many requests.
        seed: Of the generator.

    Raises:
        ConfigError: The model reads something else.
    """
    if unknown := set(names) - {PIXELS.name, *_TEXT}:
        raise ConfigError(f"The input {min(unknown)} cannot be drawn at random: give --table.")
    generator = np.random.default_rng(seed)
    makers: dict[str, Callable[[], NDArray[Any]]] = {
        PIXELS.name: lambda: generator.integers(0, 256, (batch, 1, image_size, image_size), dtype=np.uint8),
        INPUT_IDS.name: lambda: generator.integers(5, 100, (batch, length), dtype=np.int64),
        ATTENTION_MASK.name: lambda: np.ones((batch, length), np.int64),
    }
    return [{name: makers[name]() for name in names} for _ in range(count)]


def describe_inputs(requests: Sequence[Arrays]) -> dict[str, Any]:
    """Return how many requests there are, their shapes, and the bytes of a mean one."""
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
