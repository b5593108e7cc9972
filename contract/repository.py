"""The published model repository on disk: its marker, its versions, and checks of its files.

    .published.json            the marker: the current version, and fingerprint, date and files of each
    <model>/config.pbtxt       what Triton reads; rendered from the versions, its hash is in the marker
    <model>/<N>/...            version N; every file's hash is in the marker
    .published.json.minisig    signature of the marker, if the repository is signed (`contract.signatures`)

A weight with a flipped bit still loads and gives wrong answers under the right fingerprint. So `verify` hashes all
files before Triton loads them. The marker holds its own checksum.

    python -m contract.repository DIRECTORY      exit code 0: intact; 3: damaged or not signed (see the message)
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from contract.bundle import compute_sha256
from contract.errors import ArtifactError, CxrError
from contract.signatures import ENVIRONMENT, OPTION, SUFFIX, TrustedKeys
from contract.tensors import MODELS

MARKER: Final = ".published.json"  # Triton reads only directories and ignores this file
SIGNATURE: Final = f"{MARKER}{SUFFIX}"
CONFIG_NAME: Final = "config.pbtxt"
REPOSITORY_ID: Final = "repository_id"  # in the marker, and a config parameter of each ensemble
FINGERPRINT: Final = "fingerprint"
GATES: Final = "gates"  # in the record of a version: gate -> the runtime, provider and precision it ran on
_STUDY: Final = "predict_study"
_CHECKSUM, _CONFIGS = "checksum", "configs"
_OF_ONE_VERSION: Final = frozenset(["files", "created", GATES])
_SHORT: Final = 12  # digits of a hash in a message
_THREADS: Final = 4  # hashlib releases the interpreter lock
_SHOWN: Final = 3  # damaged files in one message
# The keys of an older marker without a checksum. A marker with other keys and no checksum is damaged.
_KEYS_WITHOUT_CHECKSUM: Final = frozenset(
    [
        "fingerprint",
        "target",
        "profile",
        "variant",
        "rate_limited",
        "sizes",
        "labels",
        "layout",
        "version",
        "versions",
    ]
)


class UnpublishedError(ArtifactError):
    """The directory was not published by cxr, or by an older version that kept one model."""


@dataclass(frozen=True)
class Published:
    """The content of a repository.

    `versions` maps each version number to its record: fingerprint, created (ISO 8601, UTC), profile, target, variant,
    files (path in the repository -> SHA-256), gates (the runtime of each). `details` holds the values that all
    versions share: sizes, labels, layout.
    `configs` (path -> SHA-256) are the configs that Triton reads; None if an older marker does not list them.
    """

    repository: Path
    version: int  # the version that answers
    versions: Mapping[int, Mapping[str, Any]]
    details: Mapping[str, Any]
    configs: Mapping[str, str] | None = field(default=None, compare=False)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model that answers."""
        return str(self.versions[self.version][FINGERPRINT])

    @property
    def rate_limited(self) -> bool:
        """Whether the configs of the version that answers hold rate limits."""
        return self.versions[self.version].get("rate_limited") is True

    @property
    def newest(self) -> int:
        """The version that was published last. It may wait beside the version that answers."""
        return max(self.versions)

    @property
    def previous(self) -> int | None:
        """The other kept version, or None."""
        return next((number for number in sorted(self.versions) if number != self.version), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the marker; fingerprint, target, profile and variant are the current version's."""
        now = self.versions[self.version]
        return {
            **self.details,
            **{key: value for key, value in now.items() if key not in _OF_ONE_VERSION},
            "version": self.version,
            "versions": {str(number): dict(entry) for number, entry in sorted(self.versions.items())},
        }


def read_published(repository: Path, trust: TrustedKeys | None = None) -> Published:
    """Read the marker of a repository.

    Args:
        repository: Its directory.
        trust: The keys of which one must have signed the marker. This is checked first. None: no signature is needed.

    Raises:
        SignatureError: No key of `trust` signed this marker.
        UnpublishedError: The directory was not published by cxr, or by an older version of it.
        ArtifactError: The marker is damaged.
    """
    content = read_marker(repository, trust)
    if "versions" not in content:
        raise UnpublishedError(
            f"{repository} was published by an older version of cxr, which kept one model. Publish into a new "
            "directory, or replace the whole repository with --replace."
        )
    configs = content.pop(_CONFIGS, None)
    try:
        versions = {int(number): dict(entry) for number, entry in content.pop("versions").items()}
        current = int(content.pop("version"))
        keys = set(versions[current])
        details = {key: value for key, value in content.items() if key not in keys}
        if any(
            not isinstance(entry[FINGERPRINT], str) or not entry[FINGERPRINT] for entry in versions.values()
        ):
            raise TypeError
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _report_marker(repository) from error
    _require_chains(repository)
    return Published(repository, current, versions, details, configs)


def _require_chains(repository: Path) -> None:
    """Refuse ensembles with parallel steps; `contract.tensors` explains why."""
    if (repository / _STUDY).is_dir() and not (repository / MODELS[_STUDY].steps[0]).is_dir():
        raise ArtifactError(
            f"{repository} was published by an older version of cxr, whose ensembles can stop Triton when a request "
            "fails. Publish it again with `cxr export --replace`."
        )


def read_marker(repository: Path, trust: TrustedKeys | None = None) -> dict[str, Any]:
    """Check the marker's signature and checksum; return the other content. For errors see `read_published`."""
    path = repository / MARKER
    try:
        text = path.read_bytes()
        if trust is not None:
            trust.check(path, text)
        content = json.loads(text.decode())
    except FileNotFoundError as error:
        raise UnpublishedError(
            f"{repository} was not published by cxr (it has no {MARKER}). Run `cxr export` first."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise _report_marker(repository, f" ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise _report_marker(repository)
    stated = content.pop(_CHECKSUM, None)
    if stated is None and "versions" in content and not content.keys() <= _KEYS_WITHOUT_CHECKSUM:
        raise _report_marker(repository)
    if stated is not None and stated != (checksum := _compute_checksum(content)):
        raise _report_marker(
            repository,
            f" (its content has checksum {checksum[:_SHORT]}, but it states {str(stated)[:_SHORT]})",
        )
    return content


def render_marker(state: Published, configs: Mapping[str, str]) -> str:
    """Return the text of the marker.

    Args:
        state: Content of the repository.
        configs: Model name -> text of its config.pbtxt.
    """
    hashes = {
        f"{name}/{CONFIG_NAME}": hashlib.sha256(text.encode()).hexdigest() for name, text in configs.items()
    }
    content = {**state.to_dict(), _CONFIGS: hashes}
    return json.dumps({**content, _CHECKSUM: _compute_checksum(content)}, indent=2, sort_keys=True) + "\n"


def _compute_checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _report_marker(repository: Path, detail: str = "") -> ArtifactError:
    return ArtifactError(
        f"{repository / MARKER} is damaged{detail}. Copy the repository again from an intact copy, or publish "
        "again with --replace."
    )


def hash_version(repository: Path, version: int) -> dict[str, str]:
    """Return path in the repository -> SHA-256 for the files of one version."""
    return hash_files(repository, list_files(repository, version))


def list_files(repository: Path, version: int) -> list[str]:
    """Return the current files of one version, as paths in the repository."""
    paths = (path for path in repository.glob(f"*/{version}/**/*") if path.is_file() or path.is_symlink())
    return sorted(path.relative_to(repository).as_posix() for path in paths)


def hash_files(repository: Path, names: Iterable[str]) -> dict[str, str]:
    """Return path -> SHA-256, or "" for a missing file.

    Several files are hashed in parallel: 1.5 GB take about a second on two cores if the files are in memory.

    Raises:
        ArtifactError: A file cannot be read.
    """
    names = list(names)

    def hash_one(name: str) -> str:
        try:
            return compute_sha256(repository / name)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return ""
        except OSError as error:
            raise ArtifactError(f"{repository / name} cannot be read: {error.strerror or error}.") from error

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(hash_one, names), strict=True))


def verify(repository: Path, trust: TrustedKeys | None = None) -> Published:
    """Check every file of a repository against its marker; return the content of the marker.

    Every version is checked, because Triton loads all of them. For `trust` see `read_published`.

    Raises:
        SignatureError: No key of `trust` signed the marker. No other file was read.
        UnpublishedError: The repository was not published by cxr.
        ArtifactError: A file is damaged, missing or unexpected, or the marker is damaged. The message gives the file,
            both hashes and what to do.
    """
    state = read_published(repository, trust)
    if state.configs is None:
        raise ArtifactError(
            f"{repository} was published by an older version of cxr, whose marker lacks the hashes of some files. "
            f"`cxr export rollback {repository} --to {state.version}` checks its versions and writes a new marker."
        )
    require_intact(state)
    if details := _compare(repository, state.configs):
        raise ArtifactError(
            f"{_join(details)} `cxr export rollback {repository} --to {state.version}` writes the configs again."
        )
    _require_no_other_model(state, state.configs)
    return state


def find_damage(state: Published, versions: Iterable[int] | None = None) -> dict[int, list[str]]:
    """Return version -> sentences about its damaged files; empty if all versions are intact."""
    damage: dict[int, list[str]] = {}
    for number in sorted(state.versions if versions is None else versions, reverse=True):
        stated = state.versions[number].get("files")
        if not isinstance(stated, dict):
            raise _report_marker(state.repository)
        models = {name.partition("/")[0] for name in stated}
        present = {name for name in list_files(state.repository, number) if name.partition("/")[0] in models}
        extra = present - set(stated)
        details = _compare(state.repository, stated)
        details += [
            f"{state.repository / name} was not published and must be removed." for name in sorted(extra)
        ]
        if details:
            damage[number] = details
    return damage


def require_intact(state: Published, versions: Iterable[int] | None = None) -> None:
    """Raise ArtifactError, with the damage and what to do, unless these versions (default: all) are as published."""
    damaged = find_damage(state, versions)
    if damaged:
        number, details = next(iter(damaged.items()))
        raise ArtifactError(f"{_join(details)} {_advise(state, number, damaged)}")


def require_version_configs(state: Published) -> None:
    """Like `require_intact`, but only for the config.pbtxt of each version. Triton's configs are made from these."""
    for number, entry in state.versions.items():
        files = entry.get("files", {})
        configs = {name: value for name, value in files.items() if name.endswith(f"/{number}/{CONFIG_NAME}")}
        if details := _compare(state.repository, configs):
            raise ArtifactError(f"{_join(details)} {_advise(state, number, {number: details})}")


def _require_no_other_model(state: Published, configs: Mapping[str, str]) -> None:
    models = {name.partition("/")[0] for name in configs}
    present = {path.name for path in state.repository.iterdir() if path.is_dir()}
    if extra := sorted(
        present - models
    ):  # hidden directories too: Triton would load .ipynb_checkpoints as a model
        raise ArtifactError(
            f"{state.repository / extra[0]} was not published, and Triton would load it. Move it elsewhere."
        )


def _compare(repository: Path, stated: Mapping[str, str]) -> list[str]:
    details = []
    for name, actual in hash_files(repository, stated).items():
        if not actual:
            details.append(f"{repository / name} is missing.")
        elif actual != stated[name]:
            details.append(
                f"{repository / name} differs from the published file: its SHA-256 is {actual[:_SHORT]}, "
                f"the published one was {str(stated[name])[:_SHORT]}."
            )
    return details


def _join(details: Sequence[str]) -> str:
    more = f" {len(details) - _SHOWN} more files are damaged." if len(details) > _SHOWN else ""
    return " ".join(details[:_SHOWN]) + more


def _advise(state: Published, number: int, damaged: Mapping[int, object]) -> str:
    intact = [other for other in sorted(state.versions) if other not in damaged and other != number]
    advice = "Copy the repository again from an intact copy, or publish again with --replace."
    if intact:
        advice += (
            f" `cxr export rollback {state.repository} --to {intact[-1]}` switches to version {intact[-1]} and removes "
            "a damaged version."
        )
    return advice


def main(arguments: Sequence[str] | None = None) -> int:
    """Check one repository; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m contract.repository",
        description="Check that the files of a model repository are as published.",
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument(
        OPTION,
        action="append",
        metavar="PUBKEY",
        help=f"Public key, or its file, that must have signed the repository. Repeatable. Default: {ENVIRONMENT}.",
    )
    options = parser.parse_args(arguments)
    try:
        verify(options.repository, TrustedKeys.find(options.require_signature))
    except CxrError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
