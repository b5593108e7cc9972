"""Read training configs from TOML files, change them from the command line, and write them in full.

    extends = "demo"            # another config to start from: a name, or a path relative to this file

    [optimizer]
    learning_rate = 2e-3

A name is a file in `training/configs/`, with its folder if it has one: demo, reports, tiny, base, ablation/bce.
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
from training.config.removed import drop_removed, refuse_removed
from training.config.settings import SECTIONS, ModelConfig, TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DIRECTORY: Final = Path(__file__).resolve().parents[1] / "configs"


def list_configs() -> list[str]:
    """Return the names of the built-in configs, in alphabetical order."""
    return sorted(
        path.relative_to(DIRECTORY).with_suffix("").as_posix() for path in DIRECTORY.rglob("*.toml")
    )


def load_config(name: str, changes: Mapping[str, Any] | None = None) -> TrainConfig:
    """Return a config with some settings changed.

    Args:
        name: A name of `list_configs`, or the path of a TOML file.
        changes: Dotted settings and their values: {"optimizer.learning_rate": 1e-3, "seed": 1}.

    Raises:
        ConfigError: The config or a setting does not exist, or a value has another type or is out of range.
    """
    return change_config(_read(_find(name, Path.cwd()), ()), changes or {})


def change_config(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """Return a config with some settings changed; for arguments and errors see `load_config`."""
    for key, value in changes.items():
        *sections, last = key.split(".")
        values = {last: value}
        for section in reversed(sections):
            values = {section: values}
        config = change_settings(config, refuse_removed(values))
    config.check()
    return config


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        ConfigError: The file cannot be read or is not valid TOML.
    """
    try:
        return tomllib.loads(_read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {str(error).rstrip('.')}.") from error


def read_header(name: str) -> list[str]:
    """Return the comment at the start of a config file: the command that runs it, then notes about it.

    Args:
        name: See `load_config`.

    Returns:
        The lines without "# "; [] if the file does not start with a comment.

    Raises:
        ConfigError: The config does not exist, or is not text.
    """
    header = itertools.takewhile(
        lambda line: line.startswith("#"), _read_text(_find(name, Path.cwd())).splitlines()
    )
    return [line[1:].strip() for line in header]


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse settings from a command line: "optimizer.learning_rate=1e-3". Unquoted words are strings.

    Raises:
        ConfigError: A pair has no "=", or no name before it.
    """
    settings = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not all(part.isidentifier() for part in key.strip().split(".")):
            raise ConfigError(f"A setting must be written as section.name=value, not {pair!r}.")
        try:
            settings[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key.strip()] = text
    return settings


def format_config(config: TrainConfig) -> str:
    """Return every setting as TOML for `load_config`."""
    values = asdict(config)
    lines = [f"{key} = {_format(value)}" for key, value in values.items() if key not in SECTIONS]
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        lines += [f"{key} = {_format(value)}" for key, value in values[section].items() if value is not None]
    return "\n".join(lines) + "\n"


def flatten_settings(values: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Return settings by dotted names: {"optimizer": {"name": "muon"}} -> {"optimizer.name": "muon"}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        title = f"{section}.{key}" if section else key
        flat |= flatten_settings(value, title) if isinstance(value, Mapping) else {title: value}
    return flat


def read_model_config(values: Mapping[str, Any]) -> ModelConfig:
    """Return the model config under "model" in a bundle's config.json.

    Raises:
        ConfigError: A setting is unknown or sizes do not fit each other.
    """
    config: ModelConfig = change_settings(ModelConfig(label_share=0.0), values, "model")  # of an older bundle
    config.check()
    return config


def read_train_config(values: Mapping[str, Any]) -> TrainConfig:
    """Return the training config that a bundle's config.json records, without settings of older versions.

    Raises:
        ConfigError: There is no training config, or it is from a newer version of this software.
    """
    if not isinstance(values.get("training"), Mapping):
        raise ConfigError("The bundle's config.json does not record how the model was trained.")
    model = asdict(read_model_config(values["model"]))
    training = drop_removed(values["training"])
    config: TrainConfig = change_settings(TrainConfig(), {**training, "model": model})
    return config


def change_settings(base: Any, values: Mapping[str, Any], section: str = "") -> Any:
    """Return a config dataclass with some values replaced, section by section.

    Raises:
        ConfigError: A setting is unknown (the message suggests a similar one), or its value has another type.
    """
    types = get_type_hints(type(base))
    changed: dict[str, Any] = {}
    for key, value in values.items():
        title = f"{section}.{key}" if section else key
        if key not in types:
            raise ConfigError(f"There is no setting {title}; {_suggest(section, key)}")
        if get_origin(types[key]) is dict and isinstance(value, Mapping):
            changed[key] = {name: _convert_free(entry, f"{title}.{name}") for name, entry in value.items()}
            continue
        if is_dataclass(getattr(base, key)):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{title} is a section. Write [{title}], or {title}.<setting>=<value>.")
            changed[key] = change_settings(getattr(base, key), value, title)
        else:
            changed[key] = _convert(value, types[key], title)
    return replace(base, **changed)


def _find(name: str, beside: Path) -> Path:
    path = beside / name
    if name.endswith(".toml") and path.is_file():
        return path
    names = list_configs()
    if name in names:
        return DIRECTORY / f"{name}.toml"
    if name.endswith(".toml"):
        raise ConfigError(f"There is no config file {path}.")
    near = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {near[0]}?" if near else f". Give a .toml file, or one of {', '.join(names)}."
    raise ConfigError(f"There is no config {name!r}{hint}")


def _read(path: Path, seen: tuple[Path, ...]) -> TrainConfig:
    resolved = path.resolve()
    if resolved in seen:
        raise ConfigError(f"{path} extends itself.")
    values = read_toml(path)
    inside = resolved.is_relative_to(DIRECTORY)
    name = resolved.relative_to(DIRECTORY).with_suffix("").as_posix() if inside else resolved.stem
    parent = values.pop("extends", None)
    try:
        if parent is not None and not isinstance(parent, str):
            raise ConfigError("extends must name one config.")
        base = _read(_find(parent, path.parent), (*seen, resolved)) if parent else TrainConfig()
        config: TrainConfig = change_settings(replace(base, name=name), refuse_removed(values))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error


def _suggest(section: str, key: str) -> str:
    """Return a suggestion: a similar name in the same section, else in any section, else all names of the section."""
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


def _convert(value: Any, target: Any, title: str) -> Any:
    """Return a TOML or JSON value in the type of a setting: integers become floats, lists tuples, "none" None."""
    origin, arguments = get_origin(target), get_args(target)
    if origin in {Union, types.UnionType}:
        if value is None or value == "none":
            return None
        [target] = [kind for kind in arguments if kind is not type(None)]
        return _convert(value, target, title)
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise ConfigError(f"{title} must hold {len(arguments)} values, not {len(value)}.")
        return tuple(_convert(entry, arguments[0], title) for entry in value)
    if origin is Literal and value in arguments:
        return value
    if target is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    fits = origin is None and isinstance(value, target) and (target is bool or not isinstance(value, bool))
    if not fits or (target is float and not math.isfinite(value)):
        raise ConfigError(f"{title} must be {_name_type(target)}, not {value!r}.")
    return value


def _convert_free(value: Any, title: str) -> Any:
    """Return a number, text, boolean or list of them unchanged. Other values cannot be written as a setting."""
    if isinstance(value, list | tuple):
        return [_convert_free(entry, title) for entry in value]
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(
            f"{title} must be a text, a number, true or false, or a list of these, not {value!r}."
        )
    return value


def _name_type(target: Any) -> str:
    if get_origin(target) is dict:
        return "a table of arguments"
    if get_origin(target) is tuple:
        return f"a list of {_name_type(get_args(target)[0]).removeprefix('a ')}s"
    if get_origin(target) is Literal:
        return f"one of {', '.join(get_args(target))}"
    return {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}[
        target.__name__
    ]


def _format(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{json.dumps(key)} = {_format(entry)}" for key, entry in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
