"""Versions of the model in one published repository: which there are, which one answers, and how that changes.

On disk, for every served model:

    <model>/config.pbtxt       what Triton reads now
    <model>/<N>/config.pbtxt   the config that version N was published with; Triton passes over it
    <model>/<N>/fingerprint    the model that version N is of; a graph must hold the same
    <model>/<N>/...            the graph or code of version N; nothing for an ensemble
    .published.json            the marker (`contract.repository`)

Triton has one config.pbtxt for all versions of a model. Graphs and preprocessing therefore serve every version of
the marker side by side (`version_policy`), and the ensembles are the switch: each is pinned, step by step, to
one version, so no request mixes the encoder of one model with the fusion of another. The config of a graph says
nothing of one version alone, its `fingerprint` least of all: Triton loads again what serves when its config
changes in anything but versions and instances, and a new version is to cost the loading of itself only.

A change is staged completely beside the files and then consists of renames, the marker last. A rename that fails is
undone. After a kill in their midst `settle` makes everything again what the marker says.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from contract.errors import ArtifactError, ConfigError
from contract.repository import (
    CONFIG_NAME,
    FINGERPRINT,
    GATES,
    MARKER,
    Published,
    UnpublishedError,
    find_damage,
    read_marker,
    read_published,
    render_marker,
    require_intact,
    require_version_configs,
)

SERVER_GATE: Final = "server"
_STAGED: Final = ".new-"  # a directory that is no number, and hidden: Triton passes over it


def find_version(repository: Path) -> int:
    """Return the version that answers; 1 where there is no marker, or one of an older version of this software."""
    try:
        return read_published(repository).version
    except UnpublishedError:
        return 1


def rollback(repository: Path, to: int | None = None) -> Published:
    """Make another version answer; where it answers already nothing is changed, so that a repetition is harmless.

    Args:
        repository: A published repository.
        to: The version; None is the oldest one that is kept. Another version whose files are damaged is removed:
            Triton would load it too.

    Returns:
        What the repository holds now. A running Triton goes on as it was until `serving.reload` tells it.

    Raises:
        ConfigError: There is no such version, or no other one, or another process is publishing into it.
        ArtifactError: The files of that version are damaged, or the disk refused the write; the repository is as it
            was. Or it is not a published one.
    """
    repository = repository.absolute()
    with lock(repository):
        state = read_published(repository)
        target = _choose_version(state, to)
        require_intact(state, [target])
        damaged = find_damage(state, [number for number in state.versions if number != target])
        kept = {number: entry for number, entry in state.versions.items() if number not in damaged}
        changed = replace(state, version=target, versions=kept)
        apply_state(changed)
        remove_leftovers(changed)
    return changed


def _choose_version(state: Published, to: int | None) -> int:
    if to is None and state.previous is None:
        raise ConfigError(
            f"{state.repository} holds version {state.version} only: there is nothing to go back to."
        )
    if to is not None and to not in state.versions:
        there = ", ".join(map(str, sorted(state.versions)))
        raise ConfigError(f"{state.repository} has no version {to}: it holds {there}.")
    return min(state.versions) if to is None else to


def promote(repository: Path, version: int, gate: Mapping[str, Any] | None = None) -> Published:
    """Let a version answer that waits beside the other one.

    Args:
        repository: A published repository.
        version: The version.
        gate: What the gate at the server ran on; for the marker.

    Raises:
        ConfigError: There is no such version, or another process is publishing into it.
        ArtifactError: The disk refused the write; the repository is as it was.
    """
    repository = repository.absolute()
    with lock(repository):
        state = restore(repository)
        entry = dict(state.versions[_choose_version(state, version)])
        if gate:
            entry[GATES] = {**entry.get(GATES, {}), SERVER_GATE: dict(gate)}
        changed = replace(state, version=version, versions={**state.versions, version: entry})
        apply_state(changed)
    return changed


def retire(
    repository: Path, version: int | None = None, tell: Callable[[], object] | None = None
) -> tuple[Published, int]:
    """Remove the version that does not answer.

    Args:
        repository: A published repository.
        version: The version; None is the one beside that which answers.
        tell: Makes a running server take what the repository says then, so that it unloads the version. The files
            stay until it has, and where it raises everything is as it was.

    Returns:
        What the repository holds now, and the version that is gone.

    Raises:
        ConfigError: There is no such version, or it answers, or another process is publishing into it.
        ArtifactError: The disk refused the write; the repository is as it was.
    """
    repository = repository.absolute()
    with lock(repository):
        state = restore(repository)
        gone = _choose_retired(state, version)
        kept = {number: entry for number, entry in state.versions.items() if number != gone}
        changed = replace(state, versions=kept)
        apply_state(changed)
        if tell is not None:
            try:
                tell()
            except BaseException:
                apply_state(state)
                raise
        remove_leftovers(changed)
    return changed, gone


def _choose_retired(state: Published, version: int | None) -> int:
    if version is None and state.previous is None:
        raise ConfigError(f"{state.repository} holds version {state.version} only, which answers.")
    if version == state.version:
        raise ConfigError(
            f"Version {version} of {state.repository} answers: let another one answer first (`cxr export rollback`)."
        )
    return _choose_version(state, state.previous if version is None else version)


def withdraw(repository: Path, version: int) -> Published:
    """Remove a version that cannot be served; the other one answers.

    Raises:
        ConfigError: There is no such version, or no other one.
        ArtifactError: The disk refused the write; the repository is as it was.
    """
    repository = repository.absolute()
    with lock(repository):
        state = restore(repository)
        kept = {number: entry for number, entry in state.versions.items() if number != version}
        if version not in state.versions or not kept:
            raise ConfigError(f"{repository} has no version {version} beside another one.")
        changed = replace(state, versions=kept, version=next(iter(kept)))
        apply_state(changed)
        remove_leftovers(changed)
    return changed


def settle(repository: Path) -> None:
    """Finish what an interrupted publish left: afterwards everything is as the marker says.

    Nothing is written where nothing was interrupted. A repository of an older version is left as it is.

    Raises:
        ConfigError: Another process is publishing into it.
        ArtifactError: It is no published repository, the config of a version is missing or damaged, or the disk
            refused the write.
    """
    if "versions" in read_marker(repository):
        with lock(repository.absolute()):
            restore(repository.absolute())


def restore(repository: Path) -> Published:
    """As `settle`, for a caller that holds the lock: return what the repository holds, and make it so."""
    state = read_published(repository)
    require_version_configs(state)  # what Triton reads is made of them
    apply_state(state)
    remove_leftovers(state)
    return state


@contextlib.contextmanager
def lock(repository: Path) -> Iterator[None]:
    """Keep other processes from changing the repository meanwhile; ConfigError when one is at it."""
    try:
        handle = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"{repository} cannot be opened: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"Another process is publishing into {repository}: wait until it is done."
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def list_models(repository: Path) -> list[str]:
    """Return the names of the served models, ensembles last: they are what switches."""
    names = sorted(path.parent.name for path in repository.glob(f"*/{CONFIG_NAME}"))
    return sorted(names, key=lambda name: read_config(repository / name / CONFIG_NAME).platform == "ensemble")


def read_config(path: Path) -> Any:
    """Parse a config.pbtxt; raises ArtifactError when it is missing or is none."""
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: publish again with --replace.") from error
    except text_format.ParseError as error:
        raise ArtifactError(f"{path} is not a Triton config: {error}.") from error


def pin(config: Any, version: int) -> None:
    """Bind an ensemble to one version of itself and of each of its steps."""
    config.version_policy.specific.versions[:] = [version]
    for step in config.ensemble_scheduling.step:
        step.model_version = version


def apply_state(state: Published) -> None:
    """Write every config and the marker as `state` says, those that differ, in the order in which it is safe.

    Graphs and preprocessing come first: they serve both versions. Then the ensembles switch, then the marker.

    Raises:
        ArtifactError: A version lacks a config, or the disk refused the write; all is as it was.
    """
    texts = render(state)
    files = {state.repository / name / CONFIG_NAME: text for name, text in texts.items()}
    files[state.repository / MARKER] = render_marker(state, texts)
    changed = {path: text for path, text in files.items() if _read_text(path) != text}
    try:
        _switch(changed)
    except OSError as error:
        raise ArtifactError(
            f"Could not write {state.repository}: {error.strerror or error}. It is as it was."
        ) from error


def render(state: Published) -> dict[str, str]:
    """Return the config.pbtxt of each model, ensembles last.

    An ensemble has the config that the current version was published with, a shared model that of the newest.
    """
    newest = max(state.versions)
    models = sorted(path.parents[1].name for path in state.repository.glob(f"*/{newest}/{CONFIG_NAME}"))
    shared, switches = {}, {}
    for name in models:
        config = read_config(state.repository / name / str(newest) / CONFIG_NAME)
        if config.platform == "ensemble":
            path = state.repository / name / str(state.version) / CONFIG_NAME
            read_config(path)  # is it whole?
            switches[name] = path.read_text(encoding="utf-8")
        else:
            shared[name] = _render_shared(config, state)
    return {**shared, **switches}


def _render_shared(config: Any, state: Published) -> str:
    numbers = sorted(state.versions)
    config.version_policy.specific.versions[:] = numbers
    config.parameters.pop(FINGERPRINT, None)
    return f"# Written by `cxr export`: versions {', '.join(map(str, numbers))}.\n" + format_config(config)


def format_config(config: Any) -> str:
    """Return a `ModelConfig` as config.pbtxt has it."""
    return str(text_format.MessageToString(config))


def stage_directory(model: Path, version: int) -> Path:
    """Make a directory in a model's own, on the same file system, that becomes its version by a rename."""
    path = model / f"{_STAGED}{version}"
    path.mkdir(parents=True)
    path.chmod(0o755)
    return path


