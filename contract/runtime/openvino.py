"""Run a published graph on OpenVINO: `contract.runtime.session.Session` for the accelerator "openvino".

OpenVINO reads the ONNX file itself. It is used for bfloat16 and int8, which processors with AVX512-BF16, AVX512-VNNI or
AMX multiply at least twice as fast. ONNX Runtime is used for float32.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ArtifactError, ConfigError, ServerError, TensorError

Array = NDArray[Any]

_PRECISIONS: Final = {"bf16": "bf16", "fp32": "f32"}  # our name -> OpenVINO's name
_MAX_ERROR_CHARS: Final = 300
# Operations that do not change the numbers.
_SAME_VALUES: Final = frozenset({"Convert", "Reshape", "Squeeze", "Unsqueeze"})


class OpenVinoSession:
    """A graph on OpenVINO with one infer request, so only one caller at a time may use it."""

    def __init__(
        self, path: Path, parameters: Mapping[str, str], *, threads: int, timed: bool = False
    ) -> None:
        """Read and compile a graph.

        Args:
            path: The ONNX file.
            parameters: Parameters of the accelerator; see `read_parameters`.
            threads: Number of threads.
            timed: Whether to record the time of each operation.

        Raises:
            ConfigError: OpenVINO is not installed, a parameter is unknown, or the processor lacks bfloat16.
            ArtifactError: OpenVINO cannot read or compile the file.
        """
        self._openvino = _import_openvino()
        self._threads = threads
        self._precision, self._group = read_parameters(parameters)
        core = get_core()
        try:
            model = core.read_model(path)
        except Exception as error:  # OpenVINO raises RuntimeError and pybind11's own errors
            raise ArtifactError(f"OpenVINO cannot load {path}: {_shorten(error)}") from error
        if self._precision == "bf16" or _states_bf16(model):
            _require_bf16()
        self._metadata = _read_metadata(model)
        properties = build_properties(self._precision, threads, self._group)
        try:
            compiled = core.compile_model(model, "CPU", {**properties, "PERF_COUNT": timed})
        except Exception as error:  # as above
            raise ArtifactError(f"OpenVINO cannot load {path}: {_shorten(error)}") from error
        self._request = compiled.create_infer_request()
        self._inputs = {port.get_any_name(): port for port in compiled.inputs}
        # A tensor may have several names, and its "any name" may be any of them.
        self._outputs = {name: port for port in compiled.outputs for name in port.get_names()}
        self._dtypes = {name: port.get_element_type().to_dtype() for name, port in self._inputs.items()}
        self._rows = find_table_rows(model)
        self._times: Counter[str] | None = Counter() if timed else None

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the ONNX file."""
        return dict(self._metadata)

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Compute the outputs; see `contract.runtime.session.Session.run`."""
        self._check(names, feeds)
        # The request reads the caller's memory, so the arrays must live until it is done. OpenVINO does not accept
        # read-only arrays, although it writes into none, so these are copied.
        arrays = {name: np.require(feeds[name], requirements=("C", "W")) for name in self._inputs}
        try:
            for name, array in arrays.items():
                tensor = self._openvino.Tensor(array, shared_memory=True)
                self._request.set_tensor(self._inputs[name], tensor)
            self._request.infer()
            self._note_times()
            # The next run overwrites the request's outputs, so each is copied once.
            return [np.array(self._request.get_tensor(self._outputs[name]).data) for name in names]
        except Exception as error:  # see __init__
            raise ServerError(f"OpenVINO failed: {_shorten(error)}") from error

    def describe(self) -> str:
        """Return runtime, version, precision and threads."""
        version = self._openvino.__version__.partition("-")[0]
        precision = f"int8 in groups of {self._group}" if self._group else self._precision
        return f"OpenVINO {version} {precision}, {self._threads} thread{'s' * (self._threads > 1)}"

    def read_times(self) -> dict[str, float]:
        """Return the milliseconds of each kind of operation; see `contract.runtime.session.Session.read_times`."""
        return dict(self._times or {})

    def _note_times(self) -> None:
        if self._times is None:
            return
        for entry in self._request.profiling_info:
            if seconds := entry.real_time.total_seconds():
                self._times[entry.node_type] += seconds * 1e3

    def _check(self, names: Sequence[str], feeds: Mapping[str, Array]) -> None:
        if unknown := [name for name in names if name not in self._outputs]:
            raise TensorError(f"The graph has no output {', '.join(unknown)}.")
        if set(feeds) != set(self._inputs):
            raise TensorError(
                f"The graph reads {', '.join(self._inputs)}, not {', '.join(feeds) or 'nothing'}."
            )
        for name, array in feeds.items():
            self._check_input(name, array)

    def _check_input(self, name: str, array: Array) -> None:
        shape = self._inputs[name].get_partial_shape()
        if array.dtype != self._dtypes[name]:
            raise TensorError(f"Tensor {name} must be {self._dtypes[name]}, not {array.dtype}.")
        if not shape.compatible(self._openvino.PartialShape(list(array.shape))):
            raise TensorError(f"Tensor {name} must have shape {shape}, not {list(array.shape)}.")
        rows = self._rows.get(name)
        if rows is not None and array.size and not -rows <= array.min() <= array.max() < rows:
            index = int(array.max() if array.max() >= rows else array.min())
            raise TensorError(
                f"Tensor {name} holds an index out of range: idx={index} must be from {-rows} to {rows - 1}."
            )


@functools.cache
def get_core() -> Any:
    """Return this process's one OpenVINO core, which is never closed.

    OpenVINO's CPU plugin gives the thread that loads it another stack for signal handlers, and frees that memory when
    the last core is closed. If another thread closes the core, the first thread keeps a dangling address, and its next
    signal, such as Ctrl-C, ends the process with a segmentation fault (OpenVINO 2026.4).

    Raises:
        ConfigError: OpenVINO is not installed.
    """
    return _import_openvino().Core()


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 itself (AVX512-BF16 or AMX). Raise ConfigError without OpenVINO."""
    return "BF16" in get_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def find_table_rows(model: Any) -> dict[str, int]:
    """Return, for each input whose numbers select rows of a table, the number of rows of the smallest such table.

    For an index beyond the table OpenVINO returns a row of zeros (Gather-8 in its operation set). ONNX Runtime refuses
    it. So the session checks the index itself.
    """
    rows: dict[str, int] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Gather" or node.input_value(2).get_node().get_type_name() != "Constant":
            continue
        source = node.input_value(1).get_node()
        while source.get_type_name() in _SAME_VALUES:
            source = source.input_value(0).get_node()
        table = node.input_value(0).get_partial_shape()
        axis = int(node.input_value(2).get_node().get_data().reshape(-1)[0])
        if source.get_type_name() != "Parameter" or table.rank.is_dynamic or table[axis].is_dynamic:
            continue
        name = source.output(0).get_any_name()
        rows[name] = min(rows.get(name, table[axis].get_length()), table[axis].get_length())
    return rows


