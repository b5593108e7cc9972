"""Write the settings of a target and a variant (`targets.toml`) into the configs of the published models.

The fields are those of Triton's `ModelConfig` (model_config.proto): instance groups, the dynamic batcher with its
queue policies and priorities, rate limits, warm-up requests and the execution accelerator.
"""

import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from contract.errors import ConfigError
from contract.tensors import IMAGE_BYTES, LENGTH_BUCKETS, ModelSpec
from export.tensorrt.shapes import format_profile, make_profile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Target = Literal["cpu", "gpu", "tensorrt"]
Variant = Literal["latency", "throughput"]
Role = Literal["preprocess", "encoder", "fusion", "fused"]
TARGETS: Final[tuple[Target, ...]] = ("cpu", "gpu", "tensorrt")
VARIANTS: Final[tuple[Variant, ...]] = ("latency", "throughput")
SETTINGS: Final = Path(__file__).with_name("targets.toml")
_RESOURCE: Final = "compute"  # the resource that rate-limited models share
_DTYPES: Final[dict[str, int]] = {
    "UINT8": model_config_pb2.TYPE_UINT8,
    "INT32": model_config_pb2.TYPE_INT32,
    "INT64": model_config_pb2.TYPE_INT64,
    "FP32": model_config_pb2.TYPE_FP32,
}


def check_target(target: str, variant: str = "latency") -> None:
    """Raise ConfigError with the known names unless `targets.toml` has the target and the variant."""
    if target not in TARGETS:
        raise ConfigError(f"The target must be {', '.join(TARGETS[:-1])} or {TARGETS[-1]}, not {target}.")
    if variant not in VARIANTS:
        raise ConfigError(f"The variant must be {' or '.join(VARIANTS)}, not {variant}.")


def count_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_role(spec: ModelSpec) -> Role:
    """Return the role of a model, which decides its settings. Ensembles have no role."""
    if spec.backend == "python":
        return "preprocess"
    if spec.name.startswith("fused_"):
        return "fused"
    return "fusion" if spec.name.startswith("fusion_") else "encoder"


def make_optimization(target: str, profile: Any = None) -> dict[str, Any]:
    """Return Triton's `optimization` (as JSON) of every graph of a target and a precision profile.

    Args:
        target: A name of `TARGETS`.
        profile: An `export.profiles.Profile`. None: fp32.

    Raises:
        ConfigError: The profile is for other hardware than the target.
    """
    check_target(target)
    optimization = dict(profile.make_optimization()) if profile is not None else {}
    changes_graphs = profile is not None and (optimization or profile.conversion != "none")
    machine = "cpu" if target == "cpu" else "gpu"
    if changes_graphs and profile.target != machine:
        raise ConfigError(
            f"The profile {profile.name} runs on the {profile.target}, not on the target {target}."
        )
    accelerator = _read_settings()["target"][target].get("accelerator")
    if accelerator is None:
        return optimization
    parameters = dict(accelerator["parameters"])
    if accelerator["name"] == "tensorrt" and profile is not None and profile.conversion == "fp16":
        parameters["precision_mode"] = "FP16"
    entry = {"name": accelerator["name"], "parameters": parameters}
    return {"execution_accelerators": {"gpu_execution_accelerator": [entry]}}


