"""The "onnxruntime" backend for a Triton without the C++ one: a python-based backend of the same name.

It reads the same config.pbtxt: `instance_group`, `optimization.execution_accelerators`, the parameters
`intra_op_thread_count` and `inter_op_thread_count`, and `fingerprint`, which the graph's metadata must equal.
Requests of equal shapes run as one batch. A request that fails fails alone.
"""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from contract.bundle import require_same_fingerprint
from contract.errors import ConfigError, CxrError

Array = NDArray[Any]
Feed = dict[str, Array]
Config = dict[str, Any]  # config.pbtxt as Triton's JSON
Provider = tuple[str, dict[str, str]]

_ACCELERATORS = {"tensorrt": "TensorrtExecutionProvider", "openvino": "OpenVINOExecutionProvider"}
_MAX_DEFAULT_THREADS = 4  # per model instance; several models share the cores
_MAX_ERROR_CHARS = 300


class TritonPythonModel:
    """One instance of one ONNX model."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Return the config as it is: published configs are complete."""
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Load this version's `model.onnx`; TritonModelException, with the reason, if that fails."""
        config = json.loads(args["model_config"])
        self._name = args["model_name"]
        path = Path(args["model_repository"]) / args["model_version"]
        path /= config.get("default_model_filename") or "model.onnx"
        try:
            providers = choose_providers(
                config, args["model_instance_kind"], args["model_instance_device_id"]
            )
            self._session = onnxruntime.InferenceSession(
                str(path), sess_options=build_options(config), providers=providers
            )
            self._check_session(config, wanted=providers[0][0])
        except CxrError as error:
            raise pb_utils.TritonModelException(f"{self._name}: {error}") from error
        except Exception as error:  # onnxruntime's errors share no base class but Exception
            raise pb_utils.TritonModelException(f"{self._name}: {path} cannot be loaded: {error}") from error
        self._inputs = [entry["name"] for entry in config["input"]]
        self._outputs = [entry["name"] for entry in config["output"]]
        self._batches = config.get("max_batch_size", 0) > 0

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests, those of equal shapes together; one response for each, in their order."""
        feeds = [self._read_inputs(request) for request in requests]
        groups: dict[Any, list[int]] = defaultdict(list)
        for index, feed in enumerate(feeds):
            key = tuple((name, array.dtype.str, array.shape[1:]) for name, array in feed.items())
            groups[key if self._batches else index].append(index)
        responses: list[Any] = [None] * len(requests)
        for indices in groups.values():
            for index, response in self._run_group(requests, feeds, indices):
                responses[index] = response
        return responses

    def finalize(self) -> None:
        """Free the session."""
        self._session = None

    def _check_session(self, config: Config, wanted: str) -> None:
        if self._session.get_providers()[0] != wanted:
            raise ConfigError(f"onnxruntime could not start {wanted}; look for its message above in the log.")
        metadata = self._session.get_modelmeta().custom_metadata_map
        require_same_fingerprint(
            read_parameter(config, "fingerprint"),
            metadata.get("fingerprint", ""),
            expected_from="config.pbtxt",
            found_from="model.onnx",
        )

    def _read_inputs(self, request: Any) -> Feed:
        tensors = (pb_utils.get_input_tensor_by_name(request, name) for name in self._inputs)
        return {tensor.name(): tensor.as_numpy() for tensor in tensors}

    def _run_group(self, requests: list[Any], feeds: list[Feed], indices: list[int]) -> list[tuple[int, Any]]:
        wanted = {name for index in indices for name in requests[index].requested_output_names()}
        names = [name for name in self._outputs if name in wanted] or self._outputs
        try:
            arrays = self._run([feeds[index] for index in indices], names)
        except Exception as error:  # see initialize
            if len(indices) == 1:
                return [(indices[0], pb_utils.InferenceResponse(error=self._describe(error)))]
            return [pair for index in indices for pair in self._run_group(requests, feeds, [index])]
        return [
            (index, self._answer(requests[index], dict(zip(names, part, strict=True))))
            for index, part in zip(indices, arrays, strict=True)
        ]

    def _run(self, feeds: list[Feed], names: list[str]) -> list[list[Array]]:
        """Return, for each feed, the list of its output arrays."""
        if len(feeds) == 1:
            return [self._session.run(names, feeds[0])]
        joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        outputs = self._session.run(names, joined)
        ends = np.cumsum([len(feed[self._inputs[0]]) for feed in feeds])[:-1]
        split = [np.split(output, ends) for output in outputs]
        return [list(part) for part in zip(*split, strict=True)]

    def _answer(self, request: Any, arrays: Feed) -> Any:
        wanted = request.requested_output_names() or self._outputs
        tensors = [pb_utils.Tensor(name, arrays[name]) for name in self._outputs if name in wanted]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _describe(self, error: Exception) -> Any:
        kind = type(error).__name__
        code = (
            pb_utils.TritonError.INVALID_ARG if kind == "InvalidArgument" else pb_utils.TritonError.INTERNAL
        )
        # "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : text": names, shapes and indices, never content.
        text = str(error).partition("\n")[0].rpartition(" : ")[2][:_MAX_ERROR_CHARS]
        return pb_utils.TritonError(f"{self._name}: {text}", code)


def read_parameter(config: Config, name: str, default: str = "") -> str:
    """Return a parameter of config.pbtxt as text."""
    return str(config.get("parameters", {}).get(name, {}).get("string_value", default))


def build_options(config: Config) -> Any:
    """Return session options; thread counts of 0 or none mean up to 4 threads, never more than the cores."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    cores = len(os.sched_getaffinity(0))
    threads = int(read_parameter(config, "intra_op_thread_count", "0"))
    options.intra_op_num_threads = threads if threads > 0 else min(cores, _MAX_DEFAULT_THREADS)
    options.inter_op_num_threads = max(1, int(read_parameter(config, "inter_op_thread_count", "1")))
    # Spinning threads of one model would take the cores from the next one in the ensemble.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def choose_providers(config: Config, kind: str, device: str) -> list[Provider]:
    """Return onnxruntime's providers for an instance, most wanted first.

    Args:
        config: The model's configuration.
        kind: "GPU" or "CPU", as Triton resolved the instance group.
        device: Id of the instance's GPU.

    Raises:
        ConfigError: The installed onnxruntime lacks what the configuration asks for.
    """
    gpu = kind.removeprefix("KIND_") == "GPU"
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    providers: list[Provider] = []
    for entry in accelerators.get(f"{'gpu' if gpu else 'cpu'}_execution_accelerator", []):
        if entry["name"] not in _ACCELERATORS:
            raise ConfigError(f"The execution accelerator {entry['name']} is not known here.")
        options = read_tensorrt(entry.get("parameters", {})) if entry["name"] == "tensorrt" else {}
        providers.append((_ACCELERATORS[entry["name"]], {**options, "device_id": device} if gpu else options))
    providers += [("CUDAExecutionProvider", {"device_id": device})] if gpu else []
    available = onnxruntime.get_available_providers()
    missing = [name for name, _ in providers if name not in available]
    if missing:
        raise ConfigError(
            f"config.pbtxt asks for {missing[0]}, but the installed onnxruntime has {', '.join(available)}: "
            "pip install 'cxr-serving[gpu]' or use KIND_CPU."
        )
    return [*providers, ("CPUExecutionProvider", {})]


def read_tensorrt(parameters: dict[str, str]) -> dict[str, str]:
    """Translate the C++ backend's TensorRT parameters to onnxruntime's names; `trt_*` pass as they are."""
    options = {name: value for name, value in parameters.items() if name.startswith("trt_")}
    if "max_workspace_size_bytes" in parameters:
        options["trt_max_workspace_size"] = parameters["max_workspace_size_bytes"]
    precision = parameters.get("precision_mode", "FP32")
    if precision != "FP32":
        options[f"trt_{precision.lower()}_enable"] = "1"
    return options
