"""How the python-based onnxruntime backend reads config.pbtxt."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from contract.errors import ConfigError
from serving.triton import find_triton

pytest.importorskip("onnxruntime")
MODEL = Path(__file__).parents[2] / "serving" / "backends" / "onnxruntime" / "model.py"


@pytest.fixture(scope="module")
def backend():
    pytest.importorskip("pytriton")
    name = "triton_python_backend_utils"
    load_module(name, find_triton().python_backend / f"{name}.py")  # the wheel's own
    yield load_module("onnxruntime_backend", MODEL)
    del sys.modules[name], sys.modules["onnxruntime_backend"]


def load_module(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def accelerate(processor: str, name: str, **parameters: str):
    entry = {"name": name, "parameters": parameters}
    return {"optimization": {"execution_accelerators": {f"{processor}_execution_accelerator": [entry]}}}


def pretend(monkeypatch, backend, *providers: str) -> None:
    monkeypatch.setattr(
        backend.onnxruntime, "get_available_providers", lambda: [*providers, "CPUExecutionProvider"]
    )


def test_cpu_instance_runs_on_the_cpu(backend):
    assert backend.choose_providers({}, "CPU", "0") == [("CPUExecutionProvider", {})]


def test_gpu_instance_runs_on_its_device(backend, monkeypatch):
    pretend(monkeypatch, backend, "CUDAExecutionProvider")
    providers = backend.choose_providers({}, "GPU", "1")
    assert providers == [("CUDAExecutionProvider", {"device_id": "1"}), ("CPUExecutionProvider", {})]


def test_tensorrt_is_preferred_where_the_config_asks_for_it(backend, monkeypatch):
    pretend(monkeypatch, backend, "TensorrtExecutionProvider", "CUDAExecutionProvider")
    config = accelerate("gpu", "tensorrt", precision_mode="FP16", max_workspace_size_bytes="1073741824")
    first, *others = backend.choose_providers(config, "GPU", "0")
    assert first == (
        "TensorrtExecutionProvider",
        {"trt_max_workspace_size": "1073741824", "trt_fp16_enable": "1", "device_id": "0"},
    )
    assert [name for name, _ in others] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert [name for name, _ in backend.choose_providers(config, "CPU", "0")] == ["CPUExecutionProvider"]


def test_missing_provider_is_an_error_not_a_slow_answer(backend, monkeypatch):
    pretend(monkeypatch, backend)
    with pytest.raises(ConfigError, match=r"asks for CUDAExecutionProvider.*cxr-serving\[gpu\]"):
        backend.choose_providers({}, "GPU", "0")


def test_unknown_accelerator_is_refused(backend):
    with pytest.raises(ConfigError, match="magic"):
        backend.choose_providers(accelerate("cpu", "magic"), "CPU", "0")


def test_thread_counts_come_from_the_parameters(backend):
    config = {"parameters": {"intra_op_thread_count": {"string_value": "3"}}}
    assert backend.build_options(config).intra_op_num_threads == 3
    cores = len(os.sched_getaffinity(0))
    assert backend.build_options({}).intra_op_num_threads == min(cores, 4)
