"""One graph on each runtime of this machine: the same test bodies for ONNX Runtime and for OpenVINO."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from contract.errors import ArtifactError, ConfigError, FingerprintError, TensorError
from contract.runtime import session as runtime
from contract.runtime.openvino import has_bf16
from contract.runtime.session import open_session, require_fingerprint

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
FINGERPRINT = "a" * 64
BFLOAT16_ROUNDING = 2.0**-8  # of a number of 8 significant bits


def accelerate(processor: str, name: str, **parameters: str):
    entry = {"name": name, "parameters": parameters}
    return {"optimization": {"execution_accelerators": {f"{processor}_execution_accelerator": [entry]}}}


def set_parameters(**values: str):
    return {"parameters": {name: {"string_value": value} for name, value in values.items()}}


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """rows = table[ids] @ weights with a table of 10 x 64 and weights of 64 x 32; copy = ids; batch and length free."""
    numbers = np.random.default_rng(0)
    arrays = {"table": (10, 64), "weights": (64, 32)}
    weights = [
        onnx.numpy_helper.from_array(numbers.standard_normal(shape, dtype=np.float32), name)
        for name, shape in arrays.items()
    ]
    nodes = [
        onnx.helper.make_node("Gather", ["table", "ids"], ["chosen"]),
        onnx.helper.make_node("MatMul", ["chosen", "weights"], ["rows"]),
        onnx.helper.make_node("Identity", ["ids"], ["copy"]),
    ]
    ids, copy = (
        onnx.helper.make_tensor_value_info(x, onnx.TensorProto.INT64, ["B", "L"]) for x in ("ids", "copy")
    )
    rows = onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, ["B", "L", 32])
    made = onnx.helper.make_graph(nodes, "lookup", [ids], [rows, copy], weights)
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, {"fingerprint": FINGERPRINT, "graph": "lookup"})
    path = tmp_path_factory.mktemp("runtime") / "model.onnx"
    onnx.save(model, str(path))
    return path


@pytest.fixture(params=["onnxruntime", "openvino fp32", "openvino bf16"])
def config(request):
    if request.param == "onnxruntime":
        return {}
    pytest.importorskip("openvino")
    precision = request.param.partition(" ")[2]
    if precision == "bf16" and not has_bf16():
        pytest.skip("this processor has no bfloat16")
    return accelerate("cpu", "openvino", precision=precision)


@pytest.fixture
def session(graph, config):
    return open_session(graph, config)


def compute(graph: Path, ids) -> np.ndarray:
    model = onnx.load(str(graph))
    arrays = {x.name: onnx.numpy_helper.to_array(x).astype(np.float64) for x in model.graph.initializer}
    return arrays["table"][ids] @ arrays["weights"]


def test_one_session_answers_every_batch_and_length(graph, session, config):
    tolerance = 8 * BFLOAT16_ROUNDING if "bf16" in str(config) else 1e-6  # of the largest value
    for shape in ((1, 3), (4, 3), (2, 7), (1, 3)):
        ids = np.random.default_rng(1).integers(0, 10, shape)
        rows, copy = session.run(["rows", "copy"], {"ids": ids})
        expected = compute(graph, ids)
        assert rows.dtype == np.float32
        assert rows.shape == expected.shape
        assert np.abs(rows - expected).max() <= tolerance * np.abs(expected).max()
        assert copy.tolist() == ids.tolist()


def test_answers_outlive_the_next_run_and_the_memory_of_the_inputs(session):
    ids = np.array([[1, 2]])
    first_rows, first_copy = session.run(["rows", "copy"], {"ids": ids})
    kept = first_rows.copy()
    ids[:] = 9
    session.run(["rows", "copy"], {"ids": ids})
    assert np.array_equal(first_rows, kept)
    assert first_copy.tolist() == [[1, 2]]


def test_outputs_come_in_the_order_asked_for(session):
    copy, rows = session.run(["copy", "rows"], {"ids": np.array([[5]])})
    assert (copy.dtype, rows.dtype) == (np.int64, np.float32)
    assert len(session.run(["copy"], {"ids": np.array([[5]])})) == 1


def test_memory_that_is_read_only_or_not_in_order_is_read_as_it_is(session):
    ids = np.arange(6).reshape(2, 3).T[::-1]
    ids.flags.writeable = False
    assert session.run(["copy"], {"ids": ids})[0].tolist() == [[2, 5], [1, 4], [0, 3]]


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"ids": np.ones((1, 2), np.int32)}, "int32"),
        ({"ids": np.ones(2, np.int64)}, "rank|shape"),
        ({}, "ids"),
        ({"ids": np.ones((1, 2), np.int64), "more": np.ones(1, np.int64)}, "more"),
        ({"ids": np.array([[3, 77]])}, "idx=77"),
        ({"ids": np.array([[-11, 3]])}, "idx=-11"),
    ],
)
def test_an_input_that_does_not_fit_is_the_callers_error(session, feeds, message):
    with pytest.raises(TensorError, match=message):
        session.run(["rows"], feeds)
    assert session.run(["copy"], {"ids": np.array([[1]])})[0].tolist() == [[1]]  # it goes on


def test_unknown_output_is_the_callers_error(session):
    with pytest.raises(TensorError, match="nothing_like_it"):
        session.run(["nothing_like_it"], {"ids": np.array([[1]])})


def test_times_of_the_operations_are_noted_on_request(graph, config, session):
    timed = open_session(graph, config, timed=True)
    ids = np.ones((8, 64), np.int64)
    for _ in range(3):
        timed.run(["rows"], {"ids": ids})
    times = timed.read_times()
    assert {"Gather"} <= set(times)
    assert set(times) & {"MatMul", "FullyConnected", "Gemm"}
    assert 0 < sum(times.values()) < 10_000
    session.run(["rows"], {"ids": ids})
    assert session.read_times() == {}


def test_metadata_of_the_file(session):
    assert session.metadata["fingerprint"] == FINGERPRINT
    assert session.metadata["graph"] == "lookup"


def test_fingerprint_of_the_version_comes_before_that_of_the_model(session, tmp_path):
    require_fingerprint(session, set_parameters(fingerprint=FINGERPRINT), tmp_path)
    file = tmp_path / "fingerprint"
    file.write_text(f"{FINGERPRINT}\n")
    require_fingerprint(session, set_parameters(fingerprint="b" * 64), tmp_path)
    file.write_bytes(b"\xff")
    with pytest.raises(ArtifactError, match="cannot be read"):
        require_fingerprint(session, set_parameters(fingerprint=FINGERPRINT), tmp_path)
    file.write_text("b" * 64)
    with pytest.raises(FingerprintError, match="bbbbbbbbbbbb"):
        require_fingerprint(session, set_parameters(fingerprint=FINGERPRINT), tmp_path)


def test_description_names_runtime_precision_and_threads(graph, config):
    said = open_session(graph, {**config, **set_parameters(intra_op_thread_count="1")}).describe()
    assert said.startswith("OpenVINO 20" if config else "ONNX Runtime 1.")
    precision = config and config["optimization"]["execution_accelerators"]["cpu_execution_accelerator"][0]
    assert said.endswith(f"{precision['parameters']['precision']}, 1 thread" if config else "CPU, 1 thread")


def test_damaged_or_missing_graph(tmp_path, config):
    with pytest.raises(ArtifactError, match="no graph"):
        open_session(tmp_path / "model.onnx", config)
    (tmp_path / "model.onnx").write_bytes(b"no graph at all")
    with pytest.raises(ArtifactError, match=r"cannot load .*model\.onnx"):
        open_session(tmp_path / "model.onnx", config)


def test_a_processor_without_bfloat16_is_told_so(graph, monkeypatch):
    openvino = pytest.importorskip("openvino")
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    assert "fp32" in open_session(graph, accelerate("cpu", "openvino", precision="fp32")).describe()
    with pytest.raises(ConfigError, match="AVX512-BF16"):
        open_session(graph, accelerate("cpu", "openvino", precision="bf16"))


def test_a_graph_in_bfloat16_needs_such_a_processor_whatever_its_config_says(tmp_path, monkeypatch):
    openvino = pytest.importorskip("openvino")
    helper, kinds = onnx.helper, onnx.TensorProto
    x, y = (helper.make_tensor_value_info(name, kinds.FLOAT, ["B", 4]) for name in "xy")
    weight = helper.make_tensor("w", kinds.BFLOAT16, [4, 4], np.eye(4, dtype=np.float32).ravel())
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=kinds.BFLOAT16),
        helper.make_node("MatMul", ["narrow", "w"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=kinds.FLOAT),
    ]
    made = helper.make_graph(nodes, "bf16", [x], [y], [weight])
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "model.onnx",
    )
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    with pytest.raises(ConfigError, match="AVX512-BF16"):
        open_session(tmp_path / "model.onnx", accelerate("cpu", "openvino", precision="fp32"))


SIGNAL_AFTER_A_SESSION = """
import faulthandler, signal, sys, threading
from pathlib import Path
from contract.runtime.session import open_session
faulthandler.enable()  # as pytest does: its stack for signal handlers is what OpenVINO replaces
accelerator = {"cpu_execution_accelerator": [{"name": "openvino"}]}
config = {"optimization": {"execution_accelerators": accelerator}}
sessions = [open_session(Path(sys.argv[1]), config)]
thread = threading.Thread(target=sessions.clear)
thread.start()
thread.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


