"""A small published repository that the real servers run: a python step, a graph, an ensemble of both; and relays.

Modules beside the tests are imported by name.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

FINGERPRINT = "f" * 64
REPOSITORY = Path(__file__).parents[2] / "model_repository"

STEP = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
        if b"bad" in list(texts):
            error = pb_utils.TritonError("step: bad text", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        ids = np.array([[len(text), int(text)] for text in texts], dtype=np.int64)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("ids", ids)])
"""

STEP_CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "text" data_type: TYPE_STRING dims: [ 1 ] }
output { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] }
instance_group { kind: KIND_CPU }
dynamic_batching { max_queue_delay_microseconds: 20000 }
"""

GRAPH_CONFIG = """
backend: "onnxruntime"
max_batch_size: 8
input { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] }
output { name: "values" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "copy" data_type: TYPE_INT64 dims: [ -1 ] }
instance_group { kind: KIND_CPU }
dynamic_batching { max_queue_delay_microseconds: 50000 }
parameters { key: "fingerprint" value { string_value: "%s" } }
"""

ENSEMBLE_CONFIG = """
platform: "ensemble"
max_batch_size: 8
input { name: "text" data_type: TYPE_STRING dims: [ 1 ] }
output { name: "values" data_type: TYPE_FP32 dims: [ -1 ] }
ensemble_scheduling {
  step { model_name: "step" model_version: -1
         input_map { key: "text" value: "text" } output_map { key: "ids" value: "the_ids" } }
  step { model_name: "graph" model_version: -1
         input_map { key: "ids" value: "the_ids" } output_map { key: "values" value: "values" } }
}
parameters { key: "fingerprint" value { string_value: "%s" } }
"""


def write_graph(path: Path, fingerprint: str = FINGERPRINT) -> None:
    """Write a graph: values = table[ids] with a table of 10 squares, copy = ids; an id beyond 9 fails."""
    onnx = pytest.importorskip("onnx")
    table = onnx.numpy_helper.from_array(np.arange(10, dtype=np.float32) ** 2, "table")
    ids, values, copy = (
        onnx.helper.make_tensor_value_info(name, kind, ["B", "L"])
        for name, kind in (
            ("ids", onnx.TensorProto.INT64),
            ("values", onnx.TensorProto.FLOAT),
            ("copy", onnx.TensorProto.INT64),
        )
    )
    nodes = [
        onnx.helper.make_node("Gather", ["table", "ids"], ["values"]),
        onnx.helper.make_node("Identity", ["ids"], ["copy"]),
    ]
    graph = onnx.helper.make_graph(nodes, "squares", [ids], [values, copy], [table])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, {"fingerprint": fingerprint})
    path.parent.mkdir(parents=True)
    onnx.save(model, str(path))


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory: pytest.TempPathFactory, mark_published) -> Path:
    """A published repository with the models step, graph and predict."""
    root = tmp_path_factory.mktemp("repository")
    write_graph(root / "graph" / "1" / "model.onnx")
    (root / "graph" / "config.pbtxt").write_text(GRAPH_CONFIG % FINGERPRINT)
    (root / "step" / "1").mkdir(parents=True)
    (root / "step" / "1" / "model.py").write_text(STEP)
    (root / "step" / "config.pbtxt").write_text(STEP_CONFIG)
    (root / "predict" / "1").mkdir(parents=True)
    (root / "predict" / "config.pbtxt").write_text(ENSEMBLE_CONFIG % FINGERPRINT)
    mark_published(root, FINGERPRINT)
    return root


@pytest.fixture
def own_repository(small_repository: Path, tmp_path: Path) -> Path:
    """A copy of the small repository that a test may break."""
    return Path(shutil.copytree(small_repository, tmp_path / "repository"))


@pytest.fixture
def triton(tmp_path: Path):
    """A stand-in for Triton on a socket file."""
    pytest.importorskip("grpc")
    from relay_thread import Triton, start_triton

    handler = Triton()
    server = start_triton(handler, f"unix:{tmp_path}/triton")
    yield handler
    handler.go_on.set()
    server.stop(0).wait()


@pytest.fixture
def make_relay(triton, tmp_path: Path):
    """A function that starts a relay in front of `triton`, with a protection and limits."""
    from relay_thread import Running

    made: list[Running] = []

    def make(*protection, **room: int) -> Running:
        made.append(Running(f"unix:{tmp_path}/triton", *protection, **room))
        return made[-1]

    yield make
    triton.go_on.set()
    for relay in made:
        relay.close()
