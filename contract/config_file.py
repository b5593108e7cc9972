"""Config files: one section of `name = value` lines (INI), whose names are known.

The client's settings (`contract.connection`) and those of `cxr serve` (`cli.serve_config`) are such files. They are INI
because Python reads it without another package.
"""

import configparser
import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from contract.errors import ConfigError

_LIKE: Final = 0.6  # of difflib: a name with so much in common may be meant


def read_section(path: Path, section: str, known: Collection[str], setting: str) -> Mapping[str, str]:
    """Return the settings of a section of a config file: name -> text. Names are in lower case.

    Args:
        path: The file.
        section: Its section.
        known: The names that may be set.
        setting: What names the file, such as CXR_CONFIG, for messages.

    Raises:
        ConfigError: The file cannot be read, lacks the section or has an unknown name. No value is shown.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.expanduser().read_text(encoding="utf-8"))
        settings = dict(parser[section])
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError) as error:
        reason = (
            error.strerror
            if isinstance(error, OSError)
            else f"it needs a section [{section}] with name = value"
        )
        raise ConfigError(f"The config file {path} ({setting}) cannot be used: {reason}.") from error
    if unknown := sorted(set(settings) - set(known)):
        raise ConfigError(
            f"The config file {path} ({setting}) has the unknown setting {unknown[0]}; "
            f"{_suggest(unknown[0], known)}."
        )
    return settings


def _suggest(name: str, known: Collection[str]) -> str:
    """Return, in words, the nearest known name, or all of them if none is near."""
    if near := difflib.get_close_matches(name, known, n=1, cutoff=_LIKE):
        return f"the nearest known one is {near[0]}"
    return f"the known ones are {', '.join(sorted(known))}"