def test_a_signal_is_survived_after_another_thread_closed_the_session(graph):
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", SIGNAL_AFTER_A_SESSION, str(graph)]
    ended = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False, timeout=120
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, "handled"), ended.stderr


@pytest.mark.parametrize(
    ("package", "wanted", "extra"), [("openvino", "openvino", "openvino"), ("onnxruntime", None, "cpu")]
)
def test_a_missing_package_names_its_command(graph, monkeypatch, package, wanted, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"pip install 'cxr-serving\[{extra}\]'"):
        open_session(graph, accelerate("cpu", wanted) if wanted else {})


@pytest.mark.parametrize(
    "parameters", [{"precision": "fp8"}, {"precison": "bf16"}, {"quantization_group": "many"}]
)
def test_unusable_parameters_of_openvino_are_refused(graph, parameters):
    pytest.importorskip("openvino")
    with pytest.raises(ConfigError, match=r"precision|quantization_group"):
        open_session(graph, accelerate("cpu", "openvino", **parameters))


def test_int8_weights_are_multiplied_in_groups(tmp_path):
    """Where the processor multiplies int8, the other factor is rounded to 127 steps of its group's largest."""
    pytest.importorskip("openvino")
    numbers, helper = np.random.default_rng(3), onnx.helper
    weight = numbers.integers(-127, 128, (1, 128, 32)).astype(np.int8)
    scale = np.full((1, 1, 32), 0.01, np.float32)
    arrays = {"w": weight, "s": scale, "shape": np.array([128, 32])}
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", n])
        for name, n in (("x", 128), ("y", 32))
    )
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "s"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "shape"], ["weight"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ]
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    made = helper.make_graph(nodes, "int8", [x], [y], stored)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    values = numbers.standard_normal((4, 128), dtype=np.float32)
    expected = values @ (weight[0] * 0.01)
    session = open_session(path, accelerate("cpu", "openvino", quantization_group="128"))
    assert "int8 in groups of 128" in session.describe()
    (found,) = session.run(["y"], {"x": values})
    steps = np.abs(values).max(axis=1, keepdims=True) / 127
    bound = steps * np.abs(weight[0] * 0.01).sum(axis=0)  # were all off by a whole step, and to the same side
    assert (np.abs(found - expected) <= bound).all()
    (exact,) = open_session(path, accelerate("cpu", "openvino")).run(["y"], {"x": values})
    np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-4)


