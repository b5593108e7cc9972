"""Write a repository for Triton from the templates in `model_repository/` and the graphs of a bundle.

A new repository is written beside its path and renamed at the end. A repository that was published before gets a new
version of every model beside the current version (`export.versions` describes switch and rollback). Every config holds
the fingerprint. The `predict_*` configs hold the values that a client needs to read the answers: labels, thresholds,
sizes. `export/targets.toml` holds the settings of each target and variant.
"""

import datetime
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import replace as change
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from contract.bundle import Bundle, require_same_fingerprint, write_directory
from contract.errors import ArtifactError, ConfigError
from contract.labels import LABEL_KEYS
from contract.repository import (
    CONFIG_NAME,
    GATES,
    MARKER,
    REPOSITORY_ID,
    SIGNATURE,
    Published,
    hash_version,
    read_published,
    render_marker,
    require_intact,
)
from contract.runtime.session import FINGERPRINT_FILE
from contract.steps import TOKENIZER_STEPS
from contract.tensors import INPUT_IDS, TEXT_GATE
from export.configs import TEMPLATES, Deployment, fill_config, find_difference, read_token_limits
from export.gates.server import STORED, StoredAnswers
from export.graphs.checks import name_weights, read_fingerprint, read_sizes
from export.targets import is_rate_limited
from export.versions import (
    apply_state,
    format_config,
    lock,
    pin,
    read_config,
    remove_leftovers,
    render,
    require_key,
    restore,
    stage_directory,
)

if TYPE_CHECKING:
    from export.signing_keys import SigningKey

FIRST_VERSION: Final = 1
_CODE: Final = "model.py"


