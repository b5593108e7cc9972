"""Measure the exported graphs on ONNX Runtime, with CUDA and, if its libraries exist, TensorRT; run the gates.

Tensors stay on the device between the graphs, as in Triton's ensembles.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.gpu.clock import add_rate, round_figures, time_calls
from bench.gpu.log import PRECISIONS, Log, Settings
from bench.gpu.model import STUDY, draw_inputs, list_outputs, make_graphs, make_profile, open_bundle
from bench.gpu.torch_part import read_peaks
from contract.runtime.walk import walk_graphs
from contract.tensors import MODELS

if TYPE_CHECKING:
    from export.gates.parity import ParityCase

_FULL_FP32: Final = {"use_tf32": "0"}  # CUDA option, as in export/targets.toml
_GATED: Final = ("fp32", *PRECISIONS)
_CASES: Final = 12
_TENSORRT_BATCHES: Final = (1, 8, 32)


def make_model(log: Log, settings: Settings) -> None:
    """Make the bundle and the graphs for the other parts."""
    for name in ("plain", *_GATED):

        def make(name: str = name) -> Mapping[str, Any]:
            began = time.monotonic()
            graphs = make_graphs(log.out, settings, name)
            size = sum(path.stat().st_size for path in graphs.values())
            return {"seconds": round(time.monotonic() - began, 1), "megabytes": round(size / 1e6, 1)}

        log.measure(f"graphs, {name}", make)


def measure_onnx(log: Log, settings: Settings) -> None:
    """Measure ONNX Runtime at batch 1, then at larger batches, one precision after the other."""
    if not _is_ready(log, settings, "CUDAExecutionProvider"):
        return
    peaks, flops = read_peaks(log, settings), _read_flops(log.out)
    for precision in PRECISIONS:
        runner = _Graphs(settings, partial(make_graphs, log.out, settings, precision))

        def measure(
            name: str, batch: int, runner: "_Graphs" = runner, peak: float | None = peaks.get(precision)
        ) -> Mapping[str, Any]:
            return _add_share(runner.measure(name, batch), flops.get(name), peak)

        log.measure_series(
            (f"{name} {precision} batch {batch}", partial(measure, name, batch))
            for batch in settings.batches
            for name in (*STUDY, "study")
        )


def measure_gates(log: Log, settings: Settings) -> None:
    """Compare the graphs with PyTorch on the device, as `cxr export` does on the processor."""
    from export.gates.precision import measure_precision

    if not _is_ready(log, settings, "CUDAExecutionProvider"):
        return
    bundle, cases = open_bundle(log.out, settings), _draw_cases(settings)
    for name in _GATED:

        def measure(name: str = name) -> Mapping[str, Any]:
            profile = make_profile(name, settings)
            graphs = make_graphs(log.out, settings, name)
            if settings.device == "cuda":
                profile = replace(profile, accelerator="cuda", parameters=dict(_FULL_FP32))
            report = measure_precision(bundle, graphs, profile, cases)
            return {"passed": report.passed, "failures": report.failures, "runtimes": report.runtimes}

        log.measure(f"gate of {name}", measure)


def measure_tensorrt(log: Log, settings: Settings) -> None:
    """Measure the study with ONNX Runtime's TensorRT provider, with the options that `cxr export` writes."""
    name = "study fp16"
    if settings.device == "cpu":
        log.skip(name, "TensorRT runs only on NVIDIA GPUs.")
        return
    if not _is_ready(log, settings, "TensorrtExecutionProvider"):
        return
    graphs = _Graphs(settings, lambda: make_graphs(log.out, settings, "tensorrt-fp16"), log.out / "engines")

    def build() -> Mapping[str, Any]:
        began = time.monotonic()
        graphs.open()
        return {"seconds": round(time.monotonic() - began, 1)}

    title = "engines of encoders and fusion, built or read"
    batches = [
        (f"{name} batch {batch}", partial(graphs.measure, "study", batch)) for batch in _TENSORRT_BATCHES
    ]
    log.measure_series([(title, build), *batches])


