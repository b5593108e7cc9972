"""Measure FAISS on the GPU and on the processor, and a served study with tensors in CUDA shared memory."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.gpu.clock import time_calls
from bench.gpu.log import Log, Settings
from bench.gpu.model import draw_inputs, make_graphs, open_bundle
from contract.errors import ConfigError

if TYPE_CHECKING:
    from client.channel import Carrier
    from client.triton import TritonTransport

_DIMENSION: Final = 512
_NEIGHBOURS: Final = 10
_QUERIES: Final = (1, 32, 256)
_CARRIERS: "Final[tuple[Carrier, ...]]" = ("grpc", "shared_memory", "cuda_shared_memory")
_SERVED: Final = "predict_study_tensors"
_TIMEOUT_S: Final = 60.0


def measure_faiss(log: Log, settings: Settings) -> None:
    """Measure exact search on the processor and on the GPU, and compare the results."""
    try:
        import faiss
    except ImportError:
        log.skip("search", "The package faiss is not installed. Put its wheel into the folder of --wheels.")
        return
    numbers = np.random.default_rng(0)
    stored = _normalise(numbers.standard_normal((settings.vectors, _DIMENSION), dtype=np.float32))
    queries = _normalise(numbers.standard_normal((max(_QUERIES), _DIMENSION), dtype=np.float32))
    on_cpu = faiss.IndexFlatIP(_DIMENSION)
    on_cpu.add(stored)
    _measure_searches(log, settings, "processor", on_cpu, queries)
    if not hasattr(faiss, "StandardGpuResources"):
        log.skip(
            "search, GPU", f"faiss {faiss.__version__} was built without GPU support. Install faiss-gpu-cu12."
        )
        return
    if settings.device == "cpu" or faiss.get_num_gpus() == 0:
        log.skip("search, GPU", "The device is not a GPU, or FAISS finds no GPU.")
        return
    resources = faiss.StandardGpuResources()
    on_gpu = faiss.index_cpu_to_gpu(resources, 0, on_cpu)
    _measure_searches(log, settings, "GPU", on_gpu, queries)
    log.measure("same neighbours on both", lambda: {"share": _compare(on_cpu, on_gpu, queries)})


def measure_shared_memory(log: Log, settings: Settings) -> None:
    """Measure one client of a served study, with tensors over gRPC, in shared memory and in CUDA shared memory."""
    from serving.triton import find_triton

    try:
        find_triton()
    except ConfigError as error:
        log.skip("served study", str(error))
        return
    names = [f"served study, {carrier}" for carrier in _CARRIERS]
    if all(name in log.figures for name in names):
        return
    repository = _publish(log.out, settings)
    _measure_carriers(log, settings, repository)


def _measure_searches(log: Log, settings: Settings, device: str, index: Any, queries: NDArray[Any]) -> None:
    for count in _QUERIES:

        def search(count: int = count) -> Mapping[str, Any]:
            figures = time_calls(
                lambda: index.search(queries[:count], _NEIGHBOURS), settings.seconds, lambda: None
            )
            return {**figures, "batch": count, "queries_per_s": round(1e3 * count / figures["p50_ms"], 1)}

        log.measure(f"search, {device}, {count} queries", search)


def _compare(first: Any, second: Any, queries: NDArray[Any]) -> float:
    neighbours = [index.search(queries, _NEIGHBOURS)[1] for index in (first, second)]
    same = [len(set(left) & set(right)) for left, right in zip(*neighbours, strict=True)]
    return float(np.mean(same)) / _NEIGHBOURS


def _normalise(vectors: NDArray[Any]) -> NDArray[Any]:
    scaled: NDArray[Any] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def _publish(out: Path, settings: Settings) -> Path:
    from export.configs import Deployment
    from export.publish import publish
    from export.targets import make_optimization

    repository = out / "model" / "repository"
    if not repository.is_dir():
        target = "gpu" if settings.device == "cuda" else "cpu"
        name = "fp16" if target == "gpu" else "fp32"
        deployment = Deployment(target, profile=name, optimization=make_optimization(target))
        publish(open_bundle(out, settings), make_graphs(out, settings, name), repository, deployment)
    return repository


def _measure_carriers(log: Log, settings: Settings, repository: Path) -> None:
    from client.channel import ChannelSettings
    from client.triton import TritonTransport
    from contract.tensors import MODELS
    from serving.stack import Ports, Stack

    inputs = draw_inputs(settings, 1)
    outputs = [tensor.name for tensor in MODELS[_SERVED].outputs]
    with tempfile.TemporaryDirectory(prefix="cxr-gpu-") as scratch:
        stack = Stack(repository, Path(scratch) / "store", ports=Ports.free(), log_dir=Path(scratch) / "logs")
        with stack:
            stack.wait_ready()
            for carrier in _CARRIERS:
                if carrier == "cuda_shared_memory" and settings.device == "cpu":
                    log.skip(f"served study, {carrier}", "CUDA shared memory needs a GPU.")
                    continue
                transport = TritonTransport(stack.triton_url, ChannelSettings(carrier))
                try:
                    log.measure(
                        f"served study, {carrier}", _make_measurement(transport, inputs, outputs, settings)
                    )
                finally:
                    transport.close()


def _make_measurement(
    transport: "TritonTransport", inputs: Mapping[str, NDArray[Any]], outputs: list[str], settings: Settings
) -> Callable[[], Mapping[str, Any]]:
    def call() -> Any:
        return transport.infer(_SERVED, inputs, outputs, _TIMEOUT_S)

    def measure() -> Mapping[str, Any]:
        call()
        _require_region(transport)
        return time_calls(call, 4 * settings.seconds, lambda: None)

    return measure


def _require_region(transport: "TritonTransport") -> None:
    """Raise ConfigError if the server refused the region. The client would then silently use gRPC."""
    from tritonclient import grpc as triton

    carrier = transport.settings.carrier
    client = triton.InferenceServerClient(transport.url)
    try:
        known = {
            "shared_memory": client.get_system_shared_memory_status,
            "cuda_shared_memory": client.get_cuda_shared_memory_status,
        }
        if carrier in known and not known[carrier]().regions:
            raise ConfigError(f"Triton did not accept a region of {carrier.replace('_', ' ')}.")
    finally:
        client.close()