@dataclass(frozen=True)
class _NewVersion:
    """The content of a new version, and the files and records that follow from it."""

    bundle: Bundle
    graphs: Mapping[str, Path]
    deployment: Deployment
    gates: Mapping[str, Any] = field(default_factory=dict)  # gate -> its runtime, for the marker
    stored: StoredAnswers | None = None
    repository_id: str = ""  # differs between two repositories of the same model
    key: "SigningKey | None" = None  # signs the marker

    def check_graphs(self) -> None:
        """Raise ArtifactError for a missing graph, and FingerprintError for a graph of another bundle."""
        names = self.deployment.graphs
        if missing := [name for name in names if name not in self.graphs]:
            raise ArtifactError(f"No graph was given for {', '.join(missing)}.")
        for name in names:
            require_same_fingerprint(
                self.bundle.fingerprint,
                read_fingerprint(self.graphs[name]),
                expected_from=str(self.bundle.path),
                found_from=str(self.graphs[name]),
            )

    def check_fits(self, state: Published) -> None:
        """Raise ConfigError unless this version can share the config of each model with the current version."""
        target = str(state.versions[state.version].get("target"))
        pairs: list[tuple[str, Any, Any]] = [("target", target, self.deployment.target)]
        pairs += [(key, state.details.get(key), value) for key, value in self.describe().items()]
        for name, current, new in pairs:
            if current != new:
                raise _refuse(
                    state.repository, f"its models have {name} {current}, but this model has {name} {new}"
                )
        for name, spec in self.deployment.models.items():
            old = read_config(state.repository / name / str(state.version) / CONFIG_NAME)
            config = fill_config(self.bundle, spec, self.deployment)
            if (field_name := find_difference(old, config)) is not None:
                raise _refuse(
                    state.repository,
                    f"the config of its {name} and that of this model differ in {field_name}",
                )

    def describe(self) -> dict[str, Any]:
        """Return the values of the marker in which all versions of a repository agree."""
        return {
            "sizes": read_sizes(self.bundle),
            "labels": list(LABEL_KEYS),
            "layout": self.deployment.layout,
        }

    def make_record(self, repository: Path, number: int) -> dict[str, Any]:
        """Return the marker's record of this version, whose files are written."""
        deployment = self.deployment
        now = datetime.datetime.now(datetime.timezone.utc)
        return {
            "fingerprint": self.bundle.fingerprint,
            "created": now.isoformat(timespec="seconds"),
            "target": deployment.target,
            "variant": deployment.variant,
            "profile": deployment.profile,
            "rate_limited": is_rate_limited(deployment.target, deployment.variant),
            **({GATES: dict(self.gates)} if self.gates else {}),
            "files": hash_version(repository, number),
        }

    def write_model(self, directory: Path, name: str, number: int) -> None:
        """Write the files of one model into the directory of the version."""
        spec = self.deployment.models[name]
        directory.mkdir(parents=True, exist_ok=True)
        config = fill_config(self.bundle, spec, self.deployment)
        if spec.backend == "ensemble":
            pin(config, number)
            config.parameters[REPOSITORY_ID].string_value = self.repository_id
            if self.stored and (kind := _find_tensor_kind(name)) in self.stored.answers:
                config.parameters[STORED].string_value = self.stored.write(kind)
        head = f"# Written by `cxr export` for model {self.bundle.fingerprint[:12]}, version {number}.\n"
        (directory / CONFIG_NAME).write_text(head + format_config(config), encoding="utf-8")
        (directory / FINGERPRINT_FILE).write_text(f"{self.bundle.fingerprint}\n", encoding="ascii")
        if spec.backend == "onnxruntime":
            _copy_graph(self.graphs[name], directory)
        elif spec.backend == "python":
            _copy_code(directory)
        if INPUT_IDS in spec.inputs and spec.backend != "ensemble" and name != TEXT_GATE:
            read_token_limits(self.bundle).write(directory)
        if name in TOKENIZER_STEPS:
            shutil.copyfile(self.bundle.tokenizer_path, directory / self.bundle.tokenizer_path.name)

    def write_repository(self, directory: Path) -> None:
        """Write a new repository with this version into an empty directory."""
        for name in self.deployment.models:
            self.write_model(directory / name / str(FIRST_VERSION), name, FIRST_VERSION)
        versions = {FIRST_VERSION: self.make_record(directory, FIRST_VERSION)}
        details = self.describe() | {REPOSITORY_ID: self.repository_id}
        state = Published(directory, FIRST_VERSION, versions, details)
        configs = render(state)
        for name, text in configs.items():
            (directory / name / CONFIG_NAME).write_text(text, encoding="utf-8")
        marker = render_marker(state, configs)
        (directory / MARKER).write_text(marker, encoding="utf-8")
        if self.key is not None:
            signature = self.key.sign(MARKER, marker.encode(), state.fingerprint)
            (directory / SIGNATURE).write_text(signature, encoding="utf-8")

    def add_models(self, repository: Path, number: int) -> None:
        """Write the version directory of every model under a temporary name, then rename them all."""
        staged = {}
        for name in self.deployment.models:
            staged[name] = stage_directory(repository / name, number)
            self.write_model(staged[name], name, number)
        for name, path in staged.items():
            path.rename(repository / name / str(number))


def publish(
    bundle: Bundle,
    graphs: Mapping[str, Path],
    repository: Path,
    deployment: Deployment | None = None,
    *,
    replace: bool = False,
    standby: bool = False,
    gates: Mapping[str, Any] | None = None,
    stored: StoredAnswers | None = None,
    key: "SigningKey | None" = None,
) -> Path:
    """Write a new repository, or a new version of every model into a published repository. On an error nothing changes.

    The new version answers after the next load. The version that was current before stays, older versions are removed.

    Args:
        bundle: The verified bundle.
        graphs: Graph name -> ONNX file made from this bundle (`export.graphs`).
        repository: Directory of the repository. Files that this function did not publish are never changed.
        deployment: Settings of the models. None: fp32 on the processor.
        replace: Replace a published repository, with all its versions.
        standby: Do not switch to the new version. Triton loads it beside the current version until
            `export.versions.promote`. The first version of a repository is always current.
        gates: Gate -> its runtime, provider and precision, for the marker.
        stored: The answers for the gate at the server (`export.gates.server`).
        key: Signs the repository. A signed repository takes no version without it.

    Returns:
        The repository's absolute path.

    Raises:
        ConfigError: `repository` was not published by this function, or holds models that cannot share a config with
            this model; or a setting of the bundle or the deployment is unknown.
        FingerprintError: A graph comes from another bundle.
        ArtifactError: A graph or a template is missing, or the disk refused the write.
    """
    new = _NewVersion(bundle, graphs, deployment or Deployment(), gates or {}, stored, uuid.uuid4().hex, key)
    new.deployment.check()
    repository = repository.absolute()
    exists = check_replaceable(repository)
    new.check_graphs()
    if exists and not replace and (repository / MARKER).is_file():
        _add_version(repository, new, standby=standby)
    elif not exists:
        with write_directory(repository) as scratch:
            new.write_repository(scratch)
    else:
        fresh = _reserve_name(repository)
        with write_directory(fresh) as scratch:
            new.write_repository(scratch)
        _swap(fresh, repository)
    return repository


