"""Builders of TensorRT plans: the Python API if it is installed, otherwise the program `trtexec`.

They use what the Python API and trtexec of TensorRT 10 and 11 have in common:
https://docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/tensorrt-10x-to-11x.html. Every network is strongly
typed. Release 10 needs a flag for it, which release 11 accepts and ignores.
"""

import importlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from contract.errors import ArtifactError, ConfigError
from contract.files import write_file
from export.graphs.checks import load_graph
from export.tensorrt.graph import OLDEST_RELEASE, PlanRequest
from export.tensorrt.operators import Version, name_node
from export.tensorrt.shapes import format_shapes

_BF16_SINCE: Final = (8, 0)  # compute capability of Ampere
_PART: Final = ".part"  # suffix of an unfinished plan


@dataclass(frozen=True)
class Gpu:
    """Name and CUDA compute capability of the GPU that builds a plan. The plan runs only on this kind of GPU."""

    name: str
    capability: tuple[int, int]


class PlanBuilder(Protocol):
    """Builds plans: the Python API, trtexec, or a test's replacement."""

    @property
    def name(self) -> str:
        """Name of the builder for messages."""

    @property
    def version(self) -> Version:
        """Release of TensorRT. A plan runs only on this release."""

    def build(self, request: PlanRequest) -> None:
        """Write `request.plan`. Raise ArtifactError if TensorRT refuses the graph."""


