"""Make the shape profiles of TensorRT, for plans and for the provider inside ONNX Runtime.

They follow from a model's config.pbtxt: the range of batch sizes from its inputs, the lengths from its warm-up. Without
a profile the provider builds its engine again for every shape outside the range of earlier shapes.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from contract.errors import ConfigError
from contract.tensors import FUSED, LENGTH_BUCKETS, MAX_BATCH_SIZE, MAX_VIEWS, MODELS

TYPICAL_LENGTH: Final = 128  # tokens; the bucket of most reports
_BOUNDS: Final = ("min", "opt", "max")


class ShapeRange(NamedTuple):
    """The smallest, the typical and the largest shape of one input, with the batch size first."""

    smallest: tuple[int, ...]
    typical: tuple[int, ...]
    largest: tuple[int, ...]


Profile = Mapping[str, ShapeRange]


def make_profile(config: Any, typical_batch: int) -> dict[str, ShapeRange]:
    """Return the range of each input's shape, tuned for one batch size.

    The batch size ranges from 1 to the largest one of the config. A text ranges from 1 token (a client may tokenize
    itself) to the longest text of the warm-up; typical are 128 tokens. A study ranges from 1 image to `MAX_VIEWS`;
    typical is 1 image.

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
    """Return the profiles of a plan: the whole range, and batch size 1 unless the first one is tuned for it.

    Triton's TensorRT backend chooses the profile with the nearest typical shape for each batch. ONNX Runtime's provider
    uses only the first profile.
    """
    whole = make_profile(config, typical_batch)
    return (whole,) if typical_batch == 1 else (whole, _make_ranges(config, (1, 1, 1)))


def format_profile(profile: Profile) -> dict[str, str]:
    """Return one profile as the parameters of the execution accelerator "tensorrt"."""
    return {
        f"trt_profile_{bound}_shapes": format_shapes(profile, index) for index, bound in enumerate(_BOUNDS)
    }


def format_shapes(profile: Profile, index: int) -> str:
    """Return one bound of every input in the format of trtexec and onnxruntime: `name:1x32,other:1x49x128`."""
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
    """Return shape letter -> smallest, typical and largest size, of the dimensions that differ between requests."""
    warmed: dict[str, set[int]] = {}
    for sample in config.model_warmup:
        for name, entry in sample.inputs.items():
            for letter, dim in zip(letters[name], entry.dims, strict=True):
                warmed.setdefault(str(letter), set()).add(dim)
    lengths = warmed.get("L") or set(LENGTH_BUCKETS)
    typical = min(lengths, key=lambda length: abs(length - TYPICAL_LENGTH))
    tokens = min(warmed.get("I") or {1})  # number of tokens of one image
    return {
        "L": (1, typical, max(lengths)),
        "V": (1, 1, MAX_VIEWS),
        "I": (tokens, tokens, MAX_VIEWS * tokens),
    }
