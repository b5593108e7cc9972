"""`cxr export`: write a bundle into a model repository for Triton, a folder for the Hugging Face hub, or both."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cli.export_servers import Servers, ServerState, print_servers
from cli.progress import show_progress
from contract.bundle import Bundle, load_bundle
from contract.errors import ConfigError
from contract.signatures import TrustedKeys

if TYPE_CHECKING:
    from contract.repository import Published
    from export.gates.server_precision import ServerCheck
    from export.hub import HubFolder
    from export.pipeline import Check, ExportResult
    from export.signing_keys import SigningKey
    from serving.served_graphs import ServedGraphs


@dataclass(frozen=True)
class Publication:
    """How to publish a bundle: the fields of `export.configs.Deployment`, and the running servers to load it, if any.

    `key` signs the repository. A key of `trust` must have signed the bundle.
    """

    target: str = "cpu"
    variant: str = "latency"
    profile: str = "fp32"
    graphs: str = "split"
    replace: bool = False
    servers: Servers | None = None
    cores: int | None = None
    key: "SigningKey | None" = None
    trust: TrustedKeys | None = None


@dataclass(frozen=True)
class Exported:
    """The published repository, the hub folder, or both; and what running servers loaded."""

    published: "ExportResult | None"
    hub_folder: "HubFolder | None"
    servers: list[ServerState] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values, with the repository's fields first."""
        values = self.published.to_dict() if self.published else {}
        if self.hub_folder:
            values |= {
                "fingerprint": self.hub_folder.fingerprint,
                "hub_folder": self.hub_folder.to_dict(),
            }
        return {**values, "servers": [state.to_dict() for state in self.servers]}


@dataclass(frozen=True)
class RolledBack:
    """The version that answers now, and what running servers loaded."""

    published: "Published"
    servers: list[ServerState]
    changed: bool = True  # False: this version answered before too

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        values = {
            "repository": str(self.published.repository),
            "version": self.published.version,
            "fingerprint": self.published.fingerprint,
            "changed": self.changed,
        }
        return {**values, "servers": [state.to_dict() for state in self.servers]}


def export_bundle(
    console: Console,
    path: Path,
    *,
    table: Path | None,
    repository: Path | None,
    hub_folder: Path | None,
    publication: Publication | None = None,
) -> Exported:
    """Publish a bundle into `repository` after the parity gate, then write the hub folder with the same graphs.

    Raises:
        ConfigError: An option is missing or unknown, or an output directory is in use.
        ArtifactError: The bundle is damaged; the disk refused the write; or a graph answers differently, at the gates
            here or through a running server. In that case every server keeps the version that it had.
        ServiceError: A running server does not answer, and nothing was published; or it did not load the new version,
            which is withdrawn from all servers.
    """
    from export.hub import check_free, write_hub_folder

    publication = publication or Publication()
    _check_options(table, repository, hub_folder, publication)
    if hub_folder:
        check_free(hub_folder)  # before the slow part
    bundle = load_bundle(path, trust=publication.trust)
    published = folder = None
    if table and repository and publication.servers:
        prepare_servers(publication.servers, publication.key)  # before the slow part
    if table and repository:
        published = _publish(console, bundle, table, repository, publication)
    if hub_folder:
        # Publishing wrote its report into the bundle, so the bundle is read and hashed again.
        current = load_bundle(path) if published else bundle
        folder = write_hub_folder(current, hub_folder, repository=_find_plain_graphs(published, publication))
    return Exported(published, folder, publication.servers.states if publication.servers else [])


def roll_back(
    console: Console,
    repository: Path,
    *,
    to: int | None = None,
    servers: Servers | None = None,
    key: "SigningKey | None" = None,
) -> RolledBack:
    """Switch to another version, on disk and in all running servers. If that fails, nothing changes.

    A second call completes an interrupted one, or changes nothing.

    Args:
        console: Shows a status while a server loads.
        repository: The published repository.
        to: The version to switch to. None: the oldest kept version.
        servers: The servers that serve this repository.
        key: Signs the new state. A signed repository needs it.

    Raises:
        ConfigError: The version does not exist, or a server serves another repository.
        ArtifactError: The files of that version are damaged.
        ServiceError: A running server did not load it.
    """
    from contract.repository import read_published
    from export.versions import rollback

    before = read_published(repository).version
    if servers is None:
        published = rollback(repository, to, key=key)
        return RolledBack(published, [], published.version != before)
    answered = [before if version is None else version for version in servers.ask_versions()]
    published = rollback(repository, to, key=key)
    previous = next((version for version in answered if version != published.version), published.version)
    undo = (lambda: rollback(repository, previous, key=key)) if previous in published.versions else None
    servers.load(console, undo=undo)
    return RolledBack(published, servers.states, set(answered) != {published.version})


def prepare_servers(servers: Servers, key: "SigningKey | None" = None) -> None:
    """Check that all servers can load a new version; undo a switch that not all of them received.

    The version that the servers answer with must be kept beside the new version. So if a killed command left servers
    with different versions, all of them return to the version before that command.

    Raises:
        CxrError: A server does not answer, serves another repository, or did not load that version.
    """
    from contract.repository import read_published
    from export.versions import rollback, settle

    settle(servers.repository)
    answered = servers.ask_versions()
    version = read_published(servers.repository).version
    earlier = [found for found in answered if found not in (None, version)]
    if earlier:
        version = rollback(servers.repository, earlier[0], key=key).version
    servers.level(version)


