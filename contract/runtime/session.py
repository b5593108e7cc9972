"""Run one published graph on this machine.

Triton's backend (`serving/backends/onnxruntime`), the gates (`export.gates`) and the in-process baseline
(`serving.inprocess`) all open their graphs here, so that the gates check exactly what is served.
`contract.runtime.walk` runs several graphs in sequence.

A graph runs on ONNX Runtime, or on OpenVINO (`contract.runtime.openvino`) if its config.pbtxt names the accelerator
"openvino". Both read the same model.onnx. Both packages are imported only when a session is opened.
"""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from contract.bundle import require_same_fingerprint
from contract.errors import ArtifactError, ConfigError, ServerError, TensorError
from contract.runtime.gpu import GPU_ACCELERATORS, read_cuda, read_tensorrt

Array = NDArray[Any]
Config = Mapping[str, Any]  # config.pbtxt as Triton's JSON
Provider = tuple[str, dict[str, str]]

FINGERPRINT_FILE: Final = "fingerprint"  # in the directory of a published version
MAX_DEFAULT_THREADS: Final = 4  # per model instance; several models share the cores
_MAX_ERROR_CHARS: Final = 300


class Session(Protocol):
    """One loaded graph. It is not thread-safe."""

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the ONNX file, with `fingerprint`."""

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Compute the outputs `names`, in their order.

        Args:
            names: Outputs of the graph.
            feeds: Every input of the graph, batched. The caller may overwrite them afterwards.

        Returns:
            One array for each name. The caller owns them.

        Raises:
            TensorError: An input does not fit the graph, or holds an index out of range.
            ServerError: The runtime failed.
        """

    def describe(self) -> str:
        """Return runtime, version, precision and threads in a few words."""

    def read_times(self) -> dict[str, float]:
        """Return kind of operation -> milliseconds, summed over all runs, if the session was opened as `timed`.

        Call it once, at the end. For other sessions it returns {}.
        """


def open_session(
    path: Path, config: Config, *, kind: str = "CPU", device: str = "0", timed: bool = False
) -> Session:
    """Load a graph on the runtime and with the threads that its config.pbtxt states.

    Args:
        path: The ONNX file.
        config: The model's config.pbtxt as Triton's JSON. This function uses `optimization.execution_accelerators`,
            `instance_group` and the parameters `intra_op_thread_count` and `inter_op_thread_count`.
        kind: "CPU" or "GPU" (also with the prefix "KIND_"), as Triton resolved the instance group.
        device: Id of the instance's GPU.
        timed: Whether the runtime records the time of each operation, which takes a little time itself.

    Raises:
        ConfigError: The config needs a package or a capability that this machine lacks, or a setting cannot be used.
        ArtifactError: The file is missing, or the runtime cannot read it.
    """
    if not path.is_file():
        raise ArtifactError(f"There is no graph {path}. Publish the model again with `cxr export`.")
    accelerators = read_accelerators(config, kind)
    if not _is_gpu(kind) and [name for name, _ in accelerators] == ["openvino"]:
        from contract.runtime.openvino import OpenVinoSession

        return OpenVinoSession(path, accelerators[0][1], threads=count_threads(config), timed=timed)
    return _OnnxSession(path, config, kind=kind, device=device, timed=timed)


def require_fingerprint(session: Session, config: Config, directory: Path) -> None:
    """Raise FingerprintError with both values unless a graph and its published version belong to the same model.

    Args:
        session: The loaded graph.
        config: The model's config.pbtxt, which all its versions share.
        directory: Directory of the version. Its file `fingerprint` has priority over the parameter `fingerprint`.
    """
    file = directory / FINGERPRINT_FILE
    try:
        expected, source = file.read_text(encoding="ascii").strip(), str(file)
    except FileNotFoundError:
        expected, source = read_parameter(config, "fingerprint"), "config.pbtxt"
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{file} cannot be read: {type(error).__name__}.") from error
    fingerprint = session.metadata.get("fingerprint", "")
    require_same_fingerprint(expected, fingerprint, expected_from=source, found_from="model.onnx")


def read_accelerators(config: Config, kind: str) -> list[tuple[str, dict[str, str]]]:
    """Return (name, parameters) of the execution accelerators for this kind of instance, preferred ones first.

    Raises:
        ConfigError: An accelerator does not exist for this kind of instance.
    """
    processor = "gpu" if _is_gpu(kind) else "cpu"
    names = GPU_ACCELERATORS if _is_gpu(kind) else ("openvino",)
    listed = config.get("optimization", {}).get("execution_accelerators", {})
    accelerators: list[tuple[str, dict[str, str]]] = []
    for entry in listed.get(f"{processor}_execution_accelerator", []):
        if entry["name"] not in names:
            raise ConfigError(
                f"The execution accelerator {entry['name']} is not known for a {processor.upper()}. "
                f"Use {' or '.join(names)}, or none."
            )
        accelerators.append((entry["name"], dict(entry.get("parameters", {}))))
    return accelerators


def read_parameter(config: Config, name: str, default: str = "") -> str:
    """Return a parameter of config.pbtxt as text."""
    return str(config.get("parameters", {}).get(name, {}).get("string_value", default))


