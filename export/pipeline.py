"""One call from a bundle to what Triton loads: graphs, parity gate, repository."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from contract.bundle import load_bundle
from contract.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from export.parity import ParityCase, ParityReport

Progress = Callable[[int, int], None]
_PACKAGES: Final = ("torch", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class ExportResult:
    """What `export` did: where the repository is, how the gate went, how large each graph is."""

    repository: Path
    parity: "ParityReport"
    graph_bytes: dict[str, int]
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return {
            "repository": str(self.repository),
            "fingerprint": self.fingerprint,
            "graph_bytes": self.graph_bytes,
            "parity": self.parity.to_dict(),
        }


def export(
    bundle_path: Path | str,
    repository: Path | str,
    cases: "Sequence[ParityCase]",
    progress: Progress | None = None,
    *,
    target: Literal["cpu", "gpu"] = "cpu",
) -> ExportResult:
    """Export a bundle, check the graphs against the model and publish them.

    Args:
        bundle_path: The bundle's directory.
        repository: Where the repository goes; one published earlier is replaced.
        cases: Real cases for the parity gate, best with image and report (`check_parity`).
        progress: Called with (percent done, 100).
        target: What the graphs run on once served.

    Raises:
        ConfigError: The `export` extra is missing, `repository` is not ours to replace, or no case
            has a report.
        ArtifactError: The bundle is damaged or the disk refused the write.
        ParityError: A graph answers differently from the model. Nothing is published, and an older
            repository stays as it was.
    """
    _require_extra()
    from export.graphs import export_graphs
    from export.parity import check_parity
    from export.publish import check_replaceable, publish

    bundle = load_bundle(bundle_path)
    check_replaceable(Path(repository))  # before the slow part
    with _make_scratch() as scratch:
        graphs = export_graphs(bundle, Path(scratch), _scale(progress, 0, 60))
        parity = check_parity(bundle, graphs, cases, _scale(progress, 60, 95))
        published = publish(bundle, graphs, Path(repository), target)
        graph_bytes = {name: _count_bytes(path) for name, path in graphs.items()}
    if progress:
        progress(100, 100)
    return ExportResult(published, parity, graph_bytes, bundle.fingerprint)


def _require_extra() -> None:
    if any(find_spec(name) is None for name in _PACKAGES):
        raise ConfigError("Export needs the 'export' extra: pip install 'cxr-serving[export]'.")


def _make_scratch() -> "tempfile.TemporaryDirectory[str]":
    try:
        return tempfile.TemporaryDirectory(prefix="cxr-export-")
    except OSError as error:
        raise ArtifactError(f"No temporary directory can be made: {error.strerror or error}.") from error


def _scale(progress: Progress | None, start: int, end: int) -> Progress | None:
    """Return a progress function for one stage, from `start` to `end` percent of the whole."""
    if progress is None:
        return None
    return lambda done, total: progress(start + (end - start) * done // max(total, 1), 100)


def _count_bytes(graph: Path) -> int:
    weights = graph.with_name(f"{graph.name}.data")
    return graph.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)