def check_replaceable(repository: Path) -> bool:
    """Return whether a published repository or an empty directory exists; False if the path does not exist.

    Raises:
        ConfigError: The path is something else.
    """
    if not repository.exists() and not repository.is_symlink():
        return False
    if repository.is_dir() and not repository.is_symlink():
        if (repository / MARKER).is_file() or not any(repository.iterdir()):
            return True
        raise ConfigError(
            f"{repository} was not published by cxr, because it has no {MARKER}. Choose another directory."
        )
    raise ConfigError(f"{repository} is not a directory. Choose another path.")


def check_fits(
    bundle: Bundle, repository: Path, deployment: Deployment, *, key: "SigningKey | None" = None
) -> None:
    """Raise ConfigError if the bundle cannot become a new version in a published repository. For `key` see `publish`.

    A path without a published repository is always accepted.
    """
    if (repository / MARKER).is_file():
        require_key(repository, key)
        _NewVersion(bundle, {}, deployment).check_fits(read_published(repository))


def _add_version(repository: Path, new: _NewVersion, *, standby: bool) -> None:
    """Add a new version beside the current version. On an error the repository is unchanged."""
    with lock(repository):
        state = restore(repository)  # undoes an interrupted change
        require_intact(state, [state.version])  # Triton loads it beside the new version
        new.check_fits(state)
        new = change(new, repository_id=state.details.get(REPOSITORY_ID, new.repository_id))
        number = max(state.versions) + 1
        try:
            new.add_models(repository, number)
            versions = {
                state.version: state.versions[state.version],
                number: new.make_record(repository, number),
            }
            details = new.describe() | {REPOSITORY_ID: new.repository_id}
            changed = Published(repository, state.version if standby else number, versions, details)
            apply_state(changed, new.key)
        except BaseException as error:
            remove_leftovers(state)
            if isinstance(error, OSError):
                raise ArtifactError(
                    f"Could not write {repository}: {error.strerror or error}. It is unchanged."
                ) from error
            raise
        remove_leftovers(changed)


def _find_tensor_kind(name: str) -> str:
    """Return the kind of request of an ensemble that takes tensors; "" for every other model."""
    prefix, _, rest = name.partition("_")
    return rest.removesuffix("_tensors") if prefix == "predict" and rest.endswith("_tensors") else ""


def _copy_graph(graph: Path, version: Path) -> None:
    shutil.copyfile(graph, version / "model.onnx")
    weights = name_weights(graph)
    if weights.is_file():  # the graph refers to the weights by this name
        shutil.copyfile(weights, version / weights.name)


def _copy_code(version: Path) -> None:
    code = TEMPLATES / _CODE
    if not code.is_file():
        raise ArtifactError(f"This installation lacks {code}. Install the package again.")
    shutil.copyfile(code, version / _CODE)


def _refuse(repository: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"{repository} cannot take this model as a new version: {reason}. Publish into a new directory, or replace "
        "the repository and all its versions with --replace."
    )


def _reserve_name(repository: Path) -> Path:
    """Return an unused name beside the repository. A rename needs the same file system."""
    try:
        name = Path(tempfile.mkdtemp(prefix=f".{repository.name}-", dir=repository.parent))
        name.rmdir()
    except OSError as error:
        raise ArtifactError(f"Could not write beside {repository}: {error.strerror or error}.") from error
    return name


def _swap(fresh: Path, repository: Path) -> None:
    """Replace `repository` with `fresh`. On an error restore the old repository and remove `fresh`."""
    old = Path(f"{fresh}-old")
    try:
        repository.rename(old)
        try:
            fresh.rename(repository)
        except OSError:
            old.rename(repository)
            raise
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise ArtifactError(f"Could not replace {repository}: {error.strerror or error}.") from error
    shutil.rmtree(old, ignore_errors=True)
