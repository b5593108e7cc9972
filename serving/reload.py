"""A running Triton takes the version that a published repository says: by explicit loads, without a pause.

Graphs and preprocessing are loaded first; they then serve the old version and the new one side by side. Each
ensemble is loaded after them and is what switches: a request that has begun ends in the version in which it began.
Before the first load it is certain that the files are what was published, that the server answers, takes the key
and serves this very repository: two repositories may hold the same model, so their configs carry an id.
Nothing that serves is unloaded before its successor is ready. (Triton, "Model Management", explicit mode:
https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_management.md)
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf import text_format
from tritonclient import grpc as triton
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from contract.address import CHANNEL_OPTIONS, check_address, speaks_http1
from contract.errors import (
    ArtifactError,
    ConfigError,
    DeadlineError,
    FingerprintError,
    ServerError,
    UnavailableError,
)
from contract.repository import FINGERPRINT, REPOSITORY_ID, Published, read_published, verify
from serving.triton import ADMIN_HEADER

_GRPC_HEADER: Final = f"triton-grpc-protocol-{ADMIN_HEADER}"  # Triton puts this before restricted headers
_PROBE_TIMEOUT_S: Final = 5.0
_MAX_CHARS: Final = 400
_SERVER: Final = "Triton's gRPC service"


@dataclass(frozen=True)
class Reload:
    """What a server took: the model's fingerprint, which served models, and how long each load was (seconds)."""

    fingerprint: str
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return asdict(self)


def reload_models(triton_url: str, repository: Path, admin_key: str, timeout_s: float = 300.0) -> Reload:
    """Make a running Triton serve what the repository now says.

    Args:
        triton_url: gRPC address of the server, host:port. It serves this repository.
        repository: The published repository as this process sees it (a container may see it elsewhere).
        admin_key: The key that the server was started with (`serving.triton.read_admin_key`).
        timeout_s: How long all loads together may take.

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
    client = triton.InferenceServerClient(triton_url, channel_args=list(CHANNEL_OPTIONS))
    try:
        headers = {_GRPC_HEADER: admin_key}
        _require_access(client, triton_url, headers)
        _find_served(client, switches, state, triton_url)
        seconds = {}
        for name in (*shared, *switches):
            began = time.monotonic()
            _load(client, name, headers, deadline - began)
            seconds[name] = round(time.monotonic() - began, 3)
        for name in switches:
            _require_served(client, name, state, triton_url)
    finally:
        client.close()
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
    client = triton.InferenceServerClient(triton_url, channel_args=list(CHANNEL_OPTIONS))
    try:
        _require_access(client, triton_url, {_GRPC_HEADER: admin_key})
        versions = _find_served(client, switches, state, triton_url)
    finally:
        client.close()
    (version, *others) = versions
    return version if not others and version in state.versions else None


def find_models(repository: Path) -> tuple[list[str], list[str]]:
    """Return the names of the graphs and preprocessing models, and those of the ensembles.

    Raises:
        ArtifactError: A config cannot be read, or there is none.
    """
    shared: list[str] = []
    switches: list[str] = []
    for path in sorted(repository.glob("*/config.pbtxt")):
        try:
            config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
        except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
            raise ArtifactError(f"{path} is not a config that Triton reads.") from error
        (switches if config.platform == "ensemble" else shared).append(path.parent.name)
    if not shared and not switches:
        raise ArtifactError(f"{repository} holds no model.")
    return shared, switches


def _require_access(client: Any, url: str, headers: dict[str, str]) -> None:
    """Tell an address where nothing answers from a key that is wrong: both have the same status code."""
    check_address(url, server=_SERVER, setting="--load", example="127.0.0.1:8001")
    try:
        client.is_server_live(client_timeout=_PROBE_TIMEOUT_S)
    except InferenceServerException as error:
        if (error.status() or "").endswith("UNIMPLEMENTED") or speaks_http1(url):
            raise ConfigError(
                f"What answers at {url} is another service than {_SERVER}: give --load the address that `cxr serve` "
                "prints as triton."
            ) from error
        raise UnavailableError(f"Triton at {url} does not answer: is `cxr serve` running there?") from error
    try:
        client.get_model_repository_index(headers=headers, client_timeout=_PROBE_TIMEOUT_S)
    except InferenceServerException as error:
        raise ConfigError(
            f"Triton at {url} does not take this admin key: use the file of the logs directory of that server."
        ) from error


def _load(client: Any, name: str, headers: dict[str, str], timeout_s: float) -> None:
    try:
        if timeout_s <= 0:
            raise DeadlineError(f"Triton had no time left to load {name}; it serves what it served before.")
        client.load_model(name, headers=headers, client_timeout=timeout_s)
    except InferenceServerException as error:
        if (error.status() or "").endswith(("DEADLINE_EXCEEDED", "CANCELLED")):
            raise DeadlineError(f"Triton did not load {name} in time; it may still do so.") from error
        raise ServerError(f"Triton did not take {name}: {_shorten(error.message() or '')}.") from error


def _find_served(client: Any, switches: list[str], state: Published, url: str) -> set[int]:
    """Return the versions that the ensembles answer with; raise unless they come from this repository."""
    versions = set()
    for name in switches:
        try:
            config = client.get_model_config(name, client_timeout=_PROBE_TIMEOUT_S).config
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
        config = client.get_model_config(name, client_timeout=_PROBE_TIMEOUT_S).config
    except InferenceServerException as error:
        raise ServerError(f"Triton does not serve {name}: {_shorten(error.message() or '')}.") from error
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


def _shorten(message: str) -> str:
    """Return the reason without the Python stack that a python backend adds."""
    text = " ".join(message.partition("\n\nAt:")[0].split()).rstrip(".;")
    return text if len(text) <= _MAX_CHARS else text[: _MAX_CHARS - 1] + "…"
