"""Change the versions in a published repository: switch the current version, add and remove versions.

The files of every served model:

    <model>/config.pbtxt       the config that Triton reads
    <model>/<N>/config.pbtxt   the config that version N was published with; Triton ignores it
    <model>/<N>/fingerprint    the fingerprint of the model of version N; a graph must hold the same
    <model>/<N>/...            the graph or the code of version N; no other file for an ensemble
    .published.json            the marker (`contract.repository`)

Triton has one config.pbtxt for all versions of a model. So graphs and preprocessing models serve every version of the
marker side by side (`version_policy`). Each ensemble is pinned to one version of itself and of all its steps, so no
request mixes the encoder of one model with the fusion of another. A switch changes only the ensembles. The config of a
graph holds no value of a single version, not even the fingerprint: Triton reloads a serving model if its config changes
in more than versions and instances, and a new version shall load only its own files.

A change first writes all new files beside the old ones. Then it renames them, the marker last. If a rename fails, the
others are undone. If the process is killed between renames, `settle` restores the state of the marker.

A signature covers one state of the marker. So a signed repository changes only with a key, which signs the new state.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from contract.errors import ArtifactError, ConfigError
from contract.repository import (
    CONFIG_NAME,
    FINGERPRINT,
    GATES,
    MARKER,
    SIGNATURE,
    Published,
    UnpublishedError,
    find_damage,
    read_marker,
    read_published,
    render_marker,
    require_intact,
    require_version_configs,
)

if TYPE_CHECKING:
    from export.signing_keys import SigningKey

SERVER_GATE: Final = "server"
_STAGED: Final = ".new-"  # prefix of directories that Triton ignores, because their names are no numbers


def find_version(repository: Path) -> int:
    """Return the current version; 1 if there is no marker, or one of an older version of this software."""
    try:
        return read_published(repository).version
    except UnpublishedError:
        return 1


def rollback(repository: Path, to: int | None = None, *, key: "SigningKey | None" = None) -> Published:
    """Make another version the current one. A second call with the same version changes nothing.

    The other versions are removed if their files are damaged, because Triton would load them too. A running Triton
    serves the old version until `serving.reload` reloads it.

    Args:
        repository: A published repository.
        to: The new current version. None: the oldest version in the repository.
        key: Signs the new state. A signed repository needs it.

    Returns:
        The content of the repository after the switch.

    Raises:
        ConfigError: The version does not exist, the repository has no other version, it is signed and there is no
            key, or another process is publishing into it.
        ArtifactError: The directory is not a published repository, the files of the version are damaged, or the disk
            refused the write. The repository is unchanged.
    """
    repository = repository.absolute()
    with lock(repository):
        state = read_published(repository)
        target = _choose_version(state, to)
        require_intact(state, [target])
        damaged = find_damage(state, [number for number in state.versions if number != target])
        intact = {number: entry for number, entry in state.versions.items() if number not in damaged}
        changed = replace(state, version=target, versions=intact)
        apply_state(changed, key)
        remove_leftovers(changed)
    return changed


def _choose_version(state: Published, to: int | None) -> int:
    if to is None and state.previous is None:
        raise ConfigError(
            f"{state.repository} holds only version {state.version}, so there is no other version to switch to."
        )
    if to is not None and to not in state.versions:
        numbers = ", ".join(map(str, sorted(state.versions)))
        raise ConfigError(f"{state.repository} has no version {to}. It holds {numbers}.")
    return min(state.versions) if to is None else to


def promote(
    repository: Path, version: int, gate: Mapping[str, Any] | None = None, *, key: "SigningKey | None" = None
) -> Published:
    """Make a version current that was published with `standby`.

    Args:
        repository: A published repository.
        version: The version.
        gate: The runtime of the gate at the server, for the marker.
        key: As in `rollback`.

    Raises:
        ConfigError: The version does not exist, or another process is publishing into the repository.
        ArtifactError: The disk refused the write. The repository is unchanged.
    """
    repository = repository.absolute()
    with lock(repository):
        state = restore(repository)
        entry = dict(state.versions[_choose_version(state, version)])
        if gate:
            entry[GATES] = {**entry.get(GATES, {}), SERVER_GATE: dict(gate)}
        changed = replace(state, version=version, versions={**state.versions, version: entry})
        apply_state(changed, key)
    return changed


def retire(
    repository: Path,
    version: int | None = None,
    tell: Callable[[], object] | None = None,
    *,
    key: "SigningKey | None" = None,
) -> tuple[Published, int]:
    """Remove a version that is not current.

    Args:
        repository: A published repository.
        version: The version. None: the one beside the current version.
        tell: Makes a running server reload the repository, so that it unloads the version. The files are removed after
            this call. If it raises, the repository is restored.
        key: As in `rollback`.

    Returns:
        The content of the repository after the removal, and the removed version.

    Raises:
        ConfigError: The version does not exist or is current, or another process is publishing into the repository.
        ArtifactError: The disk refused the write. The repository is unchanged.
    """
    repository = repository.absolute()
    with lock(repository):
        state = restore(repository)
        retired = _choose_retired(state, version)
        versions = {number: entry for number, entry in state.versions.items() if number != retired}
        changed = replace(state, versions=versions)
        apply_state(changed, key)
        if tell is not None:
            try:
                tell()
            except BaseException:
                apply_state(state, key)
                raise
        remove_leftovers(changed)
    return changed, retired


def _choose_retired(state: Published, version: int | None) -> int:
    if version is None and state.previous is None:
        raise ConfigError(
            f"{state.repository} holds only version {state.version}. The current version cannot be removed."
        )
    if version == state.version:
        raise ConfigError(
            f"Version {version} is the current version of {state.repository}. Switch to another version first with "
            "`cxr export rollback`."
        )
    return _choose_version(state, state.previous if version is None else version)


def withdraw(repository: Path, version: int, *, key: "SigningKey | None" = None) -> Published:
    """Remove a version that cannot be served, and make the other version current. For `key` see `rollback`.

    Raises:
        ConfigError: The version does not exist, or the repository has no other version.
        ArtifactError: The disk refused the write. The repository is unchanged.
    """
    repository = repository.absolute()
    with lock(repository):
        state = restore(repository)
        others = {number: entry for number, entry in state.versions.items() if number != version}
        if version not in state.versions or not others:
            raise ConfigError(
                f"{repository} has no version {version} beside another version, so it cannot be withdrawn."
            )
        changed = replace(state, versions=others, version=next(iter(others)))
        apply_state(changed, key)
        remove_leftovers(changed)
    return changed


def settle(repository: Path) -> None:
    """Restore the state of the marker after an interrupted change. Without an interruption nothing is written.

    The repository of an older version of this software is not changed.

    Raises:
        ConfigError: Another process is publishing into the repository.
        ArtifactError: The directory is not a published repository, the config of a version is missing or damaged, or
            the disk refused the write.
    """
    if "versions" in read_marker(repository):
        with lock(repository.absolute()):
            restore(repository.absolute())


def restore(repository: Path) -> Published:
    """Do the same as `settle` for a caller that holds the lock, and return the content of the repository."""
    state = read_published(repository)
    require_version_configs(state)  # the configs that Triton reads are rendered from these
    apply_state(state)
    remove_leftovers(state)
    return state


@contextlib.contextmanager
def lock(repository: Path) -> Iterator[None]:
    """Lock the repository against changes by other processes. Raise ConfigError if another process holds the lock."""
    try:
        handle = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"{repository} cannot be opened: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"Another process is publishing into {repository}. Wait until it has finished."
            ) from error
        except OSError:
            pass  # the file system has no locks
        yield
    finally:
        os.close(handle)


def list_models(repository: Path) -> list[str]:
    """Return the names of the served models, ensembles last."""
    names = sorted(path.parent.name for path in repository.glob(f"*/{CONFIG_NAME}"))
    return sorted(names, key=lambda name: read_config(repository / name / CONFIG_NAME).platform == "ensemble")


def read_config(path: Path) -> Any:
    """Parse a config.pbtxt. Raise ArtifactError if it is missing or not a config."""
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read. Publish the model again with --replace.") from error
    except text_format.ParseError as error:
        raise ArtifactError(
            f"{path} is not a Triton config: {error}. Publish the model again with --replace."
        ) from error


def pin(config: Any, version: int) -> None:
    """Pin an ensemble to one version of itself and of each of its steps."""
    config.version_policy.specific.versions[:] = [version]
    for step in config.ensemble_scheduling.step:
        step.model_version = version


def apply_state(state: Published, key: "SigningKey | None" = None) -> None:
    """Write the configs and the marker of a state, as far as they differ from the files.

    Graphs and preprocessing models come first, because they serve both versions. Then the ensembles switch. The marker
    and its signature are last.

    Args:
        state: The new content of the repository.
        key: Signs the marker. None: a signed marker must not change.

    Raises:
        ConfigError: The marker is signed and would change, and there is no key.
        ArtifactError: A version lacks a config, or the disk refused the write. The repository is unchanged.
    """
    texts = render(state)
    files = {state.repository / name / CONFIG_NAME: text for name, text in texts.items()}
    marker = state.repository / MARKER
    files[marker] = render_marker(state, texts)
    if key is not None:
        files[state.repository / SIGNATURE] = key.sign(MARKER, files[marker].encode(), state.fingerprint)
    changed = {path: text for path, text in files.items() if _read_text(path) != text}
    if marker in changed:
        require_key(state.repository, key)
    try:
        _switch(changed)
    except OSError as error:
        raise ArtifactError(
            f"Could not write {state.repository}: {error.strerror or error}. It is unchanged."
        ) from error


def require_key(repository: Path, key: "SigningKey | None") -> None:
    """Raise ConfigError if the repository is signed and there is no key to sign its next state."""
    if key is None and (signature := repository / SIGNATURE).exists():
        raise ConfigError(
            f"{repository} is signed, and a change would make its signature invalid. Give --sign KEY to sign the new "
            f"state, or remove {signature} first. The repository is unchanged."
        )


def render(state: Published) -> dict[str, str]:
    """Return the config.pbtxt of each model, ensembles last.

    An ensemble has the config of the current version. A model that serves all versions has that of the newest version.
    """
    newest = max(state.versions)
    models = sorted(path.parents[1].name for path in state.repository.glob(f"*/{newest}/{CONFIG_NAME}"))
    shared, ensembles = {}, {}
    for name in models:
        config = read_config(state.repository / name / str(newest) / CONFIG_NAME)
        if config.platform == "ensemble":
            path = state.repository / name / str(state.version) / CONFIG_NAME
            read_config(path)  # raises an error for a damaged file
            ensembles[name] = path.read_text(encoding="utf-8")
        else:
            numbers = sorted(state.versions)
            config.version_policy.specific.versions[:] = numbers
            config.parameters.pop(FINGERPRINT, None)
            head = f"# Written by `cxr export`: versions {', '.join(map(str, numbers))}.\n"
            shared[name] = head + format_config(config)
    return {**shared, **ensembles}


def format_config(config: Any) -> str:
    """Return a `ModelConfig` as the text of a config.pbtxt."""
    return str(text_format.MessageToString(config))


def stage_directory(model: Path, version: int) -> Path:
    """Create a directory in a model's directory. A rename turns it into the directory of the version."""
    path = model / f"{_STAGED}{version}"
    path.mkdir(parents=True)
    path.chmod(0o755)
    return path


def remove_leftovers(state: Published) -> None:
    """Remove the directories of other versions, and the files of an interrupted change. Errors are ignored."""
    for model in (path.parent for path in state.repository.glob(f"*/{CONFIG_NAME}")):
        for entry in model.iterdir():
            old = entry.name.isdecimal() and int(entry.name) not in state.versions
            if old or entry.name.startswith((_STAGED, f".{CONFIG_NAME}")):
                _remove(entry)
    for entry in state.repository.glob(f"{MARKER}.*"):
        if entry.name != SIGNATURE:
            _remove(entry)


def _switch(files: Mapping[Path, str]) -> None:
    """Give each file its new text. All texts are written beside the files first, so a full disk changes no file."""
    done: list[Path] = []
    try:
        for path, text in files.items():
            _write_synced(_name(path, "new"), text)
            if path.exists():
                _keep_copy(path, _name(path, "old"))
        for path in files:
            done.append(path)  # before the rename, because an interrupt may come between the two
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
    """Restore the earlier file by a rename, which a full disk allows. Remove a file that did not exist before."""
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
    except OSError:  # the file system has no hard links
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
