"""The running servers of one repository, which take a change together: all of them, or none.

The servers read one folder, so a change of the files is one change for all. Each server takes it in two steps. First
every server loads the new graphs, which no client uses yet, and its gate runs. Then the current version changes on the
disk. Then every server switches. Any failure before the end undoes the change on the disk, and every server loads the
earlier state again.

A killed command leaves servers that answer with different versions. The next command finds this by asking all of them.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from cli.console import Table, escape
from contract.address import split_addresses
from contract.connection import PLAIN, Connection
from contract.errors import ConfigError, CxrError, ParityError

if TYPE_CHECKING:
    from export.gates.server_precision import ServerCheck
    from serving.reload import Reload
    from serving.served_graphs import ServedGraphs

Ask = Callable[[str, "ServedGraphs"], "ServerCheck"]  # address, the loaded version -> the report of the gate


@dataclass(frozen=True)
class ServerState:
    """What is known of one server.

    Attributes:
        server: Its address, host:port.
        before: The version that it answered with before the command; None: its models differed, or it is not known.
        version: The version that it answers with now; None as in `before`.
        loaded: What it loaded in this command.
        check: Its result at the gate.
        problem: Why it did not do what it should.
    """

    server: str
    before: int | None = None
    version: int | None = None
    loaded: "Reload | None" = None
    check: "ServerCheck | None" = None
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON-ready values."""
        return {
            "server": self.server,
            "before": self.before,
            "version": self.version,
            "problem": self.problem,
            **(self.loaded.to_dict() if self.loaded else {}),
            **({"gate": self.check.to_dict()} if self.check else {}),
        }