def read_gpu() -> Gpu | None:
    """Return the first GPU that nvidia-smi lists, or None."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"\s*(.+?),\s*(\d+)\.(\d+)\s*$", answer.splitlines()[0] if answer.strip() else "")
    return Gpu(match[1], (int(match[2]), int(match[3]))) if match else None


def find_builder() -> PlanBuilder | None:
    """Return the builder of this machine, the Python API before trtexec, or None without TensorRT.

    Raises:
        ConfigError: The installed TensorRT is too old for these graphs.
    """
    builder: PlanBuilder
    try:
        builder = PythonBuilder(importlib.import_module("tensorrt"))
    except (ImportError, OSError):  # OSError: the libraries of the package are missing
        program = shutil.which("trtexec")
        if program is None:
            return None
        builder = TrtexecBuilder(program)
    if builder.version < OLDEST_RELEASE:
        release = ".".join(map(str, builder.version))
        raise ConfigError(
            f"The graphs need TensorRT {OLDEST_RELEASE[0]} or later (INT64 inputs, opset 18), not {release}. Install a "
            "later release."
        )
    return builder


def check_gpu(request: PlanRequest, gpu: Gpu) -> None:
    """Raise ConfigError if a GPU cannot compute in the precision of a plan."""
    if request.precision == "bf16" and gpu.capability < _BF16_SINCE:
        major, minor = gpu.capability
        raise ConfigError(f"bf16 needs compute capability 8.0, but {gpu.name} has {major}.{minor}. Use fp16.")


class PythonBuilder:
    """The builder of the `tensorrt` package."""

    name = "TensorRT Python API"

    def __init__(self, module: Any) -> None:
        """Take the imported `tensorrt` module."""
        self._trt = module
        self.version: Version = tuple(int(part) for part in re.findall(r"\d+", module.__version__)[:3])

    def build(self, request: PlanRequest) -> None:
        """Write `request.plan` and update the timing cache.

        Raises:
            ArtifactError: TensorRT cannot read or build the graph, or the disk refused the write.
        """
        errors: list[str] = []
        builder = self._trt.Builder(self._make_logger(errors))
        strongly_typed = self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = builder.create_network(1 << int(strongly_typed))
        self._parse(network, request.graph, errors)
        config = self._configure(builder, request)
        cache = self._load_timing_cache(config, request.timing_cache)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            reason = errors[-1] if errors else "it gave no reason"
            raise ArtifactError(f"TensorRT could not build a plan of {request.graph}: {reason}")
        write_file(request.plan, bytes(plan))
        write_file(request.timing_cache, bytes(cache.serialize()))

    def _make_logger(self, errors: list[str]) -> Any:
        trt = self._trt

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)  # the binding does not support super()

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    errors.append(message)

        return Logger()

    def _parse(self, network: Any, graph: Path, errors: list[str]) -> None:
        parser = self._trt.OnnxParser(network, self._make_logger(errors))
        if parser.parse_from_file(
            str(graph)
        ):  # not from memory, because weights may be in a file beside the graph
            return
        reasons = [_describe(parser.get_error(index), graph) for index in range(parser.num_errors)]
        reason = reasons[0] if reasons else (errors[-1] if errors else "it gave no reason")
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise ArtifactError(f"TensorRT cannot read {graph}: {reason}{more}.")

    def _configure(self, builder: Any, request: PlanRequest) -> Any:
        trt = self._trt
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_mib << 20)
        if request.precision == "fp32":
            config.clear_flag(trt.BuilderFlag.TF32)  # TF32 has only 10 bits of mantissa
        for ranges in request.profiles:
            profile = builder.create_optimization_profile()
            for name, shapes in ranges.items():
                profile.set_shape(name, *shapes)
            config.add_optimization_profile(profile)
        return config

    def _load_timing_cache(self, config: Any, path: Path) -> Any:
        """Return the cache that the build fills. It is empty if the file comes from another release or GPU."""
        data = path.read_bytes() if path.is_file() else b""
        cache = config.create_timing_cache(data)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
        return cache


def _describe(error: Any, graph: Path) -> str:
    """Return node, operator and reason of a parser error."""
    name, operator = error.node_name(), error.node_operator()
    if not operator:
        nodes = load_graph(graph).graph.node
        if 0 <= error.node() < len(nodes):
            name, operator = name_node(nodes[error.node()]), nodes[error.node()].op_type
    where = f"node {name} ({operator}): " if operator else ""
    return where + " ".join(error.desc().split())


class TrtexecBuilder:
    """The builder of the `trtexec` program."""

    def __init__(self, program: str) -> None:
        """Take the path of the program and read its version.

        Raises:
            ConfigError: The program cannot run, or does not print its release.
        """
        self._program = program
        self.name = f"trtexec ({program})"
        self.version = read_trtexec_version(program)

    def build(self, request: PlanRequest) -> None:
        """Write `request.plan`. trtexec updates the timing cache itself.

        Raises:
            ArtifactError: trtexec failed. The message holds its first error.
        """
        part = request.plan.with_name(request.plan.name + _PART)
        arguments = make_trtexec_arguments(request, plan=str(part))
        try:
            request.plan.parent.mkdir(parents=True, exist_ok=True)
            result = subprocess.run([self._program, *arguments], capture_output=True, text=True, check=False)
            if result.returncode == 0 and part.is_file():
                part.replace(request.plan)
                return
        except OSError as error:
            raise ArtifactError(f"Could not write {request.plan}: {error.strerror or error}.") from error
        part.unlink(missing_ok=True)
        error_line = re.search(r"\[E\]\s*(?:\[TRT\]\s*)?(.+)", result.stdout + result.stderr)  # no time stamp
        reason = (error_line[1].strip() if error_line else "") or f"exit status {result.returncode}"
        raise ArtifactError(f"trtexec could not build a plan of {request.graph}: {reason}")


def read_trtexec_version(program: str) -> Version:
    """Return the release of a trtexec from the first line of its output, which holds "[TensorRT v100500]".

    Raises:
        ConfigError: The program cannot run, or prints no such line.
    """
    try:
        result = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{program} cannot run: {error}. Install TensorRT again.") from error
    match = re.search(r"\[TensorRT v(\d+)\]", result.stdout + result.stderr)
    if match is None:
        raise ConfigError(f"{program} does not print its TensorRT release. Install TensorRT again.")
    number = int(match[1])
    major, rest = divmod(number, 10_000 if number >= 100_000 else 1_000)  # 100500 is 10.5.0, 8601 is 8.6.1
    return (major, *divmod(rest, 100))


def make_trtexec_arguments(
    request: PlanRequest, *, graph: str = "", plan: str = "", timing_cache: str = ""
) -> list[str]:
    """Return the arguments of trtexec for one plan.

    Args:
        request: The plan.
        graph: Path of the graph as trtexec sees it. "": the path in the request.
        plan: Path of the plan as trtexec sees it. "": the path in the request.
        timing_cache: Path of the timing cache as trtexec sees it. "": the path in the request.
    """
    arguments = [
        f"--onnx={graph or request.graph}",
        f"--saveEngine={plan or request.plan}",
        f"--timingCacheFile={timing_cache or request.timing_cache}",
        *(
            f"--{word}"
            for number, profile in enumerate(request.profiles)
            for word in (
                f"profile={number}",
                f"minShapes={format_shapes(profile, 0)}",
                f"optShapes={format_shapes(profile, 1)}",
                f"maxShapes={format_shapes(profile, 2)}",
            )
        ),
        f"--memPoolSize=workspace:{request.workspace_mib}M",
        "--skipInference",
        "--stronglyTyped",
    ]
    if request.precision == "fp32":
        arguments.append("--noTF32")
    return arguments
