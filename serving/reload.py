"""A running Triton takes the version that a published repository says: by explicit loads, without a pause.

Graphs and preprocessing are loaded first; they then serve the old version and the new one side by side, so that the
new one can be asked before anybody depends on it. Each ensemble is loaded after them and is what switches: a request
that has begun ends in the version in which it began.
Before the first load it is certain that the files are what was published, that the server answers, takes the key
and serves this very repository: two repositories may hold the same model, so their configs carry an id.
Nothing that serves is unloaded before its successor is ready. (Triton, "Model Management", explicit mode:
https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_management.md)
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from contract.errors import ArtifactError, ConfigError, DeadlineError, FingerprintError, ServerError
from contract.repository import FINGERPRINT, REPOSITORY_ID, Published, read_published, verify
from contract.runtime.embedded import BACKEND, needs_embedded
from serving.served_graphs import PROBE_TIMEOUT_S, ServedGraphs, connect, shorten
from serving.triton import ADMIN_HEADER

_GRPC_HEADER: Final = f"triton-grpc-protocol-{ADMIN_HEADER}"  # Triton puts this before restricted headers
_SETTING: Final = "--load"


@dataclass(frozen=True)
class Reload:
    """What a server took: the model's fingerprint, which served models, and how long each load was (seconds)."""

    fingerprint: str
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return asdict(self)


def reload_models(
    triton_url: str,
    repository: Path,
    admin_key: str,
    timeout_s: float = 300.0,
    *,
    before_switch: Callable[[ServedGraphs], None] | None = None,
) -> Reload:
    """Make a running Triton serve what the repository now says.

    Args:
        triton_url: gRPC address of the server, host:port. It serves this repository.
        repository: The published repository as this process sees it (a container may see it elsewhere).
        admin_key: The key that the server was started with (`serving.triton.read_admin_key`).
        timeout_s: How long all loads together may take.
        before_switch: Called when the newest version is loaded and no ensemble has switched yet, with that version.
            It may change which version the repository says; what it raises leaves the ensembles as they are.

    Raises:
        ArtifactError: The directory is no published repository, or a file of it is not what was published.
        UnavailableError: Nothing answers at the address.
        ConfigError: The address is none of Triton's gRPC service, or the server does not take this key or serves
            another repository.
        DeadlineError: The loads were not done in time.
        ServerError: Triton could not load a model. Ensembles that were not loaded yet serve what they served, and
            so do all where a graph or a preprocessing model failed; the message says which failed and why.
        FingerprintError: The server serves another model; or all loads succeeded, but it serves a copy of this
            repository.
    """
    state = verify(repository)
    shared, switches = find_models(repository)
    deadline = time.monotonic() + timeout_s
    headers = {_GRPC_HEADER: admin_key}
    with connect(triton_url, _SETTING) as client:
        _require_access(client, triton_url, headers)
        _find_served(client, switches, state, triton_url)
        seconds = _load_all(client, shared, headers, deadline)
        if before_switch is not None:
            began = time.monotonic()
            before_switch(ServedGraphs(client, triton_url, state.newest))
            deadline += time.monotonic() - began
            state = read_published(repository)
        seconds |= _load_all(client, switches, headers, deadline)
        for name in switches:
            _require_served(client, name, state, triton_url)
    return Reload(state.fingerprint, seconds)


def check_server(triton_url: str, repository: Path, admin_key: str) -> int | None:
    """Check, before anything is changed, that a running server could take a change of this repository.

    Returns:
        The version that the server answers with; None where its ensembles differ (a load was interrupted) or where the
        repository holds that version no more.

    Raises:
        UnavailableError, ConfigError, FingerprintError, ArtifactError: As `reload_models`.
    """
    state = read_published(repository)
    _, switches = find_models(repository)
    with connect(triton_url, _SETTING) as client:
        _require_access(client, triton_url, {_GRPC_HEADER: admin_key})
        versions = _find_served(client, switches, state, triton_url)
    (version, *others) = versions
    return version if not others and version in state.versions else None


def find_embedded_only(repository: Path) -> list[str]:
    """Return the names of the graphs that no other backend than the embedded one runs as they were gated.

    Raises:
        ArtifactError: A config cannot be read.
    """
    found = []
    for path in sorted(repository.glob("*/config.pbtxt")):
        config = json_format.MessageToDict(_read_config(path), preserving_proto_field_name=True)
        if config.get("backend") == BACKEND and needs_embedded(config):
            found.append(path.parent.name)
    return found


