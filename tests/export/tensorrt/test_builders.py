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
from export.tensorrt.graph import PlanRequest, choose_precision, find_fp32_nodes

Request = Callable[..., PlanRequest]


def test_sums_and_normalisations_stay_in_fp32(graphs: dict[str, Path]) -> None:
    model = onnx.load(graphs["fusion_study"])
    operators = {node.name: node.op_type for node in model.graph.node}
    kept = {operators[name] for name in find_fp32_nodes(graphs["fusion_study"])}
    assert kept == {"LayerNormalization", "Softmax", "ReduceSum", "ReduceMean", "Pow", "Clip"}
    norms = [name for name, operator in operators.items() if operator == "LayerNormalization"]
    assert set(norms) <= set(find_fp32_nodes(graphs["fusion_study"]))
    assert "ReduceMax" in operators.values()  # of integers: they have one precision


def test_a_converted_graph_states_its_own_types(
    write_graph: Callable[..., Path], graphs: dict[str, Path]
) -> None:
    half, single = write_graph("Relu", "relu", TensorProto.FLOAT16), graphs["fusion_image"]
    assert choose_precision(half, "fp32", (11, 0, 0)) == ("fp16", True)
    assert choose_precision(single, "fp32", (10, 5, 0)) == ("fp32", True)
    assert choose_precision(single, "bf16", (10, 5, 0)) == ("bf16", False)
    text = r"TensorRT 11\.0\.0 takes data types from the graph.*--precision fp32, or .*--profile fp16"
    with pytest.raises(ConfigError, match=text):
        choose_precision(single, "fp16", (11, 0, 0))


def test_a_node_that_must_stay_needs_a_name(write_graph: Callable[..., Path]) -> None:
    with pytest.raises(ArtifactError, match="the node y needs a name"):
        find_fp32_nodes(write_graph("Softmax", ""))


def test_a_constant_that_fp16_cannot_hold_stays_in_fp32(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[batch, 4] x) => (float[batch, 4] y) <float mask = {-1e9}, float tiny = {1e-12}, float two = {2}> {
        [large] a = Mul(x, mask)
        [small] b = Max(a, tiny)
        [plain] y = Mul(b, two)
    }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "g.onnx")
    assert find_fp32_nodes(tmp_path / "g.onnx") == ("large", "small")


def test_the_python_builder_keeps_layers_in_fp32(make_request: Request, trt: Any) -> None:
    layers = [
        trt.make_layer("a", "norm", "float", 1),
        trt.make_layer("softmax", "shuffle", "half", 1),
        trt.make_layer("matmul", "matmul", "half", 1),
        trt.make_layer("largest", "reduce", "int64", 1),
        trt.make_layer("assertion", "assertion", "", 0),
    ]
    request = make_request()
    PythonBuilder(trt).build(request)
    pinned = [layer.name for layer in layers if getattr(layer, "precision", None) == "float"]
    assert pinned == [layer.name for layer in layers if hasattr(layer, "output_type")] == ["a", "softmax"]
    assert trt.calls == {
        "network_flags": 0,
        "parsed": str(request.graph),
        "workspace": ("workspace", 512 << 20),
        "flags": ["fp16", "obey"],
        "profiles": [
            {name: tuple(bounds) for name, bounds in profile.items()} for profile in request.profiles
        ],
        "caches": [b""],
    }
    assert request.plan.read_bytes() == b"plan"
    assert request.timing_cache.read_bytes() == b"+timed"


def test_fp32_is_strongly_typed_and_without_tf32(make_request: Request, trt: Any) -> None:
    layer = trt.make_layer("a", "norm", "float")
    PythonBuilder(trt).build(make_request(precision="fp32", strongly_typed=True, fp32_nodes=()))
    assert trt.calls["network_flags"] == 1 << 1
    assert trt.calls["cleared"] == ["tf32"]
    assert "flags" not in trt.calls
    assert not hasattr(layer, "precision")


def test_a_typed_graph_sets_no_precision_flag(make_request: Request, trt: Any) -> None:
    PythonBuilder(trt).build(make_request(strongly_typed=True, fp32_nodes=()))
    assert "flags" not in trt.calls
    assert "cleared" not in trt.calls


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
    ]
    kept = "norm:fp32,softmax:fp32"
    constraints = ["--precisionConstraints=obey", f"--layerPrecisions={kept}", f"--layerOutputTypes={kept}"]
    assert make_trtexec_arguments(request) == [*head, "--fp16", *constraints]
    bf16 = make_request(precision="bf16", fp32_nodes=())
    assert make_trtexec_arguments(bf16) == [*head, "--bf16", "--precisionConstraints=obey"]
    fp32 = make_request(precision="fp32", strongly_typed=True)
    assert make_trtexec_arguments(fp32) == [*head, "--stronglyTyped", "--noTF32"]
    typed = make_request(strongly_typed=True)
    assert make_trtexec_arguments(typed) == [*head, "--stronglyTyped"]


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
