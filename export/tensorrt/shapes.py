"""The shapes that TensorRT is told of: profiles of plans, and of the provider inside ONNX Runtime.

All follow from a model's config.pbtxt: what it may be sent decides the range, what it is warmed up with the lengths.
Without a range the provider builds its engine anew for every shape that is larger or smaller than those before.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from contract.errors import ConfigError
from contract.tensors import LENGTH_BUCKETS, MAX_BATCH_SIZE

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
    the model is warmed up with, most often 128.

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
    lengths = _read_lengths(config)
    typical = min(lengths, key=lambda length: abs(length - TYPICAL_LENGTH))
    free = (1, typical, max(lengths))
    return {
        entry.name: ShapeRange(
            *(
                (batch, *(length if dim == -1 else dim for dim in entry.dims))
                for batch, length in zip(batches, free, strict=True)
            )
        )
        for entry in config.input
    }


def _read_lengths(config: Any) -> set[int]:
    """Return the text lengths that a model is warmed up with, or, without any, the buckets."""
    free = {entry.name: [dim == -1 for dim in entry.dims] for entry in config.input}
    found = {
        dim
        for sample in config.model_warmup
        for name, entry in sample.inputs.items()
        for dim, is_free in zip(entry.dims, free.get(name, ()), strict=False)
        if is_free
    }
    return found or set(LENGTH_BUCKETS)