def apply_settings(
    config: Any,
    spec: ModelSpec,
    *,
    target: str,
    variant: str = "latency",
    sizes: Mapping[str, int],
    max_length: int,
    optimization: Mapping[str, Any] | None = None,
    cores: int = 1,
) -> None:
    """Write the settings of a target and a variant into one model's `ModelConfig`. They replace earlier settings.

    Args:
        config: The message. The config of an ensemble is not changed.
        spec: The model's entry in the tensor table.
        target: A name of `TARGETS`.
        variant: A name of `VARIANTS`.
        sizes: S, N, C and D of the model.
        max_length: Largest number of text tokens that the model reads. Larger buckets are not warmed up.
        optimization: Triton's `optimization` as JSON (`make_optimization`).
        cores: Number of cores of the server's machine. A model that reads image files has as many instances, up to the
            largest number in `targets.toml`.

    Raises:
        ConfigError: The target or the variant is unknown, or `optimization` has a field that Triton does not know.
    """
    check_target(target, variant)
    if spec.backend == "ensemble":
        return
    settings, role = _read_settings(), find_role(spec)
    machine = settings["target"][target]
    for name in ("instance_group", "dynamic_batching", "model_warmup", "optimization"):
        config.ClearField(name)
    _set_instances(config, role, machine, variant)
    if IMAGE_BYTES in spec.inputs:
        count = min(cores, settings["image_files"][target])
        config.instance_group[0].count = max(config.instance_group[0].count, count)
        config.dynamic_batching.preferred_batch_size.append(1)
    _set_batching(config.dynamic_batching, settings, role, machine[variant], variant)
    if spec.backend != "onnxruntime":
        return
    lengths = [max_length]
    if target != "cpu" or optimization:
        lengths += [bucket for bucket in reversed(LENGTH_BUCKETS) if bucket < max_length]
    _set_warm_up(config, spec, machine["warm_up"], sizes, lengths)
    try:
        json_format.ParseDict(dict(optimization or {}), config.optimization)
    except json_format.ParseError as error:
        raise ConfigError(f"Triton does not know this optimization of {spec.name}: {error}.") from error
    for accelerator in config.optimization.execution_accelerators.gpu_execution_accelerator:
        if accelerator.name == "tensorrt":
            ranges = make_profile(config, machine[variant]["typical_batch"])
            accelerator.parameters.update(format_profile(ranges))


def is_rate_limited(target: str, variant: str) -> bool:
    """Return whether the configs hold rate limits, which need Triton's option `--rate-limit=execution_count`."""
    check_target(target, variant)
    return bool(_read_settings()["target"][target][variant]["rate_limited"])


@cache
def _read_settings() -> dict[str, Any]:
    return tomllib.loads(SETTINGS.read_text(encoding="utf-8"))


def _set_instances(config: Any, role: Role, machine: Mapping[str, Any], variant: str) -> None:
    kind = "KIND_CPU" if role == "preprocess" else machine["kind"]
    group = config.instance_group.add(
        count=machine[variant]["instances"][role], kind=model_config_pb2.ModelInstanceGroup.Kind.Value(kind)
    )
    if role in machine[variant]["rate_limited"]:
        group.rate_limiter.resources.add(name=_RESOURCE, count=1)


def _set_batching(
    batching: Any, settings: Mapping[str, Any], role: Role, machine: Mapping[str, Any], variant: str
) -> None:
    values = settings["variant"][variant]
    batching.SetInParent()  # turns the dynamic batcher on, even if all settings are Triton's defaults
    batching.max_queue_delay_microseconds = values["delay_us"][role]
    if role != "preprocess":
        batching.preferred_batch_size.extend(machine.get("preferred_batch_sizes", ()))
    if (queue := values.get("queue")) is None:
        return
    batching.priority_levels = queue["priority_levels"]
    batching.default_priority_level = queue["default_priority_level"]
    _set_policy(batching.default_queue_policy, queue)
    _set_policy(batching.priority_queue_policy[queue["priority_levels"]], queue["batch"])


def _set_policy(policy: Any, queue: Mapping[str, Any]) -> None:
    policy.timeout_action = model_config_pb2.ModelQueuePolicy.REJECT
    policy.default_timeout_microseconds = queue["timeout_us"]
    policy.allow_timeout_override = True
    policy.max_queue_size = queue["max_size"]


def _set_warm_up(
    config: Any, spec: ModelSpec, batch_sizes: list[int], sizes: Mapping[str, int], lengths: list[int]
) -> None:
    """Add a request of zeros for every batch size and length. The embedded backend counts these requests.

    The largest comes first, so that the memory grows only once and a lack of memory shows at once.
    """
    reads_text = any("L" in tensor.shape for tensor in spec.inputs)
    for length in lengths if reads_text else [0]:
        for size in sorted(batch_sizes, reverse=True):
            name = f"batch {size}, length {length}" if reads_text else f"batch {size}"
            sample = config.model_warmup.add(name=name, batch_size=size)
            for tensor in spec.inputs:
                entry = sample.inputs[tensor.name]
                entry.data_type = _DTYPES[tensor.dtype]
                free = {"V": 1, "I": sizes["N"], "L": length}  # one image for each study
                entry.dims.extend(
                    free.get(str(letter), dim)
                    for letter, dim in zip(tensor.shape, tensor.dims(sizes), strict=True)
                )
                entry.zero_data = True