def find_models(repository: Path) -> tuple[list[str], list[str]]:
    """Return the names of the graphs and preprocessing models, and those of the ensembles.

    Raises:
        ArtifactError: A config cannot be read, or there is none.
    """
    shared: list[str] = []
    switches: list[str] = []
    for path in sorted(repository.glob("*/config.pbtxt")):
        config = _read_config(path)
        (switches if config.platform == "ensemble" else shared).append(path.parent.name)
    if not shared and not switches:
        raise ArtifactError(f"{repository} holds no model.")
    return shared, switches


def _read_config(path: Path) -> Any:
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ArtifactError(f"{path} is not a config that Triton reads.") from error


def _require_access(client: Any, url: str, headers: dict[str, str]) -> None:
    """Tell a key that is wrong from a server that does not answer: both have the same status code."""
    try:
        client.get_model_repository_index(headers=headers, client_timeout=PROBE_TIMEOUT_S)
    except InferenceServerException as error:
        raise ConfigError(
            f"Triton at {url} does not take this admin key: use the file of the logs directory of that server."
        ) from error


def _load_all(client: Any, names: list[str], headers: dict[str, str], deadline: float) -> dict[str, float]:
    """Load models in turn; return how long each took, in seconds."""
    seconds = {}
    for name in names:
        began = time.monotonic()
        _load(client, name, headers, deadline - began)
        seconds[name] = round(time.monotonic() - began, 3)
    return seconds


def _load(client: Any, name: str, headers: dict[str, str], timeout_s: float) -> None:
    try:
        if timeout_s <= 0:
            raise DeadlineError(f"Triton had no time left to load {name}; it serves what it served before.")
        client.load_model(name, headers=headers, client_timeout=timeout_s)
    except InferenceServerException as error:
        if (error.status() or "").endswith(("DEADLINE_EXCEEDED", "CANCELLED")):
            raise DeadlineError(f"Triton did not load {name} in time; it may still do so.") from error
        raise ServerError(f"Triton did not take {name}: {shorten(error.message() or '')}.") from error


def _find_served(client: Any, switches: list[str], state: Published, url: str) -> set[int]:
    """Return the versions that the ensembles answer with; raise unless they come from this repository."""
    versions = set()
    for name in switches:
        try:
            config = client.get_model_config(name, client_timeout=PROBE_TIMEOUT_S).config
        except InferenceServerException:
            continue  # a load of it failed before: another one may succeed
        _require_same_repository(name, config, state, url)
        versions.add(next(iter(config.version_policy.specific.versions), 0))
    if not versions:
        raise ConfigError(
            f"Triton at {url} serves none of {', '.join(switches)}: it was started with another repository than "
            f"{state.repository}."
        )
    return versions


def _require_same_repository(name: str, config: Any, state: Published, url: str) -> None:
    served, own = config.parameters[REPOSITORY_ID].string_value, state.details.get(REPOSITORY_ID)
    if served and own and served != own:
        raise ConfigError(
            f"Triton at {url} was started with another repository than {state.repository}: name the one that it "
            "serves, or that server's address."
        )
    known = {str(entry[FINGERPRINT]) for entry in state.versions.values()}
    found = config.parameters[FINGERPRINT].string_value
    if not (served and own) and found not in known:
        raise _report_other_model(name, found, state, url)


def _require_served(client: Any, name: str, state: Published, url: str) -> None:
    try:
        config = client.get_model_config(name, client_timeout=PROBE_TIMEOUT_S).config
    except InferenceServerException as error:
        raise ServerError(f"Triton does not serve {name}: {shorten(error.message() or '')}.") from error
    found = config.parameters[FINGERPRINT].string_value
    versions = list(config.version_policy.specific.versions)
    if found != state.fingerprint:
        raise _report_other_model(name, found, state, url)
    if versions and versions != [state.version]:
        raise FingerprintError(
            f"Triton at {url} serves version {versions[0]} of {name}, not version {state.version}: it was started with "
            f"a copy of {state.repository}."
        )


def _report_other_model(name: str, found: str, state: Published, url: str) -> FingerprintError:
    return FingerprintError(
        f"Triton at {url} serves model {found[:12] or '(none)'} in {name}, but the model of {state.repository} is "
        f"{state.fingerprint[:12]}: that server was started with another repository."
    )
