"""Switch a running Triton to the current version of a published repository, by explicit loads without a pause.

Graphs and preprocessing models are loaded first. They serve the old and the new version side by side, so the new
version can be tested before clients use it. Then each ensemble is loaded, which switches to the new version. A
running request finishes in the version in which it started.

Before the first load, these facts are checked: the files are as published, the server answers, it accepts the key,
and it serves this repository. (Two repositories may hold the same model, so their configs carry an id.)
No serving model is unloaded before its successor is ready. (Triton, "Model Management", explicit mode:
https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_management.md)
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from contract.access import TRITON_HEADER
from contract.address import check_address
from contract.connection import PLAIN, Connection, is_local, is_token
from contract.errors import ArtifactError, ConfigError, DeadlineError, FingerprintError, ServerError
from contract.repository import FINGERPRINT, REPOSITORY_ID, Published, read_published, verify
from contract.runtime.embedded import BACKEND, needs_embedded
from serving.served_graphs import PROBE_TIMEOUT_S, ServedGraphs, connect, shorten

_SETTING: Final = "--load"


@dataclass(frozen=True)
class Reload:
    """What a server loaded: the model's fingerprint, the served models, and the seconds of each load."""

    fingerprint: str
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return asdict(self)


class Loader:
    """Loads the state of a repository into one running Triton in two steps: the graphs, then the switch."""

    def __init__(
        self, client: Any, url: str, repository: Path, headers: dict[str, str], timeout_s: float
    ) -> None:
        """Take a tritonclient.grpc.InferenceServerClient. Use `open_loader`, which checks the server first.

        Args:
            client: The client.
            url: Its address, for messages.
            repository: The published repository.
            headers: Headers with the admin key.
            timeout_s: Seconds for all loads together.
        """
        self.url = url
        self._client, self._repository, self._headers = client, repository, headers
        self._left_s = timeout_s
        self._shared, self._switches = find_models(repository)
        self._seconds: dict[str, float] = {}

    def load_graphs(self) -> ServedGraphs:
        """Load the graphs and preprocessing models; return the newest version. No client uses it before `switch`.

        Raises:
            DeadlineError, ServerError: See `reload_models`.
            FingerprintError: The server did not get the versions of this repository, so it serves a copy.
        """
        self._load_all(self._shared)
        state = read_published(self._repository)
        for name in self._shared[:1]:  # all of them were loaded from one folder
            _require_versions(self._client, name, state, self.url)
        return ServedGraphs(self._client, self.url, state.newest)

    def switch(self) -> "Reload":
        """Load the ensembles, which then answer with the current version. For errors see `reload_models`."""
        # The current version may have changed since the graphs were loaded.
        state = read_published(self._repository)
        self._load_all(self._switches)
        for name in self._switches:
            _require_served(self._client, name, state, self.url)
        return Reload(state.fingerprint, dict(self._seconds))

    def _load_all(self, names: list[str]) -> None:
        """Load models one after the other, and keep the seconds of each."""
        for name in names:
            began = time.monotonic()
            _load(self._client, name, self._headers, self._left_s)
            seconds = time.monotonic() - began
            self._left_s -= seconds
            self._seconds[name] = round(seconds, 3)


@contextmanager
def open_loader(
    triton_url: str,
    repository: Path,
    admin_key: str,
    timeout_s: float = 300.0,
    *,
    connection: Connection = PLAIN,
) -> Iterator[Loader]:
    """Check a running server and all files of its repository; yield what loads the repository into the server.

    Several servers of one repository change together: first each of them loads the graphs, then each switches.
    For arguments and errors see `reload_models`.
    """
    state = verify(repository)
    connection = _take_key(connection, admin_key, triton_url)
    headers = {TRITON_HEADER: admin_key}
    with connect(triton_url, _SETTING, connection) as client:
        _require_access(client, triton_url, headers)
        loader = Loader(client, triton_url, repository, headers, timeout_s)
        _find_served(client, find_models(repository)[1], state, triton_url)
        yield loader


