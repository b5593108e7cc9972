"""A second model is published, loaded and taken back under traffic: no request fails, no answer mixes two models."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest

from contract.tensors import MODELS

grpc_client = pytest.importorskip("tritonclient.grpc")
pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.e2e

ENSEMBLES = ("predict_text_tensors", "predict_study_tensors")
THREADS = 2  # for each ensemble
# A row computes a little differently in a batch of another size; the two models differ by far more.
SAME, APART = 1e-4, 1e-2


@dataclass
class Traffic:
    """Asks until it is told to stop; keeps what was answered and what failed."""

    url: str
    inputs: dict
    stop: threading.Event = field(default_factory=threading.Event)
    answers: list = field(default_factory=list)  # (ensemble, version, probabilities)
    failures: list = field(default_factory=list)

    def run(self, ensemble: str) -> None:
        with grpc_client.InferenceServerClient(self.url) as client:
            while not self.stop.is_set():
                try:
                    version, values = ask(client, ensemble, self.inputs)
                except grpc_client.InferenceServerException as error:
                    self.failures.append(str(error))
                    return
                self.answers.append((ensemble, version, values))

    def wait_for(self, count: int, timeout_s: float = 30.0) -> None:
        """Wait until so many more answers came."""
        goal, deadline = len(self.answers) + count, time.monotonic() + timeout_s
        while len(self.answers) < goal and not self.failures:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def __enter__(self) -> "Traffic":
        names = [name for name in ENSEMBLES for _ in range(THREADS)]
        self._threads = [threading.Thread(target=self.run, args=(name,)) for name in names]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()


def ask(client, ensemble: str, inputs: dict) -> tuple[int, np.ndarray]:
    tensors = []
    for entry in MODELS[ensemble].inputs:
        tensor = grpc_client.InferInput(entry.name, inputs[entry.name].shape, entry.dtype)
        tensor.set_data_from_numpy(inputs[entry.name])
        tensors.append(tensor)
    answer = client.infer(ensemble, tensors, client_timeout=30)
    values = np.concatenate([answer.as_numpy(name)[0] for name in ("probabilities", "embedding")])
    return int(answer.get_response().model_version), values


@pytest.fixture(scope="module")
def inputs(small_config):
    generator = np.random.default_rng(0)
    size = small_config.image_size
    ids = generator.integers(5, 60, (1, 32), dtype=np.int64)
    return {
        "pixels": generator.integers(0, 256, (1, 1, size, size), dtype=np.uint8),
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
    }


def test_no_request_fails_and_no_answer_is_mixed(models, inputs, tmp_path):
    pytest.importorskip("pytriton")
    from export.publish import publish
    from export.versions import rollback
    from serving.reload import reload_models
    from serving.stack import Ports, Stack
    from serving.triton import read_admin_key

    repository = publish(*models[0], tmp_path / "repository")
    with Stack(repository, tmp_path / "store", ports=Ports.free(), log_dir=tmp_path / "logs") as stack:
        stack.wait_ready(60)
        key = read_admin_key(stack.admin_key_path)
        with Traffic(stack.triton_url, inputs) as traffic:
            traffic.wait_for(40)
            publish(*models[1], repository)
            traffic.wait_for(10)
            reload_models(stack.triton_url, repository, key)
            traffic.wait_for(40)
            rollback(repository)
            reload_models(stack.triton_url, repository, key)
            traffic.wait_for(40)
            rollback(repository, to=2)
            reload_models(stack.triton_url, repository, key)
            traffic.wait_for(40)
        with grpc_client.InferenceServerClient(stack.triton_url) as client:
            expected = {(name, 2): ask(client, name, inputs)[1] for name in ENSEMBLES}
            rollback(repository)
            reload_models(stack.triton_url, repository, key)
            expected |= {(name, 1): ask(client, name, inputs)[1] for name in ENSEMBLES}
    assert traffic.failures == []
    for name in ENSEMBLES:
        assert np.abs(expected[name, 1] - expected[name, 2]).max() > APART
    for name, version, values in traffic.answers:
        assert np.abs(values - expected[name, version]).max() < SAME, (name, version)
    seen = Counter((name, version) for name, version, _ in traffic.answers)
    assert set(seen) == {(name, version) for name in ENSEMBLES for version in (1, 2)}
