"""Precision profiles: the conversion of graphs, their runtime settings, and the limits of the precision gate.

`profiles.toml` holds the profiles and explains each key.
"""

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

from contract.errors import ConfigError
from contract.tensors import GRAPHS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Conversion = Literal["none", "bf16", "fp16", "int8"]
Machine = Literal["cpu", "gpu"]
PROFILES: Final = Path(__file__).with_name("profiles.toml")


@dataclass(frozen=True)
class Limits:
    """The largest differences of a profile from float32, under the names of `profiles.toml`.

    Attributes:
        probability_difference: Largest absolute difference, 0 to 1.
        embedding_cosine: Smallest cosine in the joint space (`contract.embedding`), 0 to 1.
        flip_share: Largest share of flipped decisions, 0 to 1.
        auroc_change: Largest absolute change of the macro AUROC, 0 to 1.
        ap_change: Largest absolute change of the macro average precision, 0 to 1.
        neighbour_overlap: Smallest mean share of the ten nearest cases in common, 0 to 1.
    """

    probability_difference: float
    embedding_cosine: float
    flip_share: float
    auroc_change: float
    ap_change: float
    neighbour_overlap: float


@dataclass(frozen=True)
class Profile:
    """One precision profile.

    Attributes:
        name: Its table in `profiles.toml`.
        description: A short description for the help of the command.
        target: The hardware that it runs on.
        accelerator: Triton's execution accelerator; "" is ONNX Runtime alone.
        parameters: Parameters of the accelerator.
        conversion: The change to the graphs (`export.graphs.convert`).
        limits: Limits of the precision gate (`export.gates.precision`).
        graphs: The graphs that are converted.
        faster_than: Name of the profile that this one must beat in speed; "" for none.
        kept_share: Largest share of the products, 0 to 1, that may stay in float32 (`export.settle`).
    """

    name: str
    description: str
    target: Machine
    accelerator: str
    parameters: dict[str, str]
    conversion: Conversion
    limits: Limits
    graphs: tuple[str, ...] = GRAPHS
    faster_than: str = ""
    kept_share: float = 0.0

    def make_optimization(self) -> dict[str, Any]:
        """Return the field `optimization` of each graph's config.pbtxt as Triton's JSON, or {}."""
        if not self.accelerator:
            return {}
        entry: dict[str, Any] = {"name": self.accelerator}
        if self.parameters:
            entry["parameters"] = dict(self.parameters)
        return {"execution_accelerators": {f"{self.target}_execution_accelerator": [entry]}}


def list_profiles() -> list[str]:
    """Return the names of the profiles, in the order of `profiles.toml`."""
    return list(_read_tables(PROFILES))


def load_profile(name: str, path: Path = PROFILES) -> Profile:
    """Return a profile.

    Args:
        name: Its table in the file.
        path: The file.

    Raises:
        ConfigError: The profile or the file does not exist, a key is unknown (the message suggests a similar one) or
            missing, or a value is out of range.
    """
    tables = _read_tables(path)
    if name not in tables:
        raise ConfigError(f"There is no precision profile {name!r}. {_suggest(name, tables)}")
    title = f"{path.name}, [{name}]"
    values = _read_table(path.name, name, tables[name])
    _check_keys(
        title,
        values,
        Profile,
        given={"name"},
        optional={"accelerator", "parameters", "graphs", "faster_than", "kept_share"},
    )
    parameters = _read_table(title, "parameters", values.get("parameters", {}))
    limits = _read_table(title, "limits", values["limits"])
    _check_keys(f"{title}, limits", limits, Limits)
    profile = Profile(
        name=name,
        description=str(values["description"]),
        target=_read_choice(title, "target", values["target"], get_args(Machine)),
        accelerator=str(values.get("accelerator", "")),
        parameters={key: str(value) for key, value in parameters.items()},
        conversion=_read_choice(title, "conversion", values["conversion"], get_args(Conversion)),
        limits=Limits(**{key: _read_share(f"{title}, limits", key, value) for key, value in limits.items()}),
        graphs=_read_graphs(title, values.get("graphs", list(GRAPHS))),
        faster_than=str(values.get("faster_than", "")),
        kept_share=_read_share(title, "kept_share", values.get("kept_share", 0)),
    )
    if profile.kept_share and profile.conversion != "int8":
        raise ConfigError(f"{title}: kept_share is for the conversion int8, not {profile.conversion}.")
    if profile.faster_than and profile.faster_than not in tables:
        raise ConfigError(
            f"{title}: there is no profile {profile.faster_than!r} for faster_than. "
            f"{_suggest(profile.faster_than, tables)}"
        )
    return profile


@cache
def _read_tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The profiles {path} cannot be read: {error.strerror or error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {str(error).rstrip('.')}.") from error


def _check_keys(
    title: str,
    values: Mapping[str, Any],
    kind: type,
    *,
    given: frozenset[str] | set[str] = frozenset(),
    optional: frozenset[str] | set[str] = frozenset(),
) -> None:
    known = [field.name for field in fields(kind) if field.name not in given]
    for key in values:
        if key not in known:
            raise ConfigError(f"{title}: there is no setting {key}. {_suggest(key, known)}")
    if missing := [key for key in known if key not in values and key not in optional]:
        raise ConfigError(f"{title}: {missing[0]} is missing.")


def _read_share(title: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{title}: {key} must be a number from 0 to 1, not {value!r}.")
    return float(value)


def _read_table(title: str, key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{title}: {key} must be a table.")
    return value


def _read_graphs(title: str, names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not names:
        raise ConfigError(f"{title}: graphs must be a list with at least one name.")
    if unknown := [name for name in names if name not in GRAPHS]:
        raise ConfigError(f"{title}: there is no graph {unknown[0]}. {_suggest(str(unknown[0]), GRAPHS)}")
    return tuple(names)


def _read_choice(title: str, key: str, value: Any, choices: tuple[str, ...]) -> Any:
    if value not in choices:
        raise ConfigError(f"{title}: {key} must be one of {', '.join(choices)}, not {value!r}.")
    return value


def _suggest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {near[0]}?" if near else f"Use one of {', '.join(known)}."
