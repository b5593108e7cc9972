"""A backup of the sidecar's case store: a folder with the files of the store, and a list of them with their hashes.

    backup.json                           when it was made; name, size and SHA-256 of each file
    cases.sqlite                          as in the folder of the store
    models/<fingerprint>/cases.sqlite     the same, for each further model

A restored backup is a store.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from contract.errors import ArtifactError, ConfigError

MANIFEST: Final = "backup.json"
FORMAT: Final = 1
_NAME: Final = re.compile(r"(?:models/[0-9a-f]{64}/)?cases\.sqlite")
_HASH: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class BackupFile:
    """A file of a backup: its name relative to the folder, its size in bytes, its SHA-256 in hexadecimal digits."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class BackupManifest:
    """What a backup holds.

    Attributes:
        made: When it was made, in UTC, as ISO 8601.
        files: The files.
        left_out: Fingerprints of models whose stores were too damaged to be copied.
    """

    made: str
    files: tuple[BackupFile, ...]
    left_out: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the content of `backup.json`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"


def require_file_name(name: str) -> str:
    """Return the name of a file of a store. Raise ArtifactError for another one, such as a path to elsewhere."""
    if not _NAME.fullmatch(name):
        raise ArtifactError("The backup names a file that no case store has.")
    return name


def read_manifest(folder: Path) -> BackupManifest:
    """Read the list of a backup.

    Raises:
        ConfigError: The folder is no backup.
        ArtifactError: The list is damaged, or of a version that this software does not read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ConfigError(f"{folder} is not a backup of a case store: it has no {MANIFEST}.")
    try:
        return _parse(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is damaged, or of a version that this software does not read."
        ) from error


def _parse(values: dict[str, Any]) -> BackupManifest:
    files = [BackupFile(**entry) for entry in values["files"]]
    if values["format"] != FORMAT or not files or len({file.name for file in files}) < len(files):
        raise ValueError
    for file in files:
        require_file_name(file.name)
        if not isinstance(file.size, int) or not _HASH.fullmatch(file.sha256):
            raise ValueError
    return BackupManifest(str(values["made"]), tuple(files), _parse_names(values["left_out"]))


def _parse_names(names: Sequence[str]) -> tuple[str, ...]:
    if not all(_HASH.fullmatch(name) for name in names):
        raise ValueError
    return tuple(names)