def reload_models(
    triton_url: str,
    repository: Path,
    admin_key: str,
    timeout_s: float = 300.0,
    *,
    connection: Connection = PLAIN,
) -> Reload:
    """Make a running Triton serve the current version of the repository.

    Args:
        triton_url: gRPC address of the server, host:port. It serves this repository.
        repository: The published repository as this process sees it (a container may see it elsewhere).
        admin_key: The key that the server was started with (`serving.triton.read_admin_key`).
        timeout_s: Seconds for all loads together.
        connection: TLS and token.

    Raises:
        ArtifactError: The directory is not a published repository, or a file differs from the published one.
        UnavailableError: Nothing answers at the address.
        ConfigError: The address is not Triton's gRPC service, the server does not accept this key, or it serves
            another repository.
        DeadlineError: The loads were not done in time.
        ServerError: Triton could not load a model. If a graph or a preprocessing model failed, all ensembles keep their
            version; otherwise those that were not loaded yet. The message names the model and the reason.
        FingerprintError: The server serves another model, or a copy of this repository.
    """
    with open_loader(triton_url, repository, admin_key, timeout_s, connection=connection) as loader:
        loader.load_graphs()
        return loader.switch()


def check_server(
    triton_url: str, repository: Path, admin_key: str, connection: Connection = PLAIN
) -> int | None:
    """Check, without changing anything, that a running server can load a change of this repository.

    Returns:
        The version that the server answers with; None if its ensembles differ (after an interrupted load) or the
        repository no longer holds that version.

    Raises:
        UnavailableError, ConfigError, FingerprintError, ArtifactError: See `reload_models`.
    """
    state = read_published(repository)
    _, switches = find_models(repository)
    connection = _take_key(connection, admin_key, triton_url)
    with connect(triton_url, _SETTING, connection) as client:
        _require_access(client, triton_url, {TRITON_HEADER: admin_key})
        versions = _find_served(client, switches, state, triton_url)
    (version, *other_versions) = versions
    return version if not other_versions and version in state.versions else None


def find_embedded_only(repository: Path) -> list[str]:
    """Return the names of the graphs that only the embedded backend runs as at the gates.

    Raises:
        ArtifactError: A config cannot be read.
    """
    names = []
    for path in sorted(repository.glob("*/config.pbtxt")):
        config = json_format.MessageToDict(_read_config(path), preserving_proto_field_name=True)
        if config.get("backend") == BACKEND and needs_embedded(config):
            names.append(path.parent.name)
    return names


