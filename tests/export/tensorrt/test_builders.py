"""What builders are told, by the Python API and by the command line, and what they say when they fail."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from contract.errors import ArtifactError, ConfigError
from export.tensorrt.builders import PythonBuilder, make_trtexec_arguments, read_gpu, read_trtexec_version
from export.tensorrt.graph import PlanRequest, Precision, convert_graph
from export.tensorrt.operators import check_operators, infer_types

Request = Callable[..., PlanRequest]


@pytest.mark.parametrize(("wanted", "narrow"), [("fp16", "FLOAT16"), ("bf16", "BFLOAT16")])
def test_a_float32_graph_is_converted_before_tensorrt_reads_it(
    wanted: Precision, narrow: str, graphs: dict[str, Path], tmp_path: Path
) -> None:
    graph, precision = convert_graph(graphs["fusion_study"], wanted, tmp_path / "narrow.onnx")
    assert (graph, precision) == (tmp_path / "narrow.onnx", wanted)
    model, before = onnx.load(graph), onnx.load(graphs["fusion_study"])
    types = infer_types(model)
    computed = {
        operator: {types[node.output[0]] for node in model.graph.node if node.op_type == operator}
        for operator in ("MatMul", "LayerNormalization", "Softmax", "ReduceSum")
    }
    assert narrow in computed.pop("MatMul")
    assert set().union(*computed.values()) <= {
        "FLOAT",
        "INT64",
        "INT32",
    }  # a sum of lengths counts in integers
    assert (model.graph.input, model.graph.output) == (before.graph.input, before.graph.output)
    assert check_operators(graph, (11, 1)) == check_operators(graph, (10, 14)) == []


def test_a_graph_keeps_the_precision_that_it_has(
    write_graph: Callable[..., Path], graphs: dict[str, Path], tmp_path: Path
) -> None:
    half, single, out = (
        write_graph("Relu", "relu", TensorProto.FLOAT16),
        graphs["fusion_image"],
        tmp_path / "o",
    )
    assert convert_graph(half, "fp32", out) == (half, "fp16")
    assert convert_graph(half, "bf16", out) == (half, "fp16")
    assert convert_graph(single, "fp32", out) == (single, "fp32")
    assert not out.exists()


def test_the_python_builder_takes_data_types_from_the_graph(make_request: Request, trt: Any) -> None:
    request = make_request()
    PythonBuilder(trt).build(request)
    assert trt.calls == {
        "network_flags": 1 << 1,
        "parsed": str(request.graph),
        "workspace": ("workspace", 512 << 20),
        "profiles": [
            {name: tuple(bounds) for name, bounds in profile.items()} for profile in request.profiles
        ],
        "caches": [b""],
    }
    assert request.plan.read_bytes() == b"plan"
    assert request.timing_cache.read_bytes() == b"+timed"


def test_fp32_is_computed_without_tf32(make_request: Request, trt: Any) -> None:
    PythonBuilder(trt).build(make_request(precision="fp32"))
    assert trt.calls["cleared"] == ["tf32"]
    PythonBuilder(trt).build(make_request(precision="bf16"))
    assert trt.calls["cleared"] == ["tf32"]


@pytest.mark.parametrize(
    ("stored", "used"), [(b"mine", [b"mine"]), (b"other release", [b"other release", b""])]
)
def test_the_timing_cache_is_read_unless_of_another_release(
    make_request: Request, trt: Any, stored: bytes, used: list[bytes]
) -> None:
    request = make_request()
    request.timing_cache.write_bytes(stored)
    PythonBuilder(trt).build(request)
    assert trt.calls["caches"] == used
    assert request.timing_cache.read_bytes() == used[-1] + b"+timed"


def make_parser_error(name: str, operator: str, index: int = -1) -> Any:
    return SimpleNamespace(
        node_name=lambda: name,
        node_operator=lambda: operator,
        node=lambda: index,
        desc=lambda: "Unsupported\n  axis",
    )


def test_parser_errors_become_one_artifact_error(make_request: Request, trt: Any) -> None:
    trt.parser_errors = [make_parser_error("node_3", "Det"), make_parser_error("node_4", "Mod")]
    request = make_request()
    with pytest.raises(
        ArtifactError,
        match=r"cannot read .*/model\.onnx: node node_3 \(Det\): Unsupported axis \(and 1 more\)\.",
    ):
        PythonBuilder(trt).build(request)
    assert not request.plan.exists()


def test_a_parser_error_without_operator_is_looked_up(
    make_request: Request, write_graph: Callable[..., Path], trt: Any
) -> None:
    trt.parser_errors = [make_parser_error("", "", 0)]
    write_graph("Relu", "relu")
    with pytest.raises(ArtifactError, match=r"node relu \(Relu\)"):
        PythonBuilder(trt).build(make_request())


def test_a_failed_build_gives_the_reason_from_the_log(make_request: Request, trt: Any) -> None:
    trt.plan, trt.log_errors = None, ["first", "no implementation for node 7"]
    request = make_request()
    with pytest.raises(
        ArtifactError, match=r"could not build a plan of .*/model\.onnx: no implementation for node 7"
    ):
        PythonBuilder(trt).build(request)
    assert not request.plan.exists()


def test_the_arguments_of_trtexec(make_request: Request, tmp_path: Path) -> None:
    request = make_request()
    head = [
        f"--onnx={tmp_path}/model.onnx",
        f"--saveEngine={tmp_path}/model.plan",
        f"--timingCacheFile={tmp_path}/timing.cache",
        *("--profile=0", "--minShapes=ids:1x32,x:1x4"),
        *("--optShapes=ids:8x128,x:8x4", "--maxShapes=ids:32x256,x:32x4"),
        *("--profile=1", "--minShapes=ids:1x32,x:1x4"),  # an index owns the three behind it
        *("--optShapes=ids:1x128,x:1x4", "--maxShapes=ids:1x256,x:1x4"),
        "--memPoolSize=workspace:512M",
        "--skipInference",
        "--stronglyTyped",
    ]
    assert make_trtexec_arguments(request) == make_trtexec_arguments(make_request(precision="bf16")) == head
    assert make_trtexec_arguments(make_request(precision="fp32")) == [*head, "--noTF32"]


@pytest.mark.parametrize(
    ("printed", "version"),
    [("v100500] [b18", (10, 5, 0)), ("v8601", (8, 6, 1)), ("v101303", (10, 13, 3)), ("v110000", (11, 0, 0))],
)
def test_the_version_of_trtexec(
    programs: Callable[[str, str], Path], printed: str, version: tuple[int, ...]
) -> None:
    program = programs(
        "trtexec", f"echo '&&&& RUNNING TensorRT.trtexec [TensorRT {printed}] # trtexec --help'"
    )
    assert read_trtexec_version(str(program)) == version


def test_a_trtexec_without_version_is_a_config_error(programs: Callable[[str, str], Path]) -> None:
    with pytest.raises(ConfigError, match="does not print its TensorRT release"):
        read_trtexec_version(str(programs("trtexec", "echo hello")))
    with pytest.raises(ConfigError, match="cannot run"):
        read_trtexec_version("/nowhere/trtexec")


@pytest.mark.parametrize("script", ["exit 9", "echo 'no devices'", "echo"])
def test_no_gpu(programs: Callable[[str, str], Path], script: str) -> None:
    assert read_gpu() is None
    programs("nvidia-smi", script)
    assert read_gpu() is None