# Threads


def count(monkeypatch, config, cores=8) -> int:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    return runtime.count_threads(config)


def test_thread_counts_come_from_the_parameters(monkeypatch):
    config = set_parameters(intra_op_thread_count="3", inter_op_thread_count="2")
    assert runtime.build_options(config).intra_op_num_threads == 3
    assert runtime.build_options(config).inter_op_num_threads == 2
    assert count(monkeypatch, config) == 3
    assert count(monkeypatch, set_parameters(intra_op_thread_count="16")) == 16


def test_threads_by_default_are_the_cores_up_to_four(monkeypatch):
    assert count(monkeypatch, {}) == 4
    assert count(monkeypatch, set_parameters(intra_op_thread_count="0")) == 4
    assert count(monkeypatch, {}, cores=2) == 2


def test_instances_of_one_model_share_the_threads(monkeypatch):
    groups = [{"count": 1, "kind": "KIND_CPU"}, {"kind": "KIND_CPU"}]
    assert count(monkeypatch, {"instance_group": groups}) == 2
    assert count(monkeypatch, {"instance_group": [{"count": 7}]}) == 1
    assert count(monkeypatch, {"instance_group": []}) == 4


@pytest.mark.parametrize("text", ["-1", "many", "1.5", ""])
def test_unusable_thread_count_is_refused(text):
    with pytest.raises(ConfigError, match="intra_op_thread_count"):
        runtime.count_threads(set_parameters(intra_op_thread_count=text))


