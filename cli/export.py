"""`cxr export`: write a bundle into a model repository for Triton, a folder for the Hugging Face hub, or both."""

import contextlib
import datetime
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from cli.progress import show_progress
from contract.bundle import Bundle, load_bundle
from contract.connection import PLAIN, Connection
from contract.errors import ConfigError, CxrError, ParityError
from contract.signatures import TrustedKeys

if TYPE_CHECKING:
    from contract.repository import Published
    from export.gates.server_precision import ServerCheck
    from export.hub import HubFolder
    from export.pipeline import Check, ExportResult
    from export.signing import SigningKey
    from serving.reload import Reload
    from serving.served_graphs import ServedGraphs


@dataclass(frozen=True)
class Publication:
    """How to publish a bundle: the fields of `export.configs.Deployment`, and the running server to load it, if any.

    `key` signs the repository. A key of `trust` must have signed the bundle.
    """

    target: str = "cpu"
    variant: str = "latency"
    profile: str = "fp32"
    graphs: str = "split"
    replace: bool = False
    load: str | None = None
    admin_key: Path | None = None
    cores: int | None = None
    connection: Connection = PLAIN
    key: "SigningKey | None" = None
    trust: TrustedKeys | None = None


@dataclass(frozen=True)
class Taken:
    """What a running server loaded, and its result at the gate before the switch."""

    loaded: "Reload"
    check: "ServerCheck"

    def to_dict(self) -> dict[str, Any]:
        """Return both as JSON-ready values."""
        return {**self.loaded.to_dict(), "gate": self.check.to_dict()}


@dataclass(frozen=True)
class Exported:
    """The published repository, the hub folder, or both; and what a running server loaded."""

    published: "ExportResult | None"
    hub_folder: "HubFolder | None"
    loaded: Taken | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values, with the repository's fields first."""
        values = self.published.to_dict() if self.published else {}
        if self.hub_folder:
            values |= {
                "fingerprint": self.hub_folder.fingerprint,
                "hub_folder": self.hub_folder.to_dict(),
            }
        return {**values, "loaded": self.loaded.to_dict()} if self.loaded else values


