"""One call from a bundle to what Triton loads: graphs, parity gate, repository."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from contract.bundle import load_bundle
from contract.errors import ArtifactError, ConfigError
from contract.repository import read_published

if TYPE_CHECKING:
    from contract.bundle import Bundle
    from export.configs import Deployment
    from export.gates.parity import ParityCase, ParityReport
    from export.gates.precision import ServedGraphs
    from export.gates.precision_report import PrecisionReport
    from export.gates.server import StoredAnswers
    from export.gates.server_precision import ServerCheck
    from export.profiles import Profile

Progress = Callable[[int, int], None]
Check = Callable[["ServedGraphs"], "ServerCheck"]
# Repository, the new version, which waits there, and the gate at the server -> what came of it.
Take = Callable[[Path, int, Check], object]
_PACKAGES: Final = ("torch", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class ExportResult:
    """What `export` did: where the repository is, how the gate went, how large each graph is, which version it is."""

    repository: Path
    parity: "ParityReport"
    graph_bytes: dict[str, int]
    fingerprint: str
    version: int = 1
    precision: "PrecisionReport | None" = None
    precision_path: Path | None = None  # its report in the bundle; None where that could not be written
    taken: object = None  # what `take` returned

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return {
            "repository": str(self.repository),
            "fingerprint": self.fingerprint,
            "version": self.version,
            "graph_bytes": self.graph_bytes,
            "parity": self.parity.to_dict(),
            **({"precision": self.precision.to_dict()} if self.precision else {}),
            "precision_path": None if self.precision_path is None else str(self.precision_path),
        }


def export(
    bundle_path: Path | str,
    repository: Path | str,
    cases: "Sequence[ParityCase]",
    progress: Progress | None = None,
    *,
    precision_cases: "Sequence[ParityCase] | None" = None,
    target: str = "cpu",
    variant: str = "latency",
    profile: str = "fp32",
    layout: str = "split",
    cores: int | None = None,
    replace: bool = False,
    take: Take | None = None,
) -> ExportResult:
    """Export a bundle, check the graphs against the model and publish them.

    Args:
        bundle_path: The bundle's directory.
        repository: Where the repository goes; one published earlier gets a new version of every model.
        cases: Real cases for the parity gate, best with image and report (`check_parity`).
        progress: Called with (percent done, 100).
        precision_cases: Real cases that the profile is held to, best the labelled test split (`check_precision`);
            None: `cases`. The report goes into the bundle.
        target: What the graphs run on once served: cpu, gpu or tensorrt.
        variant: What the server is tuned for: latency or throughput.
        profile: Precision profile of the graphs (`export.profiles`).
        layout: "split", or "fused" for encoders and fusion in one graph per kind of question.
        cores: Of the machine that serves; None is this one.
        replace: Replace a repository published earlier whole.
        take: Has a running server load the new version beside the one that answers, hold it to the gate that it is
            given, and switch to it. What it raises ends the export.

    Raises:
        ConfigError: The `export` extra is missing, a name is unknown, no case has a report, or `repository` is
            not ours or holds models of which this cannot be a version.
        ArtifactError: The bundle is damaged or the disk refused the write.
        ParityError: A graph answers differently from the model. Nothing is published, and an older
            repository stays as it was.
    """
    _require_extra()
    from export.publish import check_fits, check_replaceable, publish

    bundle, chosen = load_bundle(bundle_path), _load_profile(profile)
    deployment = make_deployment(chosen, target, variant, layout, cores)
    repository = Path(repository)
    if check_replaceable(repository) and not replace:
        check_fits(bundle, repository, deployment)  # before the slow part
    held_to = cases if precision_cases is None else precision_cases
    with _make_scratch() as scratch:
        made = _make_graphs(bundle, Path(scratch), cases, held_to, deployment, chosen, progress)
        published = publish(
            bundle,
            made.served,
            repository,
            deployment,
            replace=replace,
            standby=take is not None,
            gates=made.describe_gates(),
            stored=made.stored,
        )
        version = read_published(published).newest
        graph_bytes = {name: _count_bytes(made.served[name]) for name in deployment.graphs}
        check = partial(_check_server, bundle, made, chosen, held_to)
        taken = take(published, version, check) if take else None
    if progress:
        progress(100, 100)
    return ExportResult(
        published,
        made.parity,
        graph_bytes,
        bundle.fingerprint,
        version,
        made.precision,
        _record(bundle, made.precision),
        taken,
    )


def _record(bundle: "Bundle", precision: "PrecisionReport") -> Path | None:
    from export.gates.precision_report import write_report

    try:
        return write_report(bundle, precision)
    except ArtifactError:  # a bundle on a read-only disk can be published too
        return None


def _load_profile(name: str) -> "Profile":
    from export.profiles import load_profile

    return load_profile(name)


def make_deployment(
    profile: "Profile", target: str, variant: str, layout: str, cores: int | None = None
) -> "Deployment":
    """Return how the graphs of a profile are to run; ConfigError when a name is unknown or does not fit the profile."""
    from export.configs import Deployment
    from export.targets import count_cores, make_optimization

    optimization = make_optimization(target, profile)
    deployment = Deployment(target, variant, profile.name, layout, optimization, cores or count_cores())
    deployment.check()
    return deployment


@dataclass(frozen=True)
class _Graphs:
    """The graphs of a bundle in their three forms, and what the gates said of them."""

    plain: Mapping[str, Path]  # float32, which agree with PyTorch
    converted: Mapping[str, Path]  # of the profile
    served: Mapping[str, Path]  # those of the layout
    parity: "ParityReport"
    precision: "PrecisionReport"
    stored: "StoredAnswers"

    def describe_gates(self) -> dict[str, Any]:
        """Return what each gate ran on, for the marker."""
        runtimes = sorted(set(self.precision.runtimes.values()))
        onnxruntime = f"ONNX Runtime {self.parity.versions['onnxruntime']} CPU"
        return {
            "parity": _describe_gate([onnxruntime], "fp32", self.parity.cases),
            "precision": _describe_gate(runtimes, self.precision.profile, self.precision.cases),
        }


def _describe_gate(runtimes: "Sequence[str]", precision: str, cases: int) -> dict[str, Any]:
    providers = {_name_provider(runtime) for runtime in runtimes}
    return {
        "runtime": "; ".join(runtimes),
        "provider": ", ".join(sorted(providers)),
        "precision": precision,
        "cases": cases,
    }


def _name_provider(runtime: str) -> str:
    """Return the provider in what `Session.describe` says: "ONNX Runtime 1.27.0 CPU, 2 threads"."""
    words = runtime.partition(",")[0].split()
    return words[-1] if words[0] == "ONNX" else words[0]


def _make_graphs(
    bundle: Any,
    scratch: Path,
    cases: "Sequence[ParityCase]",
    precision_cases: "Sequence[ParityCase]",
    deployment: "Deployment",
    profile: "Profile",
    progress: Progress | None,
) -> _Graphs:
    """Return the graphs of the deployment, which have passed both gates, and the gates' reports."""
    from export.gates.parity import check_parity
    from export.gates.server_precision import store_answers
    from export.graphs.from_torch import export_graphs
    from export.graphs.fuse import fuse_graphs
    from export.settle import settle_graphs

    plain = export_graphs(bundle, scratch, _scale(progress, 0, 40))
    parity = check_parity(bundle, plain, cases, _scale(progress, 40, 65))
    settled, precision = settle_graphs(
        bundle,
        plain,
        profile,
        precision_cases,
        scratch / "converted",
        _scale(progress, 65, 95),
        target=deployment.target,
    )
    converted = settled.paths
    _require_faster(bundle, plain, converted, profile, deployment, scratch, cases)
    served = fuse_graphs(converted, scratch / "fused") if deployment.layout == "fused" else converted
    stored = store_answers(bundle, converted, profile)
    return _Graphs(plain, converted, served, parity, precision, stored)


def _require_faster(
    bundle: Any,
    plain: Mapping[str, Path],
    converted: Mapping[str, Path],
    profile: "Profile",
    deployment: "Deployment",
    scratch: Path,
    cases: "Sequence[ParityCase]",
) -> None:
    """Hold a profile to being faster than the one that it names, if any."""
    from export.graphs.convert import convert_graphs
    from export.speed import compare_speed, require_faster

    if profile.faster_than:
        rival = _load_profile(profile.faster_than)
        slower = convert_graphs(bundle, plain, rival, scratch / "rival", target=deployment.target).paths
        require_faster(compare_speed(bundle, [(profile, converted), (rival, slower)], cases))


def _check_server(
    bundle: "Bundle",
    made: _Graphs,
    profile: "Profile",
    cases: "Sequence[ParityCase]",
    served: "ServedGraphs",
) -> "ServerCheck":
    from export.gates.server_precision import check_server

    return check_server(
        bundle, made.converted, profile, cases, served, reference=made.plain, stored=made.stored
    )


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
