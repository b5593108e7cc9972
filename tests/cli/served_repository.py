"""A stand-in for Triton at the client's transport: it loads a repository from the disk and answers by a fixed rule."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from contract.labels import LABELS
from contract.tensors import MODELS, NUMPY_DTYPES
from contract.training_data import WAYS
from export.gates.requests import Request
from export.gates.server import StoredAnswers, collect_answers, compare_answers, run_request
from export.gates.server_precision import draw_requests_for
from export.profiles import load_profile

SIZES = {"N": 49, "C": 32, "D": 16, "K": len(LABELS)}
FP32 = load_profile("fp32")


class Triton:
    """Loads what the repository says as Triton does in explicit mode, and answers by a sum of the inputs."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.loaded: dict[str, object] = {}
        self.calls: list[tuple] = []
        self.moved: dict[int, float] = {}  # version -> by how much its probabilities are off
        self.spoil = lambda arrays: arrays
        self.codes: dict[str, str] = {}  # call -> status code with which it fails
        self.on_infer = lambda: None
        self.on_load = lambda name: None
        for name in MODELS:
            self.load_model(name, {}, 1)
        self.calls.clear()

    def __call__(self, url, channel_args):
        return self

    def register_plugin(self, plugin):
        pass

    def close(self):
        pass

    def _fail(self, call):
        if code := self.codes.get(call):
            raise InferenceServerException("it says", status=f"StatusCode.{code}")

    def is_server_live(self, client_timeout):
        self._fail("live")
        return True

    def get_model_repository_index(self, headers, client_timeout):
        if headers["triton-grpc-protocol-cxr-admin-key"] != "key":
            raise InferenceServerException("restricted", status="StatusCode.UNAVAILABLE")

    def get_server_metadata(self, client_timeout):
        return SimpleNamespace(name="triton", version="2.70.0")

    def get_model_config(self, model, version="", client_timeout=None):
        return SimpleNamespace(config=self.loaded[model])

    def load_model(self, name, headers, client_timeout):
        self.calls.append(("load", name))
        self.on_load(name)
        self._fail(f"load {name}")
        text = (self.repository / name / "config.pbtxt").read_text()
        self.loaded[name] = text_format.Parse(text, model_config_pb2.ModelConfig())

    def infer(self, model, inputs, *, model_version, client_timeout):
        self.calls.append(("infer", model, int(model_version)))
        self.on_infer()
        self._fail("infer")
        assert int(model_version) in self.loaded[model].version_policy.specific.versions
        given = {
            x.name(): np.frombuffer(x._get_content(), NUMPY_DTYPES[x.datatype()]).reshape(x.shape())
            for x in inputs
        }
        ensemble = model.startswith("predict_")
        kind = model.split("_")[1]
        arrays = dict(run_request(run_graph, Request(kind, given)) if ensemble else run_graph(model, given))
        if "probabilities" in arrays:
            arrays["probabilities"] = arrays["probabilities"] + np.float32(
                self.moved.get(int(model_version), 0)
            )
        return SimpleNamespace(as_numpy=self.spoil(arrays).get)

    def save(self, path: Path) -> None:
        """Keep what is loaded, for a test whose command ends in another process."""
        path.write_text(json.dumps({name: text_format.MessageToString(x) for name, x in self.loaded.items()}))

    def restore(self, path: Path) -> None:
        """Load what `save` kept."""
        for name, text in json.loads(path.read_text()).items():
            self.loaded[name] = text_format.Parse(text, model_config_pb2.ModelConfig())

    @property
    def versions(self) -> set[int]:
        """The versions that the ensembles answer with."""
        return {
            next(iter(self.loaded[name].version_policy.specific.versions))
            for name in MODELS
            if MODELS[name].backend == "ensemble"
        }


def run_graph(name: str, inputs: dict) -> dict:
    """Stands for a graph: numbers that depend on the inputs alone."""
    seed = sum(
        int(np.ascontiguousarray(array).view(np.uint8).sum(dtype=np.int64)) for array in inputs.values()
    )
    draw = np.random.RandomState(seed % 2**31)
    batch = len(next(iter(inputs.values())))
    sizes = {
        **SIZES,
        "V": 1,
        "I": SIZES["N"],
        "L": next((array.shape[1] for key, array in inputs.items() if key == "input_ids"), 0),
    }
    return {
        tensor.name: draw.rand(batch, *(sizes.get(size, size) for size in tensor.shape)).astype(np.float32)
        for tensor in MODELS[name].outputs
    }


def make_stored(bundle) -> StoredAnswers:
    """What the graphs of version 2 answer where nothing is wrong."""
    answers = collect_answers(partial(run_request, run_graph), draw_requests_for(bundle))
    return StoredAnswers("fp32", FP32.limits, answers)


def make_check(models, repository, version=2):
    """The gate as `export.gates.server_precision.check_server` makes it, without its real cases."""
    bundle = models[1][0]

    def check(served):
        configs = repository / "{}" / str(version) / "config.pbtxt"
        given = {}
        for kind in WAYS:
            text = Path(str(configs).format(f"predict_{kind}_tensors")).read_text()
            parameters = text_format.Parse(text, model_config_pb2.ModelConfig()).parameters
            given[kind] = parameters["gate"].string_value
        found = collect_answers(
            partial(run_request, served.run, layout=served.layout), draw_requests_for(bundle)
        )
        report = compare_answers(
            StoredAnswers.read(given, source="x"), found, bundle.decisions, served.runtime, bundle.label_part
        )
        return SimpleNamespace(
            passed=report.passed,
            failures=report.failures,
            to_markdown=report.to_markdown,
            to_dict=report.to_dict,
            stored=report,
            precision=SimpleNamespace(cases=3),
        )

    return check