def find_models(repository: Path) -> tuple[list[str], list[str]]:
    """Return the names of the graphs and preprocessing models, and those of the ensembles.

    Raises:
        ArtifactError: A config cannot be read, or there is no model.
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
        raise ArtifactError(f"{path} is not a valid Triton config.") from error


def _take_key(connection: Connection, admin_key: str, url: str) -> Connection:
    """Return the connection with the admin key as its token, if it has none.

    Raises:
        ConfigError: The address is not valid, or the key would travel to another host as plain text.
    """
    check_address(url, server="Triton's gRPC service", setting=_SETTING, example="127.0.0.1:8001")
    if connection.tls is None and not is_local(url):
        raise ConfigError(
            f"The admin key is not sent to {url} ({_SETTING}) without TLS, because others on the network could read "
            "it: set --tls-ca (CXR_TLS_CA) too."
        )
    return (
        replace(connection, token=admin_key)
        if connection.token is None and is_token(admin_key)
        else connection
    )


def _require_access(client: Any, url: str, headers: dict[str, str]) -> None:
    """Raise different errors for a wrong key and for a server that does not answer, which have the same status code."""
    try:
        client.get_model_repository_index(headers=headers, client_timeout=PROBE_TIMEOUT_S)
    except InferenceServerException as error:
        raise ConfigError(
            f"Triton at {url} does not accept this admin key. Use the key file in that server's logs directory."
        ) from error


def _load(client: Any, name: str, headers: dict[str, str], timeout_s: float) -> None:
    try:
        if timeout_s <= 0:
            raise DeadlineError(
                f"There was no time left to load {name} into Triton. It serves the earlier version."
            )
        client.load_model(name, headers=headers, client_timeout=timeout_s)
    except InferenceServerException as error:
        if (error.status() or "").endswith(("DEADLINE_EXCEEDED", "CANCELLED")):
            raise DeadlineError(f"Triton did not load {name} in time. It may still be loading.") from error
        raise ServerError(f"Triton could not load {name}: {shorten(error.message() or '')}.") from error


def _find_served(client: Any, switches: list[str], state: Published, url: str) -> set[int]:
    """Return the versions that the ensembles answer with. Raise unless they come from this repository."""
    versions = set()
    for name in switches:
        try:
            config = client.get_model_config(name, client_timeout=PROBE_TIMEOUT_S).config
        except InferenceServerException:
            continue  # an earlier load failed, and another one may succeed
        _require_same_repository(name, config, state, url)
        versions.add(next(iter(config.version_policy.specific.versions), 0))
    if not versions:
        raise ConfigError(
            f"Triton at {url} serves none of {', '.join(switches)}, so it was started with another repository than "
            f"{state.repository}."
        )
    return versions


def _require_same_repository(name: str, config: Any, state: Published, url: str) -> None:
    served, repository_id = config.parameters[REPOSITORY_ID].string_value, state.details.get(REPOSITORY_ID)
    if served and repository_id and served != repository_id:
        raise ConfigError(
            f"Triton at {url} was started with another repository than {state.repository}. Give the repository that it "
            "serves, or the address of another server."
        )
    fingerprints = {str(entry[FINGERPRINT]) for entry in state.versions.values()}
    fingerprint = config.parameters[FINGERPRINT].string_value
    if not (served and repository_id) and fingerprint not in fingerprints:
        raise _report_other_model(name, fingerprint, state, url)


def _require_served(client: Any, name: str, state: Published, url: str) -> None:
    try:
        config = client.get_model_config(name, client_timeout=PROBE_TIMEOUT_S).config
    except InferenceServerException as error:
        raise ServerError(f"Triton does not serve {name}: {shorten(error.message() or '')}.") from error
    fingerprint = config.parameters[FINGERPRINT].string_value
    versions = list(config.version_policy.specific.versions)
    if fingerprint != state.fingerprint:
        raise _report_other_model(name, fingerprint, state, url)
    if versions and versions != [state.version]:
        raise FingerprintError(
            f"Triton at {url} serves version {versions[0]} of {name}, not version {state.version}. It was started with "
            f"a copy of {state.repository}."
        )


def _require_versions(client: Any, name: str, state: Published, url: str) -> None:
    """Raise unless a graph that was just loaded has all versions of this repository.

    It may name more: Triton keeps the config of a version that did not change, also when another one is gone.
    """
    try:
        config = client.get_model_config(name, client_timeout=PROBE_TIMEOUT_S).config
    except InferenceServerException as error:
        raise ServerError(f"Triton does not serve {name}: {shorten(error.message() or '')}.") from error
    versions = list(config.version_policy.specific.versions)
    if versions and not set(state.versions) <= set(versions):
        raise FingerprintError(
            f"Triton at {url} loaded version {_join(versions)} of {name}, but {state.repository} holds version "
            f"{_join(state.versions)}. It was started with a copy of {state.repository}. Servers that change together "
            "read one folder."
        )


def _join(versions: Iterable[int]) -> str:
    return " and ".join(map(str, sorted(versions)))


def _report_other_model(name: str, fingerprint: str, state: Published, url: str) -> FingerprintError:
    return FingerprintError(
        f"Triton at {url} serves model {fingerprint[:12] or '(none)'} in {name}, but the model of {state.repository} "
        f"is {state.fingerprint[:12]}. That server was started with another repository."
    )
