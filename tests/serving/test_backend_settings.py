"""The python-based onnxruntime backend as Triton's stub calls it, with fakes in the place of Triton's objects."""

import importlib.util
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from contract.errors import ServerError, TensorError
from serving.triton import find_triton

pytest.importorskip("onnxruntime")
MODEL = Path(__file__).parents[2] / "serving" / "backends" / "onnxruntime" / "model.py"


@dataclass
class Tensor:
    label: str
    array: np.ndarray

    def name(self):
        return self.label

    def as_numpy(self):
        return self.array


@dataclass
class Request:
    inputs: dict
    outputs: list = field(default_factory=list)

    def requested_output_names(self):
        return self.outputs


@dataclass
class Response:
    output_tensors: list = field(default_factory=list)
    error: object = None

    def values(self):
        return {tensor.name(): tensor.as_numpy().tolist() for tensor in self.output_tensors}


class TritonError:
    INVALID_ARG, INTERNAL = "INVALID_ARG", "INTERNAL"

    def __init__(self, message, code):
        self.message, self.code = message, code


class TritonModelException(Exception):
    pass


class Session:
    """Doubles what it reads; fails where an input holds a number that `failures` names."""

    def __init__(self, failures=None):
        self.failures = failures or {}
        self.runs = []

    def run(self, names, feeds):
        ids = feeds["ids"]
        self.runs.append((list(names), ids.copy(), ids))
        for number, error in self.failures.items():
            if number in ids:
                raise error
        return [{"twice": 2 * ids, "copy": ids.copy()}[name] for name in names]


@pytest.fixture(scope="module")
def backend():
    """The module, with the wheel's own triton_python_backend_utils and fakes for what only the stub has."""
    pytest.importorskip("pytriton")
    name = "triton_python_backend_utils"
    utils = load_module(name, find_triton().python_backend / f"{name}.py")
    utils.Tensor, utils.InferenceResponse, utils.TritonError = Tensor, Response, TritonError
    utils.TritonModelException = TritonModelException
    utils.Logger = SimpleNamespace(log_info=lambda _: None)
    utils.get_input_tensor_by_name = lambda request, name: Tensor(name, request.inputs[name])
    yield load_module("onnxruntime_backend", MODEL)
    del sys.modules[name], sys.modules["onnxruntime_backend"]


def load_module(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def load(backend, small_repository, monkeypatch):
    """Return a function that makes a model on a session, or on the real graph where none is given."""

    def make(session=None, repository=small_repository, **changes):
        config = {
            "max_batch_size": 8,
            "input": [{"name": "ids"}],
            "output": [{"name": "twice"}, {"name": "copy"}],
            "parameters": {"fingerprint": {"string_value": "f" * 64}},
            **changes,
        }
        if session is not None:
            session.metadata, session.describe = {"fingerprint": "f" * 64}, lambda: "a fake"
            monkeypatch.setattr(backend, "open_session", lambda *_, **__: session)
        model = backend.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_name": "graph",
                "model_repository": str(repository / "graph"),
                "model_version": "1",
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
            }
        )
        return model

    return make


def ask(*numbers, length=1, outputs=()):
    return Request({"ids": np.array([[x] * length for x in numbers], dtype=np.int64)}, list(outputs))


def test_requests_of_equal_shape_run_as_one_batch_each_in_its_place(load):
    session = Session()
    answers = load(session).execute([ask(1, 2), ask(3, length=2), ask(4), ask(5, length=2)])
    assert [answer.values()["twice"] for answer in answers] == [[[2], [4]], [[6, 6]], [[8]], [[10, 10]]]
    assert [ids.tolist() for _, ids, _ in session.runs] == [[[1], [2], [4]], [[3, 3], [5, 5]]]


def test_a_request_alone_is_read_where_it_lies(load):
    session, request = Session(), ask(7)
    load(session).execute([request])
    assert np.shares_memory(session.runs[0][2], request.inputs["ids"])


def test_batches_are_joined_in_memory_that_is_taken_again(load):
    session = Session()
    model = load(session)
    first = model.execute([ask(1, 2, 3), ask(4)])
    model.execute([ask(8), ask(9)])
    assert np.shares_memory(session.runs[0][2], session.runs[1][2])
    assert session.runs[1][1].tolist() == [[8], [9]]
    model.execute([ask(*range(20)), ask(1)])  # larger than before
    assert session.runs[2][1][:, 0].tolist() == [*range(20), 1]
    assert first[0].values()["copy"] == [[1], [2], [3]]  # answers do not lie in that memory


def test_only_outputs_that_somebody_wants_are_computed(load):
    session = Session()
    answers = load(session).execute([ask(1, outputs=["copy"]), ask(2, outputs=["copy"])])
    assert session.runs[0][0] == ["copy"]
    assert [list(answer.values()) for answer in answers] == [["copy"], ["copy"]]
    answers = load(session).execute([ask(1, outputs=["copy"]), ask(2, outputs=["twice"])])
    assert [list(answer.values()) for answer in answers] == [["copy"], ["twice"]]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (TensorError("ids do not fit"), "INVALID_ARG", "graph: ids do not fit"),
        (ServerError("the runtime failed"), "INTERNAL", "graph: the runtime failed"),
        (MemoryError("SECRET of a report"), "INTERNAL", "graph: unexpected MemoryError"),
    ],
)
def test_a_request_that_fails_fails_alone(load, error, code, message):
    answers = load(Session({13: error})).execute([ask(1), ask(13), ask(2)])
    assert [answer.error is None for answer in answers] == [True, False, True]
    assert (answers[1].error.code, answers[1].error.message) == (code, message)
    assert answers[2].values()["twice"] == [[4]]


def test_without_batching_every_request_runs_alone(load):
    session = Session()
    load(session, max_batch_size=0).execute([ask(1), ask(2)])
    assert [ids.tolist() for _, ids, _ in session.runs] == [[[1]], [[2]]]


def test_real_graph(load):
    model = load(output=[{"name": "values"}])
    assert model.execute([ask(3), ask(4)])[1].values() == {"values": [[16.0]]}
    model.finalize()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"fingerprint": {"string_value": "b" * 64}}}, r"graph: .*ffffffffffff.*bbbbbbbbbbbb"),
        ({"default_model_filename": "other.onnx"}, r"graph: There is no graph .*other\.onnx"),
        ({"parameters": {"intra_op_thread_count": {"string_value": "all"}}}, "graph: .*whole number"),
    ],
)
def test_a_model_that_cannot_be_served_says_why(load, changes, message):
    with pytest.raises(TritonModelException, match=message):
        load(**changes)
