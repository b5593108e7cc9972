"""`cxr export tensorrt`: build TensorRT plans from exported ONNX graphs, or write the files to build them elsewhere.

    OUT/models/<model>/config.pbtxt          the config of the plan; copy models/ over a copy of the repository
    OUT/models/<model>/<N>/model.plan        the plan
    OUT/models/<model>/<N>/model.plan.json   the record of the build, which `export.tensorrt.records` reads
    OUT/timing-<release>-sm<capability>.cache    the builder's timing cache, which makes the next build faster
    OUT/tensorrt.json                        the summary of this command
    OUT/graphs/<model>.onnx                  the graphs in float32, if the source is a bundle
    OUT/graphs/<model>.<precision>.onnx      the graphs of the plans, where they were converted

Without TensorRT or a GPU nothing is built. OUT/build.sh then builds the plans in NVIDIA's container.

A plan runs only on the TensorRT release and the kind of GPU that built it. It has not passed the parity gate.
"""

import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from contract.bundle import compute_sha256, load_bundle, require_same_fingerprint, write_json
from contract.errors import ArtifactError, ConfigError
from contract.files import write_file
from contract.repository import CONFIG_NAME, MARKER, read_published, verify
from contract.signatures import TrustedKeys
from export.graphs.checks import read_fingerprint
from export.tensorrt.builders import Gpu, PlanBuilder, check_gpu, find_builder, read_gpu
from export.tensorrt.configs import (
    CONTAINER,
    CONTAINER_RELEASE,
    PLAN_NAME,
    make_container_command,
    to_plan_config,
)
from export.tensorrt.graph import (
    PRECISIONS,
    PlanRequest,
    Precision,
    convert_graph,
)
from export.tensorrt.operators import RELEASE, Version, require_operators
from export.tensorrt.records import format_numbers, is_current, make_record, name_record
from export.tensorrt.shapes import make_profiles
from export.versions import format_config, list_models, read_config

Progress = Callable[[int, int], None]

_SUMMARY: Final = "tensorrt.json"
_SCRIPT: Final = "build.sh"
_NOT_CHECKED: Final = (
    "The plans have not passed the parity gate. Compare their answers before you serve them."
)


@dataclass(frozen=True)
class PlanSettings:
    """The settings of a user.

    Attributes:
        precision: "fp32", "fp16" or "bf16".
        typical_batch: The batch size that the plans are tuned for.
        workspace_mib: Workspace of the builder in MiB.
        cuda_graphs: Whether Triton captures the small shapes of the warm-up as CUDA graphs (`to_plan_config`).
    """

    precision: Precision = "fp16"
    typical_batch: int = 8
    workspace_mib: int = 4096
    cuda_graphs: bool = False

    def check(self) -> None:
        """Raise ConfigError if a value is unknown or out of range."""
        if self.precision not in PRECISIONS:
            raise ConfigError(f"The precision must be fp32, fp16 or bf16, not {self.precision}.")
        if self.workspace_mib < 1:
            raise ConfigError(f"The workspace must be at least 1 MiB, not {self.workspace_mib}.")


@dataclass(frozen=True)
class PlanSource:
    """One graph, published or just exported, with its config and version."""

    name: str
    graph: Path
    config: Any
    version: int


@dataclass(frozen=True)
class PlanExport:
    """The result of a run.

    Attributes:
        out: The output directory.
        fingerprint: Fingerprint of the model.
        plans: Graph -> plan, new or of an earlier run.
        kept: Names of the graphs whose plan is of an earlier run.
        builder: Name of the builder; "" if nothing was built.
        reason: The reason why nothing was built, or "".
        commands: The commands that build the plans elsewhere.
        notes: Sentences for the user.
    """

    out: Path
    fingerprint: str
    plans: Mapping[str, Path]
    kept: tuple[str, ...]
    builder: str
    reason: str
    commands: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        values = asdict(self)
        return {
            **values,
            "finished": True,
            "built": bool(self.plans),
            "out": str(self.out),
            "plans": {name: str(path) for name, path in self.plans.items()},
        }

    def to_sentences(self) -> list[str]:
        """Return the result and the next steps in sentences."""
        if self.plans:
            kept = f" ({len(self.kept)} of them from an earlier run)" if self.kept else ""
            head = f"{len(self.plans)} plans{kept} by {self.builder}: {self.out / 'models'}"
        else:
            head = (
                f"Nothing was built, because {self.reason}. Run {self.out / _SCRIPT} on a machine with an NVIDIA GPU "
                "and Docker. Or publish with `cxr export --target tensorrt`: Triton then builds engines at its first "
                "start."
            )
        return [head, *self.notes]