# Providers of ONNX Runtime


def pretend(monkeypatch, *providers: str) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*providers, "CPUExecutionProvider"])


def test_cpu_instance_runs_on_the_cpu():
    assert runtime.choose_providers({}, "CPU", "0") == [("CPUExecutionProvider", {})]
    assert runtime.choose_providers({}, "KIND_CPU", "0") == [("CPUExecutionProvider", {})]


@pytest.mark.parametrize("kind", ["GPU", "KIND_GPU"])
def test_gpu_instance_runs_on_its_device(monkeypatch, kind):
    pretend(monkeypatch, "CUDAExecutionProvider")
    providers = runtime.choose_providers({}, kind, "1")
    assert providers == [("CUDAExecutionProvider", {"device_id": "1"}), ("CPUExecutionProvider", {})]


def test_tensorrt_is_preferred_where_the_config_asks_for_it(monkeypatch):
    pretend(monkeypatch, "TensorrtExecutionProvider", "CUDAExecutionProvider")
    config = accelerate("gpu", "tensorrt", precision_mode="FP16", max_workspace_size_bytes="1073741824")
    first, *others = runtime.choose_providers(config, "GPU", "0")
    assert first == (
        "TensorrtExecutionProvider",
        {"trt_max_workspace_size": "1073741824", "trt_fp16_enable": "1", "device_id": "0"},
    )
    assert [name for name, _ in others] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert [name for name, _ in runtime.choose_providers(config, "CPU", "0")] == ["CPUExecutionProvider"]


def test_missing_provider_is_an_error_not_a_slow_answer(graph, monkeypatch):
    pretend(monkeypatch)
    with pytest.raises(ConfigError, match=r"needs CUDAExecutionProvider.*cxr-serving\[gpu\]"):
        open_session(graph, {}, kind="GPU")


@pytest.mark.parametrize(
    ("kind", "name"), [("CPU", "magic"), ("GPU", "magic"), ("CPU", "tensorrt"), ("GPU", "openvino")]
)
def test_an_accelerator_that_the_processor_does_not_have_is_refused(graph, kind, name):
    with pytest.raises(ConfigError, match=name):
        open_session(graph, accelerate(kind.lower(), name), kind=kind)