def count_threads(config: Config) -> int:
    """Return the number of threads of one instance.

    This is the parameter `intra_op_thread_count`. If it is 0 or missing, the usable cores of this machine, at most 4,
    are divided among the instances of the model.

    Raises:
        ConfigError: The parameter is not a whole number of at least 0.
    """
    threads = _read_count(config, "intra_op_thread_count")
    if threads:
        return threads
    groups = config.get("instance_group", [])
    instances = sum(int(group.get("count", 1)) for group in groups) if groups else 1
    cores = min(len(os.sched_getaffinity(0)), MAX_DEFAULT_THREADS)
    return max(1, cores // max(1, instances))


def _read_count(config: Config, name: str) -> int:
    text = read_parameter(config, name, "0")
    if not text.isdecimal():
        raise ConfigError(f"The parameter {name} must be a whole number of at least 0, not {text!r}.")
    return int(text)


def _is_gpu(kind: str) -> bool:
    return kind.removeprefix("KIND_") == "GPU"


class _OnnxSession:
    """A graph on ONNX Runtime."""

    def __init__(self, path: Path, config: Config, *, kind: str, device: str, timed: bool) -> None:
        onnxruntime = _import_onnxruntime()
        self._version: str = onnxruntime.__version__
        self._threads = count_threads(config)
        providers = choose_providers(config, kind, device)
        options = build_options(config)
        self._scratch = tempfile.TemporaryDirectory(prefix="cxr-times-") if timed else None
        if self._scratch:
            options.enable_profiling = True
            options.profile_file_prefix = f"{self._scratch.name}/run"
        self._session = open_onnx_session(path, options, providers)
        self._run_options = onnxruntime.RunOptions()
        # Errors are raised as exceptions; logging each one too would fill a disk.
        self._run_options.log_severity_level = 4
        self._provider: str = self._session.get_providers()[0]

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the ONNX file."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Compute the outputs; see `Session.run`."""
        try:
            return list(self._session.run(list(names), dict(feeds), self._run_options))
        except Exception as error:  # see __init__
            failure = TensorError if _is_invalid_argument(error) else ServerError
            raise failure(_shorten(error)) from error

    def describe(self) -> str:
        """Return runtime, version, provider and threads."""
        name = self._provider.removesuffix("ExecutionProvider")
        threads = f", {self._threads} thread{'s' * (self._threads > 1)}" if name == "CPU" else ""
        return f"ONNX Runtime {self._version} {name}{threads}"

    def read_times(self) -> dict[str, float]:
        """Return the milliseconds of each kind of operation; see `Session.read_times`."""
        if self._scratch is None:
            return {}
        times: Counter[str] = Counter()
        for event in json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8")):
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                times[event["args"]["op_name"]] += event["dur"] / 1e3
        self._scratch.cleanup()
        return dict(times)


def open_onnx_session(path: Path, options: Any, providers: Sequence[Provider]) -> Any:
    """Return an `onnxruntime.InferenceSession`, for a caller that leaves tensors on the device between graphs.

    Args:
        path: The ONNX file.
        options: See `build_options`.
        providers: See `choose_providers`. The first one must start.

    Raises:
        ArtifactError: ONNX Runtime cannot read the file.
        ConfigError: The first provider does not start. onnxruntime itself would use the next one and only log it.
    """
    try:
        session = _import_onnxruntime().InferenceSession(
            str(path), sess_options=options, providers=list(providers)
        )
    except Exception as error:  # onnxruntime's errors have no common base class except Exception
        raise ArtifactError(f"ONNX Runtime cannot load {path}: {_shorten(error)}") from error
    if session.get_providers()[0] != providers[0][0]:
        raise ConfigError(f"onnxruntime could not start {providers[0][0]}. Its message is above in the log.")
    return session


def build_options(config: Config) -> Any:
    """Return onnxruntime's session options for a configuration; see `count_threads`.

    Raises:
        ConfigError: A thread count is not a number, or onnxruntime is not installed.
    """
    options = _import_onnxruntime().SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = count_threads(config)
    options.inter_op_num_threads = max(1, _read_count(config, "inter_op_thread_count"))
    # Spinning threads of one model would take the cores from the next model of the ensemble.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def choose_providers(config: Config, kind: str, device: str) -> list[Provider]:
    """Return onnxruntime's providers for an instance, preferred ones first.

    Args:
        config: The model's configuration.
        kind: "GPU" or "CPU", as Triton resolved the instance group.
        device: Id of the instance's GPU.

    Raises:
        ConfigError: The installed onnxruntime lacks a provider that the config names.
    """
    providers: list[Provider] = []
    if _is_gpu(kind):
        cuda: dict[str, str] = {}
        for name, parameters in read_accelerators(config, kind):
            if name == "cuda":
                cuda |= read_cuda(parameters)
            else:
                options = {**read_tensorrt(parameters), "device_id": device}
                providers.append(("TensorrtExecutionProvider", options))
        providers.append(("CUDAExecutionProvider", {**cuda, "device_id": device}))
    available = _import_onnxruntime().get_available_providers()
    missing = [name for name, _ in providers if name not in available]
    if missing:
        raise ConfigError(
            f"config.pbtxt needs {missing[0]}, but the installed onnxruntime has {', '.join(available)}: "
            "pip install 'cxr-serving[gpu]' or use KIND_CPU."
        )
    return [*providers, ("CPUExecutionProvider", {})]


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            "Running a graph needs onnxruntime: pip install 'cxr-serving[cpu]' (or [gpu])."
        ) from error
    return onnxruntime


def _is_invalid_argument(error: Exception) -> bool:
    # onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument; a missing input is a plain ValueError.
    return type(error).__name__ == "InvalidArgument" or isinstance(error, ValueError)


def _shorten(error: Exception) -> str:
    # "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : text": names, shapes and indices, never content.
    return str(error).partition("\n")[0].rpartition(" : ")[2][:_MAX_ERROR_CHARS]