class Servers:
    """The running servers of one repository, and what each of them has."""

    def __init__(
        self,
        addresses: Sequence[str],
        repository: Path,
        admin_keys: Sequence[Path],
        connection: Connection = PLAIN,
    ) -> None:
        """Read the admin keys. No server is asked.

        Args:
            addresses: gRPC addresses, host:port, of the servers that serve the repository.
            repository: The published repository.
            admin_keys: Files with the admin keys: one for all servers, or one for each, in the same order.
            connection: TLS and token, for all servers.

        Raises:
            ConfigError: An address is empty, a key cannot be read, or the number of keys does not fit.
        """
        from serving.triton import read_admin_key

        urls = split_addresses(addresses, "--load")
        keys = [read_admin_key(path) for path in admin_keys]
        if len(keys) not in (1, len(urls)):
            raise ConfigError(
                f"There are {len(urls)} servers (--load) and {len(keys)} admin keys. Give --admin-key once for all "
                "servers, or once for each, in the order of --load."
            )
        self.repository, self._connection = repository, connection
        self._keys = dict(zip(urls, keys * len(urls) if len(keys) == 1 else keys, strict=True))
        self._states = {url: ServerState(url) for url in urls}

    @property
    def states(self) -> list[ServerState]:
        """What is known of each server, in the order of the addresses."""
        return list(self._states.values())

    def ask_versions(self) -> list[int | None]:
        """Ask every server which version it answers with, as `serving.reload.check_server` does. Nothing is changed.

        Raises:
            CxrError: One server cannot load a change of this repository. All others were asked too.
        """
        from serving.reload import check_server

        errors: list[CxrError] = []
        for url, key in self._keys.items():
            try:
                with self._explain(url):
                    version = check_server(url, self.repository, key, self._connection)
                    self._note(url, before=version, version=version)
            except CxrError as error:  # noqa: PERF203 - each server is asked
                errors.append(error)
        if errors and len(self._keys) > 1:
            raise type(errors[0])(f"{errors[0]} No server was changed.") from errors[0]
        if errors:
            raise errors[0]
        return [state.before for state in self.states]

    def level(self, version: int) -> None:
        """Let every server that answers with another version load the repository's current version, which is `version`.

        Raises:
            CxrError: See `serving.reload.reload_models`.
        """
        for state in self.states:
            if state.version != version:
                self._reload(state.server, version)

    def load(
        self,
        console: Console,
        *,
        undo: Callable[[], object] | None,
        ask: Ask | None = None,
        commit: Callable[[], object] | None = None,
    ) -> None:
        """Bring all servers to the current version of the repository, or none.

        Args:
            console: Shows a status while a server loads, unless `ask` is given. The progress bar of an export is shown
                then, and rich before 14.1 shows one display at a time.
            undo: Restores the earlier state on the disk after a failure. The servers load that state again. None: there
                is no earlier state.
            ask: The gate, called for each server with its newest version before any server switches.
            commit: Changes the current version on the disk after all gates.

        Raises:
            ParityError: A server did not pass the gate.
            CxrError: What `ask`, `commit` or a server raised. With `undo`, a sentence says that the change was undone.
        """
        try:
            self._load(console, ask, commit)
        except BaseException as error:
            if undo is None:
                raise
            undo()
            unsure = self.reload()
            if not isinstance(error, CxrError):
                raise
            raise type(error)(f"{error} {self._tell_of_undo(unsure)}") from error

    def _load(
        self,
        console: Console,
        ask: Ask | None,
        commit: Callable[[], object] | None,
    ) -> None:
        from contract.repository import read_published
        from serving.reload import open_loader

        with contextlib.ExitStack() as stack:
            loaders = []
            for url, key in self._keys.items():
                with self._explain(url), _show(console, url, quiet=ask is not None):
                    loader = stack.enter_context(
                        open_loader(url, self.repository, key, connection=self._connection)
                    )
                    loaders.append(loader)
                    served = loader.load_graphs()
                    if ask is not None:
                        self._require_passed(url, served.version, ask(url, served))
            if commit is not None:
                commit()
            version = read_published(self.repository).version
            for loader in loaders:
                with self._explain(loader.url), _show(console, loader.url, quiet=ask is not None):
                    self._note(loader.url, loaded=loader.switch(), version=version)

    def _require_passed(self, url: str, version: int, check: "ServerCheck") -> None:
        self._note(url, check=check)
        if not check.passed:
            raise ParityError(
                f"Version {version} does not answer through Triton at {url} as its graphs did: {check.failures[0]}."
            )

    def reload(self) -> list[str]:
        """Let every server load the repository's current version; return the addresses of those that did not."""
        from contract.repository import read_published

        version = read_published(self.repository).version
        failed = []
        for url in self._keys:
            try:
                with self._explain(url):
                    self._reload(url, version)
            except CxrError:  # noqa: PERF203 - each server is told
                self._note(url, version=None, loaded=None)
                failed.append(url)
        return failed

    def _reload(self, url: str, version: int) -> None:
        from serving.reload import reload_models

        loaded = reload_models(url, self.repository, self._keys[url], connection=self._connection)
        self._note(url, loaded=loaded, version=version)

    def _tell_of_undo(self, unsure: Sequence[str]) -> str:
        if len(self._keys) == 1:  # the server answers by itself: the disk has the earlier version
            return "The change was undone, and the version before it answers."
        if not unsure:
            return "The change was undone at all servers, and the version before it answers."
        return (
            f"The change was undone on the disk, but {', '.join(unsure)} did not confirm it. Start it again, or repeat "
            "the command when it answers."
        )

    @contextlib.contextmanager
    def _explain(self, url: str) -> Iterator[None]:
        """Keep the first sentence of a server's first error for the table."""
        try:
            yield
        except CxrError as error:
            if self._states[url].problem is None:
                self._note(url, problem=re.split(r"(?<=[.?]) ", str(error))[0])
            raise

    def _note(self, url: str, **values: Any) -> None:
        self._states[url] = replace(self._states[url], **values)


def _show(console: Console, url: str, *, quiet: bool) -> "contextlib.AbstractContextManager[object]":
    return contextlib.nullcontext() if quiet else console.status(Text(f"Loading into Triton at {url}"))


@contextlib.contextmanager
def shown_after(console: Console, servers: Servers | None) -> Iterator[None]:
    """Print the table of several servers after a failure, so that the user sees what each of them has."""
    try:
        yield
    except CxrError:
        if servers is not None and len(servers.states) > 1:
            print_servers(console, servers.states)
        raise


def print_servers(console: Console, states: Sequence[ServerState]) -> None:
    """Print which server has which version: one sentence for one server, a table for several."""
    if len(states) == 1 and (loaded := states[0].loaded):
        seconds = sum(loaded.seconds.values())
        console.print(f"Triton loaded model {loaded.fingerprint[:12]} in {seconds:.1f} s.", highlight=False)
    if len(states) < 2:
        return
    table = Table(title="Servers", title_justify="left", header_style="bold")
    for column in ("Server", "Before", "Now", "Gate", "Loaded in", "Problem"):
        table.add_column(column)
    for state in states:
        table.add_row(
            escape(state.server),
            _format_version(state.before),
            _format_version(state.version),
            "-" if state.check is None else "passed" if state.check.passed else "FAILED",
            "-" if state.loaded is None else f"{sum(state.loaded.seconds.values()):.1f} s",
            escape(state.problem or ""),
        )
    console.print(table)


def _format_version(version: int | None) -> str:
    return "?" if version is None else f"version {version}"