def remove_leftovers(state: Published) -> None:
    """Remove version directories that the marker does not name, and what an interruption left; best effort."""
    for model in (path.parent for path in state.repository.glob(f"*/{CONFIG_NAME}")):
        for entry in model.iterdir():
            old = entry.name.isdecimal() and int(entry.name) not in state.versions
            if old or entry.name.startswith((_STAGED, f".{CONFIG_NAME}")):
                _remove(entry)
    for entry in state.repository.glob(f"{MARKER}.*"):
        _remove(entry)


def _switch(files: Mapping[Path, str]) -> None:
    """Give each file its new text: all are written beside first, so that a full disk stops before any is changed."""
    done: list[Path] = []
    try:
        for path, text in files.items():
            _write_synced(_name(path, "new"), text)
            if path.exists():
                _keep_copy(path, _name(path, "old"))
        for path in files:
            done.append(path)  # before: an interrupt may come between the rename and the note
            _name(path, "new").replace(path)
    except BaseException:
        for path in reversed(done):
            _undo(path)
        raise
    finally:
        for path in files:
            _remove(_name(path, "new"))
            _remove(_name(path, "old"))


def _undo(path: Path) -> None:
    """Put the earlier file back by a rename, which a full disk allows; a file that was not there goes."""
    if (old := _name(path, "old")).exists():
        old.replace(path)
    elif not _name(path, "new").exists():
        path.unlink(missing_ok=True)


def _name(path: Path, ending: str) -> Path:
    prefix = "" if path.name.startswith(".") else "."
    return path.with_name(f"{prefix}{path.name}.{ending}")


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _keep_copy(path: Path, copy: Path) -> None:
    copy.unlink(missing_ok=True)
    try:
        copy.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copyfile(path, copy)


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