def _check_options(
    table: Path | None, repository: Path | None, hub_folder: Path | None, publication: Publication
) -> None:
    from export.targets import check_target

    check_target(publication.target, publication.variant)
    if (table is None) is not (repository is None):
        raise ConfigError("--repository and --table belong together: the parity gate runs the table's cases.")
    if repository is None and hub_folder is None:
        raise ConfigError("Give --repository with --table, --hub-folder, or all three.")
    if publication.servers and (repository is None or publication.replace):
        raise ConfigError("--load needs --repository, and cannot be combined with --replace.")


def _publish(
    console: Console, bundle: Bundle, table: Path, repository: Path, publication: Publication
) -> "ExportResult":
    from cli.cases import make_parity_cases, make_precision_cases
    from export.pipeline import export
    from training.data.rows import read_rows

    rows = read_rows(table)
    text_mode_and_size = bundle.config["text_mode"], bundle.config["sizes"]["S"]
    held_out = set(bundle.split["test"])
    with show_progress(console, "Exporting") as progress:
        return export(
            bundle,
            repository,
            make_parity_cases(rows, *text_mode_and_size),
            progress=progress,
            precision_cases=make_precision_cases(rows, held_out, *text_mode_and_size),
            target=publication.target,
            variant=publication.variant,
            profile=publication.profile,
            layout=publication.graphs,
            cores=publication.cores,
            replace=publication.replace,
            key=publication.key,
            take=partial(take_version, console, publication) if publication.servers else None,
        )


def take_version(
    console: Console, publication: Publication, repository: Path, version: int, check: "Check"
) -> list[ServerState]:
    """Load a waiting version into all running servers, run the gate at each, and switch to it if all pass.

    Any failure withdraws the version, on disk and at all servers. The version before it answers again.

    Raises:
        ParityError: The answers of a server are beyond the limits of the gate.
        ServiceError, ConfigError: A server did not load it, or its backend does not honour the profile.
    """
    from contract.repository import read_published
    from export.versions import promote, withdraw

    layout = read_published(repository).details["layout"]
    gates: list[dict[str, Any]] = []
    servers = publication.servers
    assert servers is not None

    def ask(_url: str, served: "ServedGraphs") -> "ServerCheck":
        report, gate = _ask_server(served, layout, check)
        gates.append(gate)
        if not report.passed:
            console.print(report.to_markdown(), highlight=False, markup=False, soft_wrap=True)
        return report

    servers.load(
        console,
        undo=partial(withdraw, repository, version, key=publication.key),
        ask=ask,
        commit=lambda: promote(repository, version, _join_gates(gates), key=publication.key),
    )
    return servers.states


def _ask_server(served: "ServedGraphs", layout: str, check: "Check") -> "tuple[ServerCheck, dict[str, Any]]":
    """Return the report of the gate at a server, and the runtime it ran on."""
    from contract.tensors import LAYOUTS
    from export.gates.precision import ServedGraphs as AskedGraphs

    graphs = [name for name, spec in LAYOUTS[layout].items() if spec.backend == "onnxruntime"]  # type: ignore[index]
    runtime = served.describe(graphs[0])
    report = check(AskedGraphs(served.ask, layout, f"{runtime['runtime']} {runtime['provider']}"))
    now = datetime.datetime.now(datetime.timezone.utc)
    return report, {
        **runtime,
        "precision": report.stored.profile,
        "cases": report.precision.cases,
        "passed": now.isoformat(timespec="seconds"),
    }


def _join_gates(gates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the gates of all servers as one record for the marker: every runtime once, and the last time."""
    runtimes = {key: "; ".join(sorted({str(gate[key]) for gate in gates})) for key in ("runtime", "provider")}
    return {**gates[-1], **runtimes, "servers": len(gates)}


def _find_plain_graphs(published: "ExportResult | None", publication: Publication) -> Path | None:
    """Return the repository whose graphs go into the hub folder: those in fp32, one file per model."""
    plain = (publication.profile, publication.graphs) == ("fp32", "split")
    return published.repository if published and plain else None


def print_export(console: Console, exported: Exported) -> None:
    """Print the tables of the gates, and the paths of the results."""
    if exported.published:
        console.print(exported.published.parity.to_markdown(), highlight=False, markup=False, soft_wrap=True)
        if exported.published.precision:
            console.print(
                exported.published.precision.to_markdown(), highlight=False, markup=False, soft_wrap=True
            )
        report = exported.published.precision_path or "not written, because the bundle is read-only or signed"
        console.print(f"Precision report: {report}", highlight=False, markup=False, soft_wrap=True)
        console.print(
            f"Published into {exported.published.repository} as version {exported.published.version}",
            highlight=False,
            markup=False,
        )
    for state in exported.servers:
        if state.check:
            console.print(state.check.to_markdown(), highlight=False, markup=False, soft_wrap=True)
    print_servers(console, exported.servers)
    if folder := exported.hub_folder:
        megabytes = sum(folder.files.values()) / 1e6
        console.print(
            f"Hub folder: {folder.path} ({len(folder.files)} files, {megabytes:.1f} MB). Read its README.md and the "
            f"study ids in split.json, then: hf upload OWNER/NAME {folder.path}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def print_rollback(console: Console, result: RolledBack) -> None:
    """Print which version answers now."""
    published = result.published
    how = "answers with" if result.changed else "already answers with"
    console.print(
        f"{published.repository} {how} version {published.version} (model {published.fingerprint[:12]}).",
        highlight=False,
        markup=False,
    )
    if not result.changed and published.previous is not None:
        other = next(number for number in sorted(published.versions) if number != published.version)
        console.print(f"Version {other} is kept too; --to {other} switches to it.", highlight=False)
    print_servers(console, result.servers)
