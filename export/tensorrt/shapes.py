"""The shapes that TensorRT is told of: profiles of plans, and of the provider inside ONNX Runtime.

All follow from a model's config.pbtxt: what it may be sent decides the range, what it is warmed up with the lengths.
Without a range the provider builds its engine anew for every shape that is larger or smaller than those before.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from contract.errors import ConfigError
from contract.tensors import FUSED, LENGTH_BUCKETS, MAX_BATCH_SIZE, MAX_VIEWS, MODELS

TYPICAL_LENGTH: Final = 128  # tokens; the bucket of most reports
_BOUNDS: Final = ("min", "opt", "max")


class ShapeRange(NamedTuple):
    """Smallest, most usual and largest shape of one input, the batch first."""

    smallest: tuple[int, ...]
    typical: tuple[int, ...]
    largest: tuple[int, ...]


Profile = Mapping[str, ShapeRange]


def make_profile(config: Any, typical_batch: int) -> dict[str, ShapeRange]:
    """Return the range of each input's shape, tuned for one batch size.

    Batches are 1 to what the config allows. Text is 1 token (clients may preprocess themselves) to the longest that
    the model is warmed up with, most often 128. A study has 1 image, most often, to `MAX_VIEWS`.

    Args:
        config: The `ModelConfig` of a graph.
        typical_batch: 1 to `max_batch_size`.

    Raises:
        ConfigError: `typical_batch` is out of range.
    """
    largest = config.max_batch_size or MAX_BATCH_SIZE
    if not 1 <= typical_batch <= largest:
        raise ConfigError(f"The typical batch size must be 1 to {largest}, not {typical_batch}.")
    return _make_ranges(config, (1, typical_batch, largest))


def make_profiles(config: Any, typical_batch: int) -> tuple[Profile, ...]:
    """Return the profiles of a plan: the whole range, and, unless that is tuned for it already, batch 1 alone.

    Triton's TensorRT backend takes for each batch the profile whose typical shape is nearest. ONNX Runtime's provider
    runs the first profile only.
    """
    whole = make_profile(config, typical_batch)
    return (whole,) if typical_batch == 1 else (whole, _make_ranges(config, (1, 1, 1)))


def format_profile(profile: Profile) -> dict[str, str]:
    """Return one profile as the parameters of the execution accelerator "tensorrt"."""
    return {
        f"trt_profile_{bound}_shapes": format_shapes(profile, index) for index, bound in enumerate(_BOUNDS)
    }


def format_shapes(profile: Profile, index: int) -> str:
    """Return one bound of every input as trtexec and onnxruntime write it: `name:1x32,other:1x49x128`."""
    return ",".join(f"{name}:{'x'.join(map(str, bounds[index]))}" for name, bounds in profile.items())


def _make_ranges(config: Any, batches: tuple[int, int, int]) -> dict[str, ShapeRange]:
    letters = {tensor.name: tensor.shape for tensor in (MODELS | FUSED)[config.name].inputs}
    free = _list_free(config, letters)
    return {
        entry.name: ShapeRange(
            *(
                (
                    batch,
                    *(
                        free[str(letter)][bound] if dim == -1 else dim
                        for letter, dim in zip(letters[entry.name], entry.dims, strict=True)
                    ),
                )
                for bound, batch in enumerate(batches)
            )
        )
        for entry in config.input
    }


def _list_free(config: Any, letters: Mapping[str, tuple[object, ...]]) -> dict[str, tuple[int, int, int]]:
    """Return shape letter -> smallest, most usual and largest size of what differs from request to request."""
    warmed: dict[str, set[int]] = {}
    for sample in config.model_warmup:
        for name, entry in sample.inputs.items():
            for letter, dim in zip(letters[name], entry.dims, strict=True):
                warmed.setdefault(str(letter), set()).add(dim)
    lengths = warmed.get("L") or set(LENGTH_BUCKETS)
    typical = min(lengths, key=lambda length: abs(length - TYPICAL_LENGTH))
    tokens = min(warmed.get("I") or {1})  # of one image
    return {
        "L": (1, typical, max(lengths)),
        "V": (1, 1, MAX_VIEWS),
        "I": (tokens, tokens, MAX_VIEWS * tokens),
    }
