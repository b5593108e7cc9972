"""Find and read the files of pretrained weights, on this machine or on the Hugging Face hub.

Nothing in a file is executed.
"""

import contextlib
import pickle
from pathlib import Path
from typing import Final

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from contract.errors import ConfigError

_HUB_TIMEOUT_S: Final = 10.0
_WEIGHT_FILES: Final = ("model.safetensors", "pytorch_model.bin")
_CHECKPOINT_KEYS: Final = ("state_dict_ema", "model_ema", "state_dict", "model")  # in the order of timm
_READ_ERRORS: Final = (
    *(OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError),
    *(pickle.UnpicklingError, SafetensorError),
)


def read_tensors(kind: str, source: str) -> dict[str, Tensor]:
    """Return the tensors of a weight file, a directory or a hub repository, by name.

    Raises:
        ConfigError: There is no such file, or it cannot be read.
    """
    path = Path(source).expanduser()
    path = path if path.is_file() else find_file(kind, source, _WEIGHT_FILES)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in _CHECKPOINT_KEYS:
            state = state.get(key) or state
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}
    except _READ_ERRORS as error:
        raise ConfigError(
            f"The {kind} weights {source} cannot be read as safetensors or as a state dict of tensors alone."
        ) from error


def find_file(kind: str, source: str, names: tuple[str, ...]) -> Path:
    """Return the first of some files in a directory, in a weight file's directory or in a hub repository.

    Raises:
        ConfigError: There is none of them, or the hub was not reached.
    """
    path = Path(source).expanduser()
    if not path.exists():
        return _fetch(kind, source, names)
    directory = path.parent if path.is_file() else path
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise ConfigError(f"The directory {directory} of {kind} weights has no {' or '.join(names)}.")


def _fetch(kind: str, source: str, names: tuple[str, ...]) -> Path:
    """Return the first of some files of a hub repository, from the local cache if possible."""
    repository = source.removeprefix("hf-hub:").removeprefix("hf_hub:")
    if kind == "image" and "/" not in repository:
        repository = f"timm/{repository}"
    try:
        for name in names:
            if isinstance(cached := try_to_load_from_cache(repository, name), str):
                return Path(cached)
        for name in names:
            # A download retries a connection for half a minute, so first ask whether the file exists.
            with contextlib.suppress(_AbsentFromHubError):
                _ask_hub(repository, name)
                return Path(hf_hub_download(repository, name))
    except Exception as error:  # the type depends on the version of the hub's library
        raise ConfigError(
            f"There are no {kind} weights {source}: no such file or directory is here, and the Hugging Face hub was "
            f"not reached or has none of that name; get them where there is a network and give their local path to "
            f"--{kind}-weights."
        ) from error
    raise ConfigError(f"The {kind} weights {repository} on the hub have no {' or '.join(names)}.")


class _AbsentFromHubError(Exception):
    """The hub answered: the repository has no such file."""


def _ask_hub(repository: str, name: str) -> None:
    try:
        get_hf_file_metadata(hf_hub_url(repository, name), timeout=_HUB_TIMEOUT_S)
    except LocalEntryNotFoundError:  # an EntryNotFoundError, but it means that the hub was not reached
        raise
    except EntryNotFoundError as error:
        raise _AbsentFromHubError from error
