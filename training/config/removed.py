"""Settings that older versions had and this one does not.

A config that an older version wrote names every setting. A removed setting that was switched off changed nothing, so it
is left out. One that was switched on is refused, because the run would be another one. A bundle that was trained with
it is still read: its weights are what they are.
"""

from collections.abc import Mapping
from typing import Any, Final

from contract.errors import ConfigError

# Dotted name -> value with which the setting did nothing; None: it depended on another removed setting alone.
REMOVED: Final[Mapping[str, Any]] = {
    "augment.occlusion": 0.0,
    "loss.labels": "bce_focal",
    "loss.asymmetric_gammas": None,
    "loss.asymmetric_clip": None,
    "loss.headings_weight": 0.0,
    "pretraining.epochs": 0,
    "pretraining.learning_rate": None,
    "pretraining.masked_share": None,
}


def drop_removed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings (section -> setting -> value) without the removed ones, and without sections of nothing else."""
    remaining: dict[str, Any] = {}
    for section, settings in values.items():
        if not isinstance(settings, Mapping):
            remaining[section] = settings
            continue
        rest = {name: value for name, value in settings.items() if f"{section}.{name}" not in REMOVED}
        if rest or not settings:
            remaining[section] = rest
    return remaining


def list_used(values: Mapping[str, Any]) -> list[str]:
    """Return the dotted names of the removed settings that are switched on."""
    return [
        title
        for section, settings in values.items()
        if isinstance(settings, Mapping)
        for name, value in settings.items()
        if (title := f"{section}.{name}") in REMOVED and REMOVED[title] not in (None, value)
    ]


def refuse_removed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without the removed ones.

    Raises:
        ConfigError: A removed setting is switched on.
    """
    if used := list_used(values):
        raise ConfigError(f"The setting {used[0]} was removed (docs/training.md says why). Leave it out.")
    return drop_removed(values)