class _Graphs:
    """The graphs of a study on the device, loaded at the first use."""

    def __init__(
        self, settings: Settings, make: Callable[[], Mapping[str, Path]], engines: Path | None = None
    ) -> None:
        self._settings, self._make, self._engines = settings, make, engines
        self._sessions: dict[str, Any] = {}

    def open(self) -> None:
        """Load the graphs.

        Raises:
            ConfigError: The installed onnxruntime has no provider for the device, or it does not start.
        """
        from contract.runtime.session import build_options, choose_providers, open_onnx_session

        paths = self._make()
        for name in STUDY:
            config = self._make_config(name)
            providers = choose_providers(config, "GPU" if self._settings.device == "cuda" else "CPU", "0")
            self._sessions[name] = open_onnx_session(paths[name], build_options(config), providers)

    def measure(self, name: str, batch: int) -> dict[str, float]:
        """Return the times of one graph, or of all three in sequence (`study`)."""
        if not self._sessions:
            self.open()
        values = {key: self._put(array) for key, array in draw_inputs(self._settings, batch).items()}
        if name == "fusion_study":
            values |= self._run("image_encoder", values) | self._run("text_encoder", values)
        study: Callable[[], Any] = partial(walk_graphs, STUDY, self._run, values)
        call = study if name == "study" else partial(self._run, name, values)
        return add_rate(time_calls(call, self._settings.seconds, lambda: None), batch)

    def _run(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Run one graph on values on the device and return its outputs, which stay on the device."""
        session = self._sessions[name]
        binding = session.io_binding()
        for tensor in MODELS[name].inputs:
            binding.bind_ortvalue_input(tensor.name, values[tensor.name])
        outputs = list_outputs(name)
        for output in outputs:
            binding.bind_output(output, self._settings.device)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return dict(zip(outputs, binding.get_outputs(), strict=True))

    def _put(self, array: NDArray[Any]) -> Any:
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_numpy(array, self._settings.device, 0)

    def _make_config(self, name: str) -> dict[str, Any]:
        if self._settings.device == "cpu":
            return {}
        entries: list[dict[str, Any]] = [{"name": "cuda", "parameters": dict(_FULL_FP32)}]
        if self._engines is not None:
            entries.insert(0, {"name": "tensorrt", "parameters": self._make_parameters(name)})
        return {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": entries}}}

    def _make_parameters(self, name: str) -> dict[str, str]:
        from export.profiles import load_profile
        from export.targets import make_optimization
        from export.tensorrt.shapes import ShapeRange, format_profile

        accelerators = make_optimization("tensorrt", load_profile("fp16"))["execution_accelerators"]
        parameters = dict(accelerators["gpu_execution_accelerator"][0]["parameters"])
        largest = max(_TENSORRT_BATCHES)
        shapes = {
            tensor.name: {size: self._read_shape(tensor.name, size) for size in (1, largest)}
            for tensor in MODELS[name].inputs
        }
        ranges = {key: ShapeRange(sizes[1], sizes[1], sizes[largest]) for key, sizes in shapes.items()}
        engines = str(self._engines)
        return {
            **parameters,
            **format_profile(ranges),
            "trt_engine_cache_path": engines,
            "trt_timing_cache_path": engines,
        }

    def _read_shape(self, tensor: str, batch: int) -> tuple[int, ...]:
        from bench.gpu.model import read_size
        from training.model.backbone import read_sizes

        inputs, sizes = draw_inputs(self._settings, batch), read_sizes(read_size(self._settings))
        if tensor in inputs:
            return tuple(inputs[tensor].shape)
        tokens = sizes["N"] if tensor == "image_tokens" else inputs["input_ids"].shape[1]
        return (batch, tokens, sizes["C"])


def _is_ready(log: Log, settings: Settings, provider: str) -> bool:
    """Return whether ONNX Runtime has a provider; if not, record the reason. A processor needs no provider."""
    import onnxruntime

    if settings.device == "cpu":
        return True
    if provider not in onnxruntime.get_available_providers():
        log.skip(
            log.part,
            f"onnxruntime {onnxruntime.__version__} has no {provider}. Put onnxruntime-gpu, and the libraries that it "
            "needs, into the folder of --wheels.",
        )
        return False
    if hasattr(onnxruntime, "preload_dlls"):  # use CUDA and cuDNN of PyTorch's packages
        onnxruntime.preload_dlls()
    return True


def _read_flops(out: Path) -> dict[str, float]:
    """Return name -> operations of one case, in 10**12, as PyTorch counted them."""
    flops = {}
    for title, values in Log(out, "torch").figures.items():
        flops[title.split()[0]] = values["tflops"] / values["cases_per_s"]
    return flops


def _add_share(figures: dict[str, Any], flops: float | None, peak: float | None) -> dict[str, Any]:
    """Return figures with the rate of operations, if PyTorch counted them, and its share of the peak."""
    tflops = flops * figures["cases_per_s"] if flops else None
    share = round(tflops / peak, 4) if tflops and peak else None
    return {**figures, "tflops": tflops and round_figures(tflops), "share_of_peak": share}


def _draw_cases(settings: Settings) -> "list[ParityCase]":
    from bench.gpu.model import read_size
    from export.gates.parity import ParityCase

    side, numbers = read_size(settings).image_size, np.random.default_rng(7)
    words = ("heart", "lungs", "effusion", "normal", "clear", "small", "left", "enlarged")
    return [
        ParityCase(
            numbers.integers(0, 256, (1, side, side), dtype=np.uint8),
            " ".join(numbers.choice(words, numbers.integers(3, 40))),
        )
        for _ in range(_CASES)
    ]