def export_plans(
    source: Path,
    out: Path,
    settings: PlanSettings | None = None,
    progress: Progress | None = None,
    *,
    trust: TrustedKeys | None = None,
) -> PlanExport:
    """Build a plan of every graph of a bundle or a published repository, or write the files to build it elsewhere.

    A plan of an earlier run is used again if graph, settings, TensorRT and GPU are the same.

    Args:
        source: A bundle, whose graphs are exported first, or a repository that `cxr export` published.
        out: The output directory: a new one, an empty one, or one that this function wrote.
        settings: The settings. None: the defaults.
        progress: Called with (number of finished graphs, number of all graphs).
        trust: The keys of which one must have signed `source`. None: no signature is needed.

    Raises:
        SignatureError: No key of `trust` signed `source`.
        ConfigError: `source` is neither of the two, `out` holds other files, or TensorRT or the GPU cannot build these
            plans.
        ArtifactError: TensorRT cannot read a graph, its build failed, or the disk refused the write.
        FingerprintError: A graph comes from another model than its repository.
    """
    settings = settings or PlanSettings()
    settings.check()
    source, out = source.absolute(), out.absolute()
    _check_out(source, out)
    builder, gpu, reason = _find_machine()
    version = builder.version if builder else RELEASE
    with _emptied_on_failure(out):
        write_json(out / _SUMMARY, {"finished": False})  # so that a later run may continue here
        sources, fingerprint = _read_sources(source, out, trust)
        for item in sources:
            require_operators(item.graph, version)
        requests = {item.name: _make_request(item, out, settings, builder, gpu) for item in sources}
    _write_configs(sources, requests, out, cuda_graphs=settings.cuda_graphs)
    if builder and gpu:
        (out / _SCRIPT).unlink(missing_ok=True)  # of an earlier run that could not build
        kept = _build_all(builder, gpu, requests, fingerprint, progress)
        plans = {name: request.plan for name, request in requests.items()}
        notes = (*_find_mismatch(builder.version), _NOT_CHECKED)
        result = PlanExport(out, fingerprint, plans, kept, builder.name, "", (), notes)
    else:
        commands = _write_script(sources, requests, out)
        result = PlanExport(out, fingerprint, {}, (), "", reason, commands, (_NOT_CHECKED,))
    write_json(out / _SUMMARY, result.to_dict())
    return result


def _check_out(source: Path, out: Path) -> None:
    if out == source or source in out.parents:
        raise ConfigError(f"{out} lies in {source}. Choose a directory outside of it.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is not a directory. Choose another path.")
    if out.is_dir() and any(out.iterdir()) and not (out / _SUMMARY).is_file():
        raise ConfigError(
            f"{out} is not empty and has no {_SUMMARY} of an earlier run. Choose another directory."
        )


@contextmanager
def _emptied_on_failure(out: Path) -> Iterator[None]:
    """On an error empty a directory that was empty, and remove the directories that did not exist."""
    created = [path for path in (out, *out.parents) if not path.exists()]  # the deepest first
    was_empty = out in created or not any(out.iterdir())
    try:
        yield
    except BaseException:
        for entry in out.iterdir() if was_empty and out.is_dir() else ():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        with suppress(OSError):
            for path in created:
                path.rmdir()
        raise


def _find_machine() -> tuple[PlanBuilder | None, Gpu | None, str]:
    """Return the builder and the GPU of this machine, and the reason why nothing can be built, or ""."""
    builder = find_builder()
    if builder is None:
        return None, None, "neither the tensorrt package nor trtexec is installed"
    gpu = read_gpu()
    if gpu is None:
        return builder, None, "nvidia-smi names no GPU"
    return builder, gpu, ""


