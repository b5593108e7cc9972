"""The python-based onnxruntime backend in the real Triton, called through gRPC as clients do."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.stack import Ports, Stack

grpc_client = pytest.importorskip("tritonclient.grpc")
pytestmark = pytest.mark.e2e


ACCELERATOR = """
optimization { execution_accelerators { cpu_execution_accelerator [ {
  name: "openvino" parameters { key: "precision" value: "fp32" } } ] } }
"""


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def client(request, small_repository, tmp_path_factory, mark_published):
    pytest.importorskip("pytriton")
    place = tmp_path_factory.mktemp("backend")
    repository = shutil.copytree(small_repository, place / "repository")
    if request.param == "openvino":
        pytest.importorskip("openvino")
        config = repository / "graph" / "config.pbtxt"
        config.write_text(config.read_text() + ACCELERATOR)
        mark_published(repository, "f" * 64)
    with Stack(repository, place / "store", ports=Ports.free(), log_dir=place / "logs") as stack:
        stack.wait_ready(60)
        client = grpc_client.InferenceServerClient(stack.triton_url)
        yield client
        client.close()
    runtime = "OpenVINO 20" if request.param == "openvino" else "ONNX Runtime 1."
    assert f"graph: {runtime}" in (place / "logs" / "triton.log").read_text()


def infer(client, model, name, array, dtype, outputs=None):
    tensor = grpc_client.InferInput(name, array.shape, dtype)
    tensor.set_data_from_numpy(array)
    wanted = outputs and [grpc_client.InferRequestedOutput(output) for output in outputs]
    answer = client.infer(model, [tensor], outputs=wanted)
    return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}


def infer_text(client, *texts):
    array = np.array([[text] for text in texts], dtype=np.object_)
    return infer(client, "predict", "text", array, "BYTES")["values"]


def catch(call, *arguments):
    with pytest.raises(grpc_client.InferenceServerException) as info:
        call(*arguments)
    return info.value.status(), info.value.message()


def test_ensemble_answers(client):
    assert infer_text(client, b"3", b"4").tolist() == [[1, 9], [1, 16]]


def test_only_requested_outputs_come_back(client):
    ids = np.array([[7]], dtype=np.int64)
    assert set(infer(client, "graph", "ids", ids, "INT64")) == {"values", "copy"}
    assert set(infer(client, "graph", "ids", ids, "INT64", ["copy"])) == {"copy"}


def test_invalid_argument_of_a_step_passes_the_ensemble(client):
    assert catch(infer_text, client, b"bad") == (
        "StatusCode.INVALID_ARGUMENT",
        "in ensemble 'predict', step: bad text",
    )


def test_graph_error_names_the_model(client):
    status, message = catch(infer_text, client, b"77")
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert message.startswith("in ensemble 'predict', graph: ")
    assert "idx=77" in message


def test_a_failing_request_leaves_its_neighbours_alone(client):
    def call(number):
        text = b"bad" if number % 4 == 0 else str(number).encode()
        try:
            return float(infer_text(client, text)[0, 1])
        except grpc_client.InferenceServerException as error:
            return error.status()

    numbers = list(range(16))
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(call, numbers))
    for number, answer in zip(numbers, answers, strict=True):
        expected = number**2 if number % 4 and number < 10 else "StatusCode.INVALID_ARGUMENT"
        assert answer == expected


def test_requests_are_batched_by_shape(client):
    def call(length):
        ids = np.full((2, length), length, dtype=np.int64)
        return infer(client, "graph", "ids", ids, "INT64")["values"]

    def count_executions():
        return client.get_inference_statistics("graph").model_stats[0].execution_count

    lengths = [1, 2, 3] * 6
    for _ in range(20):  # whether requests wait together depends on how busy the machine is
        before = count_executions()
        with ThreadPoolExecutor(len(lengths)) as pool:
            answers = list(pool.map(call, lengths))
        for length, answer in zip(lengths, answers, strict=True):
            assert answer.tolist() == [[length**2] * length] * 2
        if count_executions() - before < len(lengths):
            return
    pytest.fail("no two requests ever shared a batch")


def test_loading_models_from_outside_is_off(client):
    status, message = catch(client.unload_model, "graph")
    assert status != "StatusCode.OK"
    assert "restricted" in message
    assert infer_text(client, b"3").tolist() == [[1, 9]]  # it is still there
