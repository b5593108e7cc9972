"""The config file of `cxr serve`: each of its options as `name = value`, in the section [serve].

    [serve]
    repository = /var/lib/cxr/model_repository
    store = /var/lib/cxr/store
    grpc_port = 8001

Each option comes from the first of these places that has it: the command line, the environment (CXR_SERVE_GRPC_PORT for
--grpc-port), the file, the default. An empty value is none, and several values have spaces between them.
"""

from pathlib import Path
from typing import Any, Final

import typer

from contract.config_file import read_section
from contract.errors import ConfigError

ENVIRONMENT: Final = "CXR_SERVE"  # the prefix of the variables of all options without one of their own
FILE_VARIABLE: Final = f"{ENVIRONMENT}_CONFIG"
_SETTING: Final = f"--config, {FILE_VARIABLE}"
_NOT_IN_FILE: Final = {"config", "as_json", "help"}


def load_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the values of a config file the defaults of the command's options. Call it as that option's callback.

    Raises:
        ConfigError: The file cannot be read, has an unknown name, or a value that its option refuses.
    """
    if path is None or context.resilient_parsing:
        return path
    options = {str(option.name): option for option in context.command.params}
    options = {name: option for name, option in options.items() if name not in _NOT_IN_FILE}
    texts = read_section(path, "serve", options, _SETTING)
    values = {name: _split(options[name], text) for name, text in texts.items() if text}
    for name, value in values.items():
        if reason := _find_trouble(context, options[name], value):
            raise ConfigError(
                f"The config file {path} ({_SETTING}) sets {name} to {texts[name]!r}, which is not valid: {reason}."
            )
    context.default_map = values
    return path


def _split(option: Any, text: str) -> str | list[str]:
    return text.split() if option.multiple else text


def _find_trouble(context: typer.Context, option: Any, value: str | list[str]) -> str | None:
    """Return why an option refuses a value; None if it takes it."""
    try:
        option.process_value(context, value)
    except typer.BadParameter as error:
        return str(error.message).rstrip(".")
    return None
