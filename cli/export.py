"""`cxr export`: a bundle into a model repository for Triton, into a folder for the Hugging Face hub, or both."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from rich.console import Console

from cli.progress import show_progress
from contract.bundle import Bundle, load_bundle
from contract.errors import ConfigError

if TYPE_CHECKING:
    from export.hub import HubFolder
    from export.pipeline import ExportResult


@dataclass(frozen=True)
class Exported:
    """What was written: the published repository, the hub folder, or both."""

    published: "ExportResult | None"
    hub_folder: "HubFolder | None"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values; the repository's fields stand at the top."""
        values = self.published.to_dict() if self.published else {}
        if self.hub_folder:
            values |= {
                "fingerprint": self.hub_folder.fingerprint,
                "hub_folder": self.hub_folder.to_dict(),
            }
        return values


def export_bundle(
    console: Console,
    path: Path,
    *,
    table: Path | None,
    repository: Path | None,
    hub_folder: Path | None,
    target: str,
) -> Exported:
    """Publish a bundle into `repository` behind the parity gate, then write the hub folder with those graphs.

    Raises:
        ConfigError: An option is missing or unknown, or a directory is not free.
        ArtifactError: The bundle is damaged, a graph answers differently, or the disk refused the write.
    """
    from export.hub import check_free, write_hub_folder

    _check_options(table, repository, hub_folder, target)
    if hub_folder:
        check_free(hub_folder)  # before the slow part
    bundle = load_bundle(path)
    published = None
    if table and repository:
        published = _publish(console, bundle, table, repository, target)
    folder = None
    if hub_folder:
        folder = write_hub_folder(bundle, hub_folder, repository=published.repository if published else None)
    return Exported(published, folder)


def _check_options(table: Path | None, repository: Path | None, hub_folder: Path | None, target: str) -> None:
    if target not in {"cpu", "gpu"}:
        raise ConfigError(f"--target must be cpu or gpu, not {target}.")
    if (table is None) is not (repository is None):
        raise ConfigError("--repository and --table belong together: the parity gate runs the table's cases.")
    if repository is None and hub_folder is None:
        raise ConfigError("Give --repository with --table, --hub-folder, or all three.")


def _publish(console: Console, bundle: Bundle, table: Path, repository: Path, target: str) -> "ExportResult":
    from cli.cases import make_parity_cases, read_rows
    from export.pipeline import export

    rows = read_rows(table)
    cases = make_parity_cases(rows, bundle.config["text_mode"], bundle.config["sizes"]["S"])
    with show_progress(console, "Exporting") as progress:
        return export(
            bundle.path,
            repository,
            cases,
            progress=progress,
            target=cast(Literal["cpu", "gpu"], target),
        )


def print_export(console: Console, exported: Exported) -> None:
    """Print the parity gate's table, and where everything lies."""
    if exported.published:
        console.print(exported.published.parity.to_markdown(), highlight=False)
        console.print(f"Published into {exported.published.repository}", highlight=False, markup=False)
    if folder := exported.hub_folder:
        megabytes = sum(folder.files.values()) / 1e6
        console.print(
            f"Hub folder: {folder.path} ({len(folder.files)} files, {megabytes:.1f} MB). Read its README.md and the "
            f"study ids in split.json, then: hf upload OWNER/NAME {folder.path}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
