"""Read the options of ONNX Runtime's GPU providers from the accelerators of a config.pbtxt.

NVIDIA's C++ backend (onnxruntime_backend, src/onnxruntime.cc, releases 25.07 to 26.06) reads them in the same way. It
passes on the parameters that are listed here and refuses others.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from contract.errors import ConfigError

GPU_ACCELERATORS: Final = ("tensorrt", "cuda")
_RENAMED: Final = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
_PASSED: Final = frozenset(
    {
        "trt_max_partition_iterations",
        "trt_min_subgraph_size",
        "trt_dla_enable",
        "trt_dla_core",
        "trt_engine_cache_enable",
        "trt_engine_cache_path",
        "trt_engine_cache_prefix",
        "trt_dump_subgraphs",
        "trt_force_sequential_engine_build",
        "trt_context_memory_sharing_enable",
        "trt_layer_norm_fp32_fallback",
        "trt_timing_cache_enable",
        "trt_timing_cache_path",
        "trt_force_timing_cache",
        "trt_detailed_build_log",
        "trt_build_heuristics_enable",
        "trt_sparsity_enable",
        "trt_builder_optimization_level",
        "trt_auxiliary_streams",
        "trt_tactic_sources",
        "trt_extra_plugin_lib_paths",
        "trt_profile_min_shapes",
        "trt_profile_max_shapes",
        "trt_profile_opt_shapes",
        "trt_cuda_graph_enable",
        "trt_dump_ep_context_model",
        "trt_ep_context_file_path",
        "trt_ep_context_embed_mode",
    }
)
_PRECISIONS: Final = ("FP32", "FP16", "BF16", "INT8")
_CACHES: Final = ("trt_engine_cache_path", "trt_timing_cache_path")
_GRAPHS: Final = ("trt_cuda_graph_enable", "enable_cuda_graph")


def read_tensorrt(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the options of the TensorRT provider.

    Raises:
        ConfigError: NVIDIA's backend does not know a parameter, or a parameter would give wrong answers here.
    """
    options = {}
    for name, value in parameters.items():
        if name == "precision_mode":
            if value not in _PRECISIONS:
                raise ConfigError(f"precision_mode must be one of {', '.join(_PRECISIONS)}, not {value}.")
            if value != "FP32":
                options[f"trt_{value.lower()}_enable"] = "1"
        elif name in _RENAMED:
            options[_RENAMED[name]] = value
        elif name in _PASSED:
            options[name] = value
        else:
            raise ConfigError(f"The execution accelerator tensorrt has no parameter {name}.")
    _refuse_graphs(options)
    return options | {name: find_cache(Path(options[name])) for name in _CACHES if name in options}


def read_cuda(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the options of the CUDA provider: the parameters, unchanged.

    Raises:
        ConfigError: A parameter would give wrong answers here.
    """
    _refuse_graphs(parameters)
    return dict(parameters)


def find_cache(preferred: Path) -> str:
    """Return a directory for engines that only this user can write to: the given one, or one in the user's home.

    A cached engine is code that the server runs.

    Raises:
        ConfigError: Neither directory can be used.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    own = home / "cxr" / "tensorrt"
    for directory in (preferred, own):
        if _is_private(directory):
            return str(directory)
    raise ConfigError(
        f"TensorRT engines cannot be cached in {preferred} or {own}. Make one of them a directory of this user that "
        "nobody else can write to."
    )


def _is_private(directory: Path) -> bool:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError:
        return False
    others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or found.st_uid != os.geteuid()
    return not others and os.access(directory, os.W_OK)


def _refuse_graphs(options: Mapping[str, str]) -> None:
    """Refuse CUDA graphs, which replay the memory addresses and the shape of the captured run.

    ONNX Runtime requires that both stay the same (docs, CUDA and TensorRT providers, "Using CUDA Graphs"). Requests to
    a server differ in both, and would get the answer to another request.
    """
    for name in _GRAPHS:
        if options.get(name, "0").lower() not in ("0", "false"):
            raise ConfigError(
                f"{name} cannot serve requests of several shapes. Build plans with `cxr export tensorrt --cuda-graphs`."
            )
