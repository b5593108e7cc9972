"""The stand-ins at the seams: a `tensorrt` module, programs on the PATH; and a published repository."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from contract.bundle import Bundle
from export.publish import publish
from export.tensorrt.graph import PlanRequest
from export.tensorrt.shapes import ShapeRange


class FakeConfig:
    """Records what a builder config is told."""

    def __init__(self, trt: Any) -> None:
        self.trt = trt

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.trt.calls["workspace"] = (pool, size)

    def clear_flag(self, flag: str) -> None:
        self.trt.calls.setdefault("cleared", []).append(flag)

    def add_optimization_profile(self, profile: Any) -> None:
        self.trt.calls.setdefault("profiles", []).append(profile.shapes)

    def create_timing_cache(self, data: bytes) -> Any:
        return SimpleNamespace(data=data, serialize=lambda: memoryview(data + b"+timed"))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        self.trt.calls.setdefault("caches", []).append(cache.data)
        return not cache.data.startswith(b"other release")


class FakeProfile:
    """Records the shapes of an optimisation profile."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple] = {}

    def set_shape(self, name: str, smallest: tuple, typical: tuple, largest: tuple) -> None:
        self.shapes[name] = (smallest, typical, largest)


class FakeTensorrt(ModuleType):
    """The part of the tensorrt module that a build calls. It has what both TensorRT 10 and 11 have."""

    NetworkDefinitionCreationFlag = SimpleNamespace(EXPLICIT_BATCH=0, STRONGLY_TYPED=1)
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    BuilderFlag = SimpleNamespace(TF32="tf32")

    class ILogger:
        """The base class of loggers."""

        Severity = SimpleNamespace(ERROR="error", INTERNAL_ERROR="internal error")

        def __init__(self) -> None: ...

    def __init__(self, version: str = "10.5.0") -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.calls: dict[str, Any] = {}
        self.parser_errors: list[Any] = []
        self.plan: bytes | None = b"plan"
        self.log_errors: list[str] = []
        self.builds = 0

    def Builder(self, logger: Any) -> Any:
        def build(network: Any, config: Any) -> bytes | None:
            self.builds += 1
            for message in self.log_errors:
                logger.log("error", message)
            return memoryview(self.plan) if self.plan is not None else None

        return SimpleNamespace(
            create_network=lambda flags: self.calls.update(network_flags=flags),
            create_builder_config=lambda: FakeConfig(self),
            create_optimization_profile=FakeProfile,
            build_serialized_network=build,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        def parse(path: str) -> bool:
            self.calls["parsed"] = path
            return not self.parser_errors

        return SimpleNamespace(
            parse_from_file=parse,
            num_errors=len(self.parser_errors),
            get_error=lambda index: self.parser_errors[index],
        )


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorrt:
    module = FakeTensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put shell scripts on an otherwise empty PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def add(name: str, script: str) -> Path:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
        return folder / name

    return add


@pytest.fixture
def gpu(programs: Callable[[str, str], Path]) -> None:
    programs("nvidia-smi", "echo 'NVIDIA A100, 8.0'")


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch, programs: Callable[[str, str], Path]) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # import raises ImportError


@pytest.fixture(scope="session")
def repository(bundle: Bundle, graphs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(bundle, graphs, tmp_path_factory.mktemp("published") / "repository")


@pytest.fixture
def make_request(tmp_path: Path) -> Callable[..., PlanRequest]:
    """Make a request for `model.onnx` in the test's directory."""

    def make(**changes: Any) -> PlanRequest:
        path = tmp_path
        values: dict[str, Any] = {
            "graph": path / "model.onnx",
            "plan": path / "model.plan",
            "timing_cache": path / "timing.cache",
            "profiles": (
                {
                    "ids": ShapeRange((1, 32), (8, 128), (32, 256)),
                    "x": ShapeRange((1, 4), (8, 4), (32, 4)),
                },
                {
                    "ids": ShapeRange((1, 32), (1, 128), (1, 256)),
                    "x": ShapeRange((1, 4), (1, 4), (1, 4)),
                },
            ),
            "precision": "fp16",
            "workspace_mib": 512,
        }
        return PlanRequest(**(values | changes))

    return make


@pytest.fixture
def write_graph(tmp_path: Path) -> Callable[..., Path]:
    """Write `model.onnx`, one operator from `x` to `y`."""

    def write(operator: str, name: str, data_type: int = TensorProto.FLOAT) -> Path:
        values = [helper.make_tensor_value_info(name, data_type, ["batch", 4]) for name in ("x", "y")]
        node = helper.make_node(operator, ["x"], ["y"], name=name)
        graph = helper.make_graph([node], "small", values[:1], values[1:])
        path = tmp_path / "model.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
        return path

    return write
