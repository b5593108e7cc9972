"""Export a bundle in one call: write the graphs, run the gates, publish the repository for Triton."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from contract.bundle import Bundle, load_bundle
from contract.errors import ArtifactError, ConfigError
from contract.repository import read_published

if TYPE_CHECKING:
    from export.configs import Deployment
    from export.gates.parity import ParityCase, ParityReport
    from export.gates.precision import ServedGraphs
    from export.gates.precision_report import PrecisionReport
    from export.gates.server import StoredAnswers
    from export.gates.server_precision import ServerCheck
    from export.profiles import Profile
    from export.signing_keys import SigningKey

Progress = Callable[[int, int], None]
Check = Callable[["ServedGraphs"], "ServerCheck"]
# Repository, the new version that no client uses yet, the gate at the server -> a result for `ExportResult.taken`.
Take = Callable[[Path, int, Check], object]
_PACKAGES: Final = ("torch", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class ExportResult:
    """The result of `export`.

    Attributes:
        repository: The published repository.
        parity: The report of the parity gate.
        graph_bytes: Graph -> size with its weights, in bytes.
        fingerprint: Fingerprint of the bundle.
        version: The new version of the repository.
        precision: The report of the precision gate.
        precision_path: That report in the bundle; None if the bundle cannot be written.
        taken: The result of `take`.
    """

    repository: Path
    parity: "ParityReport"
    graph_bytes: dict[str, int]
    fingerprint: str
    version: int = 1
    precision: "PrecisionReport | None" = None
    precision_path: Path | None = None
    taken: object = None

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
    bundle: "Bundle | Path | str",
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
    key: "SigningKey | None" = None,
) -> ExportResult:
    """Export a bundle, compare the graphs with the model, and publish them.

    Args:
        bundle: The bundle or its directory.
        repository: Directory of the repository. A repository that was published before gets a new version of every
            model.
        cases: Real cases for the parity gate, best with image and report (`check_parity`).
        progress: Called with (percent of the work, 100).
        precision_cases: Real cases for the precision gate, best the labelled test split (`check_precision`). None:
            `cases`. The report of the gate is written into the bundle, unless that would end its signature.
        target: The hardware of the served graphs: cpu, gpu or tensorrt.
        variant: The aim of the server's settings: latency or throughput.
        profile: Precision profile of the graphs (`export.profiles`).
        layout: "split", or "fused" for encoders and fusion in one graph per kind of request.
        cores: Number of processor cores of the server's machine. None: those of this machine.
        replace: Replace a repository that was published before, with all its versions.
        take: Lets a running server load the new version beside the current one, runs the given gate there, and switches
            to the new version. An error that it raises ends the export.
        key: Signs the repository, and a bundle that it signed before. A signed repository takes no version without it.

    Raises:
        ConfigError: The `export` extra is missing, a name is unknown, no case has a report, or `repository` was not
            published by cxr or holds models that this bundle cannot be a new version of.
        ArtifactError: The bundle is damaged, or the disk refused the write.
        ParityError: A graph answers differently from the model. Nothing is published, and a repository that was
            published before is unchanged.
    """
    if any(find_spec(name) is None for name in _PACKAGES):
        raise ConfigError("Export needs the 'export' extra: pip install 'cxr-serving[export]'.")
    from export.profiles import load_profile
    from export.publish import check_fits, check_replaceable, publish

    if not isinstance(bundle, Bundle):
        bundle = load_bundle(bundle)
    chosen = load_profile(profile)
    deployment = make_deployment(chosen, target, variant, layout, cores)
    repository = Path(repository)
    if check_replaceable(repository) and not replace:
        check_fits(bundle, repository, deployment, key=key)  # before the slow part
    if precision_cases is None:
        precision_cases = cases
    from export.gates.server_precision import check_server
    from export.graphs.checks import count_bytes

    with _make_scratch() as scratch:
        graphs = _make_graphs(bundle, Path(scratch), cases, precision_cases, deployment, chosen, progress)
        published = publish(
            bundle,
            graphs.served,
            repository,
            deployment,
            replace=replace,
            standby=take is not None,
            gates=graphs.describe_gates(),
            stored=graphs.stored,
            key=key,
        )
        version = read_published(published).newest
        graph_bytes = {name: count_bytes(graphs.served[name]) for name in deployment.graphs}
        check = partial(
            check_server,
            bundle,
            graphs.converted,
            chosen,
            precision_cases,
            reference=graphs.plain,
            stored=graphs.stored,
        )
        taken = take(published, version, check) if take else None
    if progress:
        progress(100, 100)
    return ExportResult(
        published,
        graphs.parity,
        graph_bytes,
        bundle.fingerprint,
        version,
        graphs.precision,
        _write_report(bundle, graphs.precision, key),
        taken,
    )


def _write_report(bundle: Bundle, precision: "PrecisionReport", key: "SigningKey | None") -> Path | None:
    """Write the report into the bundle. A signed bundle changes only if `key` signed it, and is signed again."""
    from export.gates.precision_report import write_report
    from export.signing import sign_bundle

    if (signed := bundle.is_signed) and (key is None or not key.accepts(bundle)):
        return None
    try:
        path = write_report(bundle, precision)
        if signed and key is not None:
            sign_bundle(bundle.path, key)
        return path
    except ArtifactError:  # a bundle on a read-only disk can be published too
        return None


def make_deployment(
    profile: "Profile", target: str, variant: str, layout: str, cores: int | None = None
) -> "Deployment":
    """Return the deployment of a profile. Raise ConfigError if a name is unknown or does not fit the profile."""
    from export.configs import Deployment
    from export.targets import count_cores, make_optimization

    optimization = make_optimization(target, profile)
    deployment = Deployment(target, variant, profile.name, layout, optimization, cores or count_cores())
    deployment.check()
    return deployment


@dataclass(frozen=True)
class _Graphs:
    """The graphs of a bundle in three forms, and the reports of the gates."""

    plain: Mapping[str, Path]  # in float32, after the parity gate
    converted: Mapping[str, Path]  # in the precision of the profile
    served: Mapping[str, Path]  # in the layout of the deployment
    parity: "ParityReport"
    precision: "PrecisionReport"
    stored: "StoredAnswers"

    def describe_gates(self) -> dict[str, Any]:
        """Return gate -> its runtime, provider, precision and number of cases, for the marker."""
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
    """Return the provider in a text of `Session.describe`, such as "ONNX Runtime 1.27.0 CPU, 2 threads"."""
    words = runtime.partition(",")[0].split()
    return words[-1] if words[0] == "ONNX" else words[0]


def _make_graphs(
    bundle: Bundle,
    scratch: Path,
    cases: "Sequence[ParityCase]",
    precision_cases: "Sequence[ParityCase]",
    deployment: "Deployment",
    profile: "Profile",
    progress: Progress | None,
) -> _Graphs:
    """Export and convert the graphs, run both gates, and return the graphs with the reports."""
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
    bundle: Bundle,
    plain: Mapping[str, Path],
    converted: Mapping[str, Path],
    profile: "Profile",
    deployment: "Deployment",
    scratch: Path,
    cases: "Sequence[ParityCase]",
) -> None:
    """Require that a profile is faster than the profile in its setting `faster_than`, if it has one."""
    from export.graphs.convert import convert_graphs
    from export.profiles import load_profile
    from export.speed import compare_speed, require_faster

    if profile.faster_than:
        other = load_profile(profile.faster_than)
        graphs = convert_graphs(bundle, plain, other, scratch / "other", target=deployment.target).paths
        require_faster(compare_speed(bundle, [(profile, converted), (other, graphs)], cases))


def _make_scratch() -> "tempfile.TemporaryDirectory[str]":
    try:
        return tempfile.TemporaryDirectory(prefix="cxr-export-")
    except OSError as error:
        raise ArtifactError(
            f"Could not create a temporary directory ({error.strerror or error}). Set TMPDIR to a directory with "
            "free space."
        ) from error


def _scale(progress: Progress | None, start: int, end: int) -> Progress | None:
    """Return a progress function for one stage, from `start` to `end` percent of the export."""
    if progress is None:
        return None
    return lambda done, total: progress(start + (end - start) * done // max(total, 1), 100)
