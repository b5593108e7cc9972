"""`cxr export retire`: remove the version that does not answer, from the disk and from all running servers."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cli.export_servers import Servers, ServerState, print_servers
from contract.errors import ConfigError

if TYPE_CHECKING:
    from contract.repository import Published
    from export.signing_keys import SigningKey


@dataclass(frozen=True)
class Retired:
    """The removed version (None: it was removed before), the version that answers, and what running servers loaded."""

    published: "Published"
    version: int | None
    servers: list[ServerState]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return {
            "repository": str(self.published.repository),
            "retired": self.version,
            "version": self.published.version,
            "fingerprint": self.published.fingerprint,
            "servers": [state.to_dict() for state in self.servers],
        }


def retire_version(
    console: Console,
    repository: Path,
    *,
    version: int | None = None,
    servers: Servers | None = None,
    key: "SigningKey | None" = None,
) -> Retired:
    """Remove the version that does not answer. All running servers unload it first. `key` signs the repository.

    If one server fails, the version is kept, on disk and in all servers. After a killed command a second call completes
    it: the servers unload a version that is no longer on the disk.

    Raises:
        ConfigError: The version does not exist, or it answers, here or at a server.
        ServiceError: A running server did not unload it. The version is kept.
    """
    from contract.repository import read_published
    from export.versions import retire, settle

    if servers is None:
        return Retired(*retire(repository, version, key=key), [])
    settle(repository)  # a killed command leaves files
    state = read_published(repository)
    _require_version(servers, state.version)
    if state.previous is None and version != state.version:
        servers.load(console, undo=None)
        return Retired(state, None, servers.states)
    told = False

    def tell() -> None:
        nonlocal told
        told = True
        servers.load(console, undo=None)

    try:
        published, gone = retire(repository, version, tell, key=key)
    except BaseException:
        if told:
            servers.reload()  # the version is on the disk again
        raise
    return Retired(published, gone, servers.states)


def _require_version(servers: Servers, version: int) -> None:
    """Raise ConfigError unless every server answers with the version that is kept."""
    for answered, state in zip(servers.ask_versions(), servers.states, strict=True):
        if answered != version:
            raise ConfigError(
                f"Triton at {state.server} answers with another version than {servers.repository} states. First run "
                f"`cxr export rollback {servers.repository} --to VERSION` with the same --load."
            )


def print_retired(console: Console, result: Retired) -> None:
    """Print the removed version and the version that answers."""
    repository, answers = result.published.repository, result.published
    removed = (
        f"{repository} holds no other version"
        if result.version is None
        else f"Version {result.version} of {repository} was removed"
    )
    console.print(
        f"{removed}; version {answers.version} (model {answers.fingerprint[:12]}) answers.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if len(result.servers) == 1:
        console.print("Triton unloads the removed version.", highlight=False)
    else:
        print_servers(console, result.servers)
