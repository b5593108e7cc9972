"""Training configs as TOML files: read, changed from the command line, written out in full.

    extends = "demo"            # another config to start from: a name, or a path relative to this file

    [optimizer]
    learning_rate = 2e-3

A name is a file of `training/configs/`, with or without its folder: demo, reports, tiny, base, ablation/bce.
"""

import difflib
import itertools
import json
import math
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from contract.errors import ConfigError
from training.config.settings import SECTIONS, ModelConfig, TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DIRECTORY: Final = Path(__file__).resolve().parents[1] / "configs"


def list_configs() -> list[str]:
    """Return the names of the configs that come with this package, in alphabetical order."""
    return sorted(
        path.relative_to(DIRECTORY).with_suffix("").as_posix() for path in DIRECTORY.rglob("*.toml")
    )


def load_config(name: str, changes: Mapping[str, Any] | None = None) -> TrainConfig:
    """Return a config with some settings changed.

    Args:
        name: A name of `list_configs`, or the path of a TOML file.
        changes: Dotted settings and their values: {"optimizer.learning_rate": 1e-3, "seed": 1}.

    Raises:
        ConfigError: No such config or setting, a value of another type or out of its range.
    """
    return change_config(_read(_find(name, Path.cwd()), ()), changes or {})


def change_config(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """Return a config with some settings changed; arguments and errors as of `load_config`."""
    for key, value in changes.items():
        *sections, last = key.split(".")
        values = {last: value}
        for section in reversed(sections):
            values = {section: values}
        config = change_settings(config, values)
    config.check()
    return config


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds, whatever it is.

    Raises:
        ConfigError: It cannot be read or is no TOML.
    """
    try:
        return tomllib.loads(_read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is no TOML: {str(error).rstrip('.')}.") from error


def read_header(name: str) -> list[str]:
    """Return the comment that a config file opens with: the command that runs it, then what is known of it.

    Args:
        name: As for `load_config`.

    Returns:
        Its lines without "# "; [] where the file opens otherwise.

    Raises:
        ConfigError: No such config, or it is no text.
    """
    header = itertools.takewhile(
        lambda line: line.startswith("#"), _read_text(_find(name, Path.cwd())).splitlines()
    )
    return [line[1:].strip() for line in header]


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Read settings as typed on a command line: "optimizer.learning_rate=1e-3"; bare words are strings.

    Raises:
        ConfigError: A pair without "=", or without a name before it.
    """
    settings = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not all(part.isidentifier() for part in key.strip().split(".")):
            raise ConfigError(f"A setting is written section.name=value, not {pair!r}.")
        try:
            settings[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key.strip()] = text
    return settings


def format_config(config: TrainConfig) -> str:
    """Return every setting as TOML that `load_config` reads back."""
    values = asdict(config)
    lines = [f"{key} = {_format(value)}" for key, value in values.items() if key not in SECTIONS]
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        lines += [f"{key} = {_format(value)}" for key, value in values[section].items() if value is not None]
    return "\n".join(lines) + "\n"


def flatten_settings(values: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Return settings by section under dotted names: {"optimizer": {"name": "muon"}} -> {"optimizer.name": "muon"}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        title = f"{section}.{key}" if section else key
        flat |= flatten_settings(value, title) if isinstance(value, Mapping) else {title: value}
    return flat


def read_model_config(values: Mapping[str, Any]) -> ModelConfig:
    """Return the model config that a bundle's config.json holds under "model".

    Raises:
        ConfigError: A setting is unknown or sizes do not fit each other.
    """
    config: ModelConfig = change_settings(ModelConfig(), values, "model")
    config.check()
    return config


def read_train_config(values: Mapping[str, Any]) -> TrainConfig:
    """Return the run that a bundle's config.json records.

    Raises:
        ConfigError: It records none, or one of another version of this software.
    """
    if not isinstance(values.get("training"), Mapping):
        raise ConfigError("The bundle's config.json does not record how the model was trained.")
    config: TrainConfig = change_settings(TrainConfig(), {**values["training"], "model": values["model"]})
    return config


def change_settings(base: Any, values: Mapping[str, Any], section: str = "") -> Any:
    """Return a config dataclass with some values replaced, section by section.

    Raises:
        ConfigError: A setting is unknown (the message suggests a near one) or its value of another type.
    """
    known = get_type_hints(type(base))
    changed: dict[str, Any] = {}
    for key, value in values.items():
        title = f"{section}.{key}" if section else key
        if key not in known:
            raise ConfigError(f"There is no setting {title}; {_suggest(section, key)}")
        if get_origin(known[key]) is dict and isinstance(value, Mapping):
            changed[key] = {name: _convert_free(entry, f"{title}.{name}") for name, entry in value.items()}
            continue
        if is_dataclass(getattr(base, key)):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{title} is a section: write [{title}], or {title}.<setting>=<value>.")
            changed[key] = change_settings(getattr(base, key), value, title)
        else:
            changed[key] = _convert(value, known[key], title)
    return replace(base, **changed)


def _find(name: str, beside: Path) -> Path:
    path = beside / name
    if name.endswith(".toml") and path.is_file():
        return path
    known = list_configs()
    if name in known:
        return DIRECTORY / f"{name}.toml"
    if name.endswith(".toml"):
        raise ConfigError(f"There is no config file {path}.")
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]}?" if near else f": give a .toml file, or one of {', '.join(known)}."
    raise ConfigError(f"There is no config {name!r}{hint}")


