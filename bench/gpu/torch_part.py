"""Measure the peak of the device, and compiled PyTorch: encoders, fusion and the whole study."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from bench.gpu.clock import add_rate, round_figures, time_calls
from bench.gpu.log import PRECISIONS, Log, Precision, Settings
from bench.gpu.model import STUDY, draw_inputs, read_size

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PEAK: Final = "peak"
_SIDE: Final = {"cuda": 8192, "cpu": 512}  # of the square matrices
_COPIED_BYTES: Final = {"cuda": 2**31, "cpu": 2**26}


def measure_peak(log: Log, settings: Settings) -> None:
    """Measure the fastest product of two square matrices, and the fastest copy."""
    import torch

    side, device = _SIDE[settings.device], settings.device
    for precision in PRECISIONS:
        log.measure(f"{precision} product of {side} x {side}", partial(_multiply, settings, precision))

    def copy() -> Mapping[str, Any]:
        source = torch.empty(_COPIED_BYTES[device], dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        figures = time_calls(lambda: target.copy_(source), settings.seconds, make_wait(settings))
        return {**figures, "gb_per_s": round(2 * source.numel() / figures["p50_ms"] / 1e6, 1)}

    log.measure("copy on the device, read and written", copy)


def _multiply(settings: Settings, precision: Precision) -> Mapping[str, Any]:
    import torch

    side, kind = _SIDE[settings.device], _get_dtype(precision)
    left, right = (torch.randn(side, side, device=settings.device).to(kind) for _ in range(2))
    figures = time_calls(lambda: left @ right, settings.seconds, make_wait(settings))
    return {**figures, "tflops": round_figures(2 * side**3 / figures["p50_ms"] / 1e9)}


def measure_torch(log: Log, settings: Settings) -> None:
    """Measure compiled PyTorch at batch 1, then at larger batches, one precision after the other."""
    peaks = read_peaks(log, settings)
    for precision in PRECISIONS:
        runner = _Study(settings, precision, peaks.get(precision))
        log.measure_series(
            (f"{name} {precision} batch {batch}", partial(runner.measure, name, batch))
            for batch in settings.batches
            for name in (*STUDY, "study")
        )


def read_peaks(log: Log, settings: Settings) -> dict[str, float]:
    """Return precision -> TFLOP/s from the part `peak`; {} if it was not measured, or on a processor."""
    figures = Log(log.out, PEAK).figures if settings.device == "cuda" else {}
    return {name.split()[0]: values["tflops"] for name, values in figures.items() if "tflops" in values}


def make_wait(settings: Settings) -> Callable[[], None]:
    """Return a function that waits for the device."""
    import torch

    return torch.cuda.synchronize if settings.device == "cuda" else lambda: None


class _Study:
    """The three modules of a study, compiled once for a batch of 1 and once for all larger batches."""

    def __init__(self, settings: Settings, precision: Precision, peak_tflops: float | None) -> None:
        self._settings, self._precision, self._peak_tflops = settings, precision, peak_tflops
        self._compiled: dict[str, Any] = {}
        self._flops: dict[str, int] = {}

    def measure(self, name: str, batch: int) -> dict[str, Any]:
        """Return the times of one module, or of all three in sequence (`study`)."""
        import torch

        inputs = self._make_inputs(batch)
        with torch.inference_mode():
            call = (lambda: self._run_study(inputs)) if name == "study" else self._bind(name, inputs)
            figures = add_rate(time_calls(call, self._settings.seconds, make_wait(self._settings)), batch)
        names = STUDY if name == "study" else (name,)
        tflops = batch * sum(self._flops[part] for part in names) / figures["p50_ms"] / 1e9
        share = round(tflops / self._peak_tflops, 4) if self._peak_tflops else None
        return {**figures, "tflops": round_figures(tflops), "share_of_peak": share}

    def _bind(self, name: str, inputs: Mapping[str, "Tensor"]) -> Callable[[], Any]:
        import torch

        values = dict(inputs)
        if name == "fusion_study":
            values |= {
                "image_tokens": self._run("image_encoder", values),
                "text_tokens": self._run("text_encoder", values),
            }
            values = {
                key: torch.clone(value) for key, value in values.items()
            }  # the next run would overwrite them
        return lambda: self._run(name, values)

    def _run_study(self, inputs: Mapping[str, "Tensor"]) -> Any:
        values = dict(inputs)
        values["image_tokens"] = self._run("image_encoder", values)
        values["text_tokens"] = self._run("text_encoder", values)
        return self._run("fusion_study", values)

    def _run(self, name: str, values: Mapping[str, "Tensor"]) -> Any:
        from contract.tensors import MODELS

        if not self._compiled:
            self._compile()
        arguments = [values[tensor.name] for tensor in MODELS[name].inputs]
        return self._compiled[name](*arguments)

    def _compile(self) -> None:
        import torch

        from training.model.model import CxrModel, graph_modules

        torch.manual_seed(0)
        model = CxrModel(read_size(self._settings)).to(self._settings.device, _get_dtype(self._precision))
        modules = graph_modules(model.eval())
        backend = (
            "inductor" if self._settings.device == "cuda" else "eager"
        )  # the CPU trial needs no compiler
        for name in STUDY:
            self._compiled[name] = torch.compile(modules[name], backend=backend, dynamic=None)
        self._count_flops(modules)

    def _count_flops(self, modules: Mapping[str, Any]) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        from contract.tensors import MODELS

        values = self._make_inputs(1)
        for name in STUDY:
            counter = FlopCounterMode(display=False)
            with counter:
                outputs = modules[name](*(values[tensor.name] for tensor in MODELS[name].inputs))
            self._flops[name] = counter.get_total_flops()
            values |= {MODELS[name].outputs[0].name: outputs if name != "fusion_study" else outputs[0]}

    def _make_inputs(self, batch: int) -> "dict[str, torch.Tensor]":
        import torch

        arrays = draw_inputs(self._settings, batch)
        return {name: torch.from_numpy(array).to(self._settings.device) for name, array in arrays.items()}


def _get_dtype(precision: Precision) -> Any:
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