def _read_sources(source: Path, out: Path, trust: TrustedKeys | None) -> tuple[list[PlanSource], str]:
    if (source / MARKER).is_file():
        if trust is not None:
            verify(source, trust)
        return _read_repository(source)
    if not (source / "manifest.json").is_file():
        raise ConfigError(f"{source} is neither a bundle nor a repository that cxr export published.")
    from contract.tensors import MODELS
    from export.configs import Deployment, fill_config
    from export.graphs.from_torch import export_graphs

    bundle = load_bundle(source, trust=trust)
    graphs = export_graphs(bundle, out / "graphs")
    deployment = Deployment(target="tensorrt")
    items = [
        PlanSource(name, graph, fill_config(bundle, MODELS[name], deployment), 1)
        for name, graph in graphs.items()
    ]
    return items, bundle.fingerprint


def _read_repository(repository: Path) -> tuple[list[PlanSource], str]:
    published = read_published(repository)
    items = []
    for name in list_models(repository):
        config = read_config(repository / name / CONFIG_NAME)
        if config.backend == "onnxruntime":
            graph = repository / name / str(published.version) / "model.onnx"
            require_same_fingerprint(
                published.fingerprint,
                read_fingerprint(graph),
                expected_from=str(repository),
                found_from=str(graph),
            )
            items.append(PlanSource(name, graph, config, published.version))
    if not items:
        raise ConfigError(f"{repository} holds no ONNX graphs. Publish the model again with `cxr export`.")
    return items, published.fingerprint


def _make_request(
    item: PlanSource, out: Path, settings: PlanSettings, builder: PlanBuilder | None, gpu: Gpu | None
) -> PlanRequest:
    converted = out / "graphs" / f"{item.name}.{settings.precision}.onnx"
    graph, precision = convert_graph(item.graph, settings.precision, converted)
    here = (
        f"{format_numbers(builder.version)}-sm{format_numbers(gpu.capability, '')}" if builder and gpu else ""
    )
    request = PlanRequest(
        graph=graph,
        plan=out / "models" / item.name / str(item.version) / PLAN_NAME,
        timing_cache=out / f"timing-{here or CONTAINER_RELEASE}.cache",
        profiles=make_profiles(item.config, settings.typical_batch),
        precision=precision,
        workspace_mib=settings.workspace_mib,
    )
    if gpu:
        check_gpu(request, gpu)
    return request


def _build_all(
    builder: PlanBuilder,
    gpu: Gpu,
    requests: Mapping[str, PlanRequest],
    fingerprint: str,
    progress: Progress | None,
) -> tuple[str, ...]:
    """Build the plans that an earlier run did not build; return the names of the others."""
    kept = []
    for done, (name, request) in enumerate(requests.items()):
        if progress:
            progress(done, len(requests))
        record = make_record(builder, gpu, request, fingerprint)
        if is_current(request.plan, record):
            kept.append(name)
            continue
        builder.build(request)
        write_json(name_record(request.plan), record | {"plan_sha256": compute_sha256(request.plan)})
    if progress:
        progress(len(requests), len(requests))
    return tuple(kept)


def _write_configs(
    sources: list[PlanSource], requests: Mapping[str, PlanRequest], out: Path, *, cuda_graphs: bool
) -> None:
    for item in sources:
        profiles = len(requests[item.name].profiles)
        config = to_plan_config(item.config, item.version, profiles=profiles, cuda_graphs=cuda_graphs)
        text = format_config(config)
        write_file(out / "models" / item.name / CONFIG_NAME, text)


def _write_script(
    sources: list[PlanSource], requests: Mapping[str, PlanRequest], out: Path
) -> tuple[str, ...]:
    """Write the script; return its commands, one for each graph."""
    for item in sources:
        version = out / "models" / item.name / str(item.version)
        try:
            version.mkdir(parents=True, exist_ok=True)  # the container writes into it
        except OSError as error:
            raise ArtifactError(f"Could not write {version}: {error.strerror or error}.") from error
    commands = tuple(shlex.join(make_container_command(request, out)) for request in requests.values())
    head = f"#!/bin/sh\n# Builds the plans of {out} in {CONTAINER}. Run it on a machine with an NVIDIA GPU.\nset -e\n"
    write_file(out / _SCRIPT, head + "".join(f"{command}\n" for command in commands), mode=0o777)
    return commands


def _find_mismatch(version: Version) -> tuple[str, ...]:
    if version[:2] == RELEASE:
        return ()
    return (
        f"These plans need TensorRT {format_numbers(version)}. Triton {CONTAINER_RELEASE} has "
        f"{format_numbers(RELEASE)} and does not load them.",
    )