def _read(path: Path, seen: tuple[Path, ...]) -> TrainConfig:
    place = path.resolve()
    if place in seen:
        raise ConfigError(f"{path} extends itself.")
    values = read_toml(path)
    inside = place.is_relative_to(DIRECTORY)
    name = place.relative_to(DIRECTORY).with_suffix("").as_posix() if inside else place.stem
    parent = values.pop("extends", None)
    try:
        if parent is not None and not isinstance(parent, str):
            raise ConfigError("extends must name one config.")
        base = _read(_find(parent, path.parent), (*seen, place)) if parent else TrainConfig()
        config: TrainConfig = change_settings(replace(base, name=name), values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error


def _suggest(section: str, key: str) -> str:
    """Return which setting was meant: a near name in the same section, else in any, else all of the section."""
    config = TrainConfig()
    settings = {name: [entry.name for entry in fields(getattr(config, name))] for name in SECTIONS}
    settings[""] = [entry.name for entry in fields(config)]
    homes, near = [section], difflib.get_close_matches(key, settings[section], 1)
    if not near:
        near = difflib.get_close_matches(key, [name for names in settings.values() for name in names], 1)
        homes = [home for home, names in settings.items() if near and near[0] in names]
    if not near:
        return f"known are {', '.join(settings[section])}."
    return "did you mean " + " or ".join(f"{home}.{near[0]}".lstrip(".") for home in homes) + "?"


def _convert(value: Any, wanted: Any, title: str) -> Any:
    """Return a TOML or JSON value as the type of a setting: numbers widen, lists become tuples, "none" is None."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in {Union, types.UnionType}:
        if value is None or value == "none":
            return None
        [wanted] = [kind for kind in arguments if kind is not type(None)]
        return _convert(value, wanted, title)
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise ConfigError(f"{title} must hold {len(arguments)} values, not {len(value)}.")
        return tuple(_convert(entry, arguments[0], title) for entry in value)
    if origin is Literal and value in arguments:
        return value
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    fits = origin is None and isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
    if not fits or (wanted is float and not math.isfinite(value)):
        raise ConfigError(f"{title} must be {_name_type(wanted)}, not {value!r}.")
    return value


def _convert_free(value: Any, title: str) -> Any:
    """Return a number, text, truth value or list of such as it is; nothing else can be written out again."""
    if isinstance(value, list | tuple):
        return [_convert_free(entry, title) for entry in value]
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(
            f"{title} must be a text, a number, true or false, or a list of such, not {value!r}."
        )
    return value


def _name_type(wanted: Any) -> str:
    if get_origin(wanted) is dict:
        return "a table of arguments"
    if get_origin(wanted) is tuple:
        return f"a list of {_name_type(get_args(wanted)[0]).removeprefix('a ')}s"
    if get_origin(wanted) is Literal:
        return f"one of {', '.join(get_args(wanted))}"
    return {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}[
        wanted.__name__
    ]


def _format(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{json.dumps(key)} = {_format(entry)}" for key, entry in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