@dataclass(frozen=True)
class RolledBack:
    """The version that answers now, and what a running server loaded."""

    published: "Published"
    loaded: "Reload | None"
    changed: bool = True  # False: this version answered before too

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        values = {
            "repository": str(self.published.repository),
            "version": self.published.version,
            "fingerprint": self.published.fingerprint,
            "changed": self.changed,
        }
        return {**values, "loaded": self.loaded.to_dict()} if self.loaded else values


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
            here or through the running server. In that case the server keeps the version that it had.
        ServiceError: The running server does not answer, and nothing was published; or it did not load the new version,
            which is withdrawn.
    """
    from export.hub import check_free, write_hub_folder

    publication = publication or Publication()
    _check_options(table, repository, hub_folder, publication)
    if hub_folder:
        check_free(hub_folder)  # before the slow part
    bundle = load_bundle(path, trust=publication.trust)
    published = loaded = folder = None
    if table and repository and publication.load:
        _prepare_load(repository, publication)  # before the slow part
    if table and repository:
        published = _publish(console, bundle, table, repository, publication)
        loaded = published.taken if isinstance(published.taken, Taken) else None
    if hub_folder:
        # Publishing wrote its report into the bundle, so the bundle is read and hashed again.
        current = load_bundle(path) if published else bundle
        folder = write_hub_folder(current, hub_folder, repository=_find_plain_graphs(published, publication))
    return Exported(published, folder, loaded)


def roll_back(
    console: Console,
    repository: Path,
    *,
    to: int | None = None,
    load: str | None,
    admin_key: Path,
    connection: Connection = PLAIN,
    key: "SigningKey | None" = None,
) -> RolledBack:
    """Switch to another version, on disk and in the running server. If that fails, neither changes.

    A second call completes an interrupted one, or changes nothing.

    Args:
        console: Shows a status while the server loads.
        repository: The published repository.
        to: The version to switch to. None: the oldest kept version.
        load: gRPC address of the server that serves this repository.
        admin_key: File with the server's key.
        connection: TLS and token of that server.
        key: Signs the new state. A signed repository needs it.

    Raises:
        ConfigError: The version or the admin key does not exist, or the server serves another repository.
        ArtifactError: The files of that version are damaged.
        ServiceError: The running server did not load it.
    """
    from contract.repository import read_published
    from export.versions import rollback
    from serving.reload import check_server
    from serving.triton import read_admin_key

    before = read_published(repository).version
    served_version = check_server(load, repository, read_admin_key(admin_key), connection) if load else None
    published = rollback(repository, to, key=key)
    previous = before if served_version is None else served_version
    undo = (lambda: rollback(repository, previous, key=key)) if previous in published.versions else None
    loaded = _load(console, repository, load, admin_key, undo=undo, connection=connection) if load else None
    changed = (before if served_version is None else served_version) != published.version
    return RolledBack(published, loaded, changed)


def _prepare_load(repository: Path, publication: Publication) -> None:
    """Check that the server can load a new version; undo a switch that the server did not receive.

    The version that the server answers with must be kept beside the new version.
    """
    from contract.repository import read_published
    from export.versions import rollback, settle
    from serving.reload import check_server
    from serving.triton import read_admin_key

    settle(repository)
    served_version = check_server(
        str(publication.load),
        repository,
        read_admin_key(_require_key(publication)),
        publication.connection,
    )
    if served_version not in (None, read_published(repository).version):
        rollback(repository, served_version, key=publication.key)


def _check_options(
    table: Path | None, repository: Path | None, hub_folder: Path | None, publication: Publication
) -> None:
    from export.targets import check_target
    from serving.triton import read_admin_key

    check_target(publication.target, publication.variant)
    if (table is None) is not (repository is None):
        raise ConfigError("--repository and --table belong together: the parity gate runs the table's cases.")
    if repository is None and hub_folder is None:
        raise ConfigError("Give --repository with --table, --hub-folder, or all three.")
    if publication.load and (repository is None or publication.replace):
        raise ConfigError("--load needs --repository, and cannot be combined with --replace.")
    if publication.load:
        read_admin_key(_require_key(publication))  # before the slow part


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
            take=partial(take_version, console, publication) if publication.load else None,
        )


def take_version(
    console: Console, publication: Publication, repository: Path, version: int, check: "Check"
) -> Taken:
    """Load a waiting version into the running server, run the gate there, and switch to the version if it passes.

    Any failure withdraws the version, on disk and at the server. The version before it answers again.

    Raises:
        ParityError: The server's answers are beyond the limits of the gate.
        ServiceError, ConfigError: The server did not load it, or its backend does not honour the profile.
    """
    from contract.repository import read_published
    from export.versions import promote, withdraw

    reports: list[ServerCheck] = []

    def run_gate(served: "ServedGraphs") -> None:
        report, runtime = _ask_server(served, read_published(repository).details["layout"], check)
        reports.append(report)
        if not report.passed:
            console.print(report.to_markdown(), highlight=False, markup=False, soft_wrap=True)
            raise ParityError(
                f"Version {version} does not answer through Triton at {publication.load} as its graphs did: "
                f"{report.failures[0]}."
            )
        promote(repository, version, runtime, key=publication.key)

    key, url = _require_key(publication), str(publication.load)
    undo = partial(withdraw, repository, version, key=publication.key)
    loaded = _load(
        console, repository, url, key, undo=undo, before_switch=run_gate, connection=publication.connection
    )
    return Taken(loaded, reports[0])


def _ask_server(served: "ServedGraphs", layout: str, check: "Check") -> "tuple[ServerCheck, dict[str, Any]]":
    """Return the report of the gate at the server, and the runtime it ran on."""
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


def _load(
    console: Console,
    repository: Path,
    url: str,
    admin_key: Path,
    *,
    undo: Callable[[], object] | None,
    before_switch: "Callable[[ServedGraphs], None] | None" = None,
    connection: Connection = PLAIN,
) -> "Reload":
    """Let the server at `url` load the repository's current version. On failure call `undo` and load again.

    With `before_switch` the export's progress bar is still shown, and rich before 14.1 shows one display at a time.
    """
    from serving.reload import reload_models
    from serving.triton import read_admin_key

    key = read_admin_key(admin_key)
    try:
        words = Text(f"Loading into Triton at {url}")
        with contextlib.nullcontext() if before_switch else console.status(words):
            return reload_models(url, repository, key, before_switch=before_switch, connection=connection)
    except BaseException as error:
        if undo is None:
            raise
        undo()
        with contextlib.suppress(
            CxrError
        ):  # the server has the old version; this makes it report ready again
            reload_models(url, repository, key, connection=connection)
        if not isinstance(error, CxrError):
            raise
        raise type(error)(f"{error} The change was undone, and the version before it answers.") from error


def _require_key(publication: Publication) -> Path:
    if publication.admin_key is None:
        raise ConfigError("--load needs --admin-key.")
    return publication.admin_key


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
    if exported.loaded:
        report = exported.loaded.check.to_markdown()
        console.print(report, highlight=False, markup=False, soft_wrap=True)
        _print_loaded(console, exported.loaded.loaded)
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
    if result.loaded:
        _print_loaded(console, result.loaded)


def _print_loaded(console: Console, loaded: "Reload") -> None:
    seconds = sum(loaded.seconds.values())
    console.print(f"Triton loaded model {loaded.fingerprint[:12]} in {seconds:.1f} s.", highlight=False)