def read_parameters(parameters: Mapping[str, str]) -> tuple[str, int]:
    """Return the accelerator's precision and quantisation group.

    Args:
        parameters: `precision` is "bf16" or "fp32" (the default). `quantization_group` (default 0: none) is for
            products with an int8 weight: the other factor is rounded to int8 too, at run time, with one scale for so
            many neighbouring numbers (OpenVINO, "dynamic quantization").

    Raises:
        ConfigError: A value cannot be used, or there is an unknown parameter, which would be ignored otherwise.
    """
    if unknown := sorted(set(parameters) - {"precision", "quantization_group"}):
        raise ConfigError(
            f"The accelerator openvino has no parameter {unknown[0]}, only precision and quantization_group."
        )
    precision, group = parameters.get("precision", "fp32"), parameters.get("quantization_group", "0")
    if precision not in _PRECISIONS:
        raise ConfigError(f"The precision of openvino must be bf16 or fp32, not {precision!r}.")
    if not group.isdecimal():
        raise ConfigError(f"The quantization_group of openvino must be a whole number, not {group!r}.")
    return precision, int(group)


def build_properties(precision: str, threads: int, group: int = 0) -> dict[str, Any]:
    """Return OpenVINO's properties (names as in `ov::hint` and `ov`) for one request at a time."""
    return {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(group),
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        # Every model is its own process. With pinning, all processes would use the first cores only.
        "ENABLE_CPU_PINNING": False,
        # Otherwise the latency hint uses one thread per physical core and ignores the thread count.
        "ENABLE_HYPER_THREADING": True,
    }


def _states_bf16(model: Any) -> bool:
    """Whether the graph holds bfloat16. Other processors would compute it in float32, slower than an fp32 graph."""
    return any(
        port.get_element_type().get_type_name() == "bf16"
        for node in model.get_ordered_ops()
        for port in node.outputs()
    )


def _require_bf16() -> None:
    if not has_bf16():
        raise ConfigError(
            "The profile bf16 needs a processor with AVX512-BF16 or AMX, which this one lacks. "
            "Export with the profile fp32 or int8."
        )


def _read_metadata(model: Any) -> dict[str, str]:
    """Return the metadata that OpenVINO's ONNX reader keeps under "framework" in the model's run-time info."""
    if not model.has_rt_info("framework"):
        return {}
    return {str(key): str(value) for key, value in model.get_rt_info("framework").value.items()}


def _import_openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ConfigError("This model needs OpenVINO: pip install 'cxr-serving[openvino]'.") from error
    return openvino


def _shorten(error: Exception) -> str:
    """Return the last line, which holds the reason. The lines above name OpenVINO's source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:_MAX_ERROR_CHARS]
