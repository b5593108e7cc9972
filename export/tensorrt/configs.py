"""Make Triton configs for TensorRT, and the command that builds a plan in NVIDIA's container.

Triton's TensorRT backend serves a plan (`platform: "tensorrt_plan"`).
"""

import os
from pathlib import Path
from typing import Any, Final

from tritonclient.grpc import model_config_pb2

from contract.errors import ConfigError
from contract.ngc import DEFAULT
from contract.tensors import MAX_BATCH_SIZE
from export.tensorrt.builders import make_trtexec_arguments
from export.tensorrt.graph import PlanRequest

# A plan runs only on the TensorRT release that built it. The image that serves and the image that builds have the same
# release of NVIDIA's, and so the same TensorRT.
CONTAINER_RELEASE: Final = DEFAULT.tag
CONTAINER: Final = f"nvcr.io/nvidia/tensorrt:{CONTAINER_RELEASE}-py3"
PLAN_NAME: Final = "model.plan"
_PLATFORM: Final = "tensorrt_plan"
_THREADS: Final = ("intra_op_thread_count", "inter_op_thread_count")  # only onnxruntime reads them
_MAX_GRAPH_BATCH: Final = 8  # for larger batches the start of kernels takes a small share of the time
# The data types of TensorRT tensors (Triton, model configuration, "Datatypes").
_DATA_TYPES: Final = frozenset(
    {
        "TYPE_BOOL",
        "TYPE_UINT8",
        "TYPE_INT8",
        "TYPE_INT32",
        "TYPE_INT64",
        "TYPE_FP16",
        "TYPE_BF16",
        "TYPE_FP32",
    }
)


def to_plan_config(
    config: Any, version: int | None = None, *, profiles: int = 1, cuda_graphs: bool = False
) -> Any:
    """Return the config of a model that is served as a TensorRT plan instead of an ONNX graph.

    Names, dims, data types, batching, warm-up and the fingerprint do not change. The settings of ONNX Runtime are
    removed.

    Args:
        config: The `ModelConfig` of the published graph. It is not changed.
        version: The only version that Triton may load, because the other versions of the model are ONNX graphs, which
            need another config. None: the version policy does not change.
        profiles: Number of optimisation profiles of the plan. Each instance runs all of them.
        cuda_graphs: Whether the backend captures a CUDA graph for each shape of the warm-up with at most 8 cases. A
            request of exactly this shape replays it.

    Raises:
        ConfigError: The model is not a graph, accepts larger batches than a plan, or has a data type that TensorRT
            does not know.
    """
    if config.backend != "onnxruntime" and config.platform != _PLATFORM:
        raise ConfigError(
            f"{config.name} is served by {config.backend or config.platform}, so it is not a graph."
        )
    if config.max_batch_size > MAX_BATCH_SIZE:
        raise ConfigError(
            f"{config.name} accepts batches of {config.max_batch_size}, but a plan has at most {MAX_BATCH_SIZE}."
        )
    for entry in (*config.input, *config.output):
        data_type = model_config_pb2.DataType.Name(entry.data_type)
        if data_type not in _DATA_TYPES:
            raise ConfigError(f"{config.name}: TensorRT has no tensors of {data_type} ({entry.name}).")
    changed = _copy(config)
    changed.ClearField("backend")
    changed.platform, changed.default_model_filename = _PLATFORM, PLAN_NAME
    changed.optimization.ClearField("execution_accelerators")
    if not changed.optimization.ByteSize():
        changed.ClearField("optimization")
    for name in _THREADS:
        changed.parameters.pop(name, None)
    _use_gpu(changed)
    for group in changed.instance_group:
        group.profile[:] = [str(number) for number in range(profiles)] if profiles > 1 else []
    if cuda_graphs:
        _capture_graphs(changed)
    if version is not None:
        changed.version_policy.specific.versions[:] = [version]
    return changed


def make_container_command(request: PlanRequest, out: Path) -> list[str]:
    """Return the `docker run` command that builds one plan in the container of Triton's release.

    Args:
        request: The plan. Its path and its timing cache are in `out`.
        out: The directory that the container writes to.
    """
    arguments = make_trtexec_arguments(
        request,
        graph=f"/graph/{request.graph.name}",
        plan=f"/out/{request.plan.relative_to(out).as_posix()}",
        timing_cache=f"/out/{request.timing_cache.relative_to(out).as_posix()}",
    )
    command = ["docker", "run", "--rm", "--gpus", "all"]
    if hasattr(os, "getuid"):
        command += ["--user", f"{os.getuid()}:{os.getgid()}"]
    command += ["--mount", f"type=bind,source={request.graph.parent},target=/graph,readonly"]
    command += ["--mount", f"type=bind,source={out},target=/out"]
    return [*command, CONTAINER, "trtexec", *arguments]


def _copy(config: Any) -> Any:
    copied = model_config_pb2.ModelConfig()
    copied.CopyFrom(config)
    return copied


def _capture_graphs(config: Any) -> None:
    config.optimization.cuda.graphs = True
    for sample in config.model_warmup:
        if sample.batch_size <= _MAX_GRAPH_BATCH:
            captured = config.optimization.cuda.graph_spec.add(batch_size=sample.batch_size)
            for name, entry in sample.inputs.items():
                captured.input[name].dim.extend(entry.dims)


def _use_gpu(config: Any) -> None:
    for group in config.instance_group:
        if group.kind != model_config_pb2.ModelInstanceGroup.KIND_GPU:
            group.kind = model_config_pb2.ModelInstanceGroup.KIND_GPU
            group.count = 1  # one instance uses the whole GPU
