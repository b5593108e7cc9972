"""A version with an exchanged or rounded graph is stopped at the real server; the old one answers all the time."""

import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from rich.console import Console

from cli import export as command
from cli.export_retire import retire_version
from cli.export_served import verify_server, verify_servers
from cli.export_servers import Servers
from contract.errors import ParityError, UnavailableError
from contract.repository import CONFIG_NAME, MARKER, hash_version, read_published, render_marker, verify

grpc_client = pytest.importorskip("tritonclient.grpc")
onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.e2e

QUIET = Console(quiet=True)
PATCHES = 49  # tokens of one image of the smallest model


@pytest.fixture(scope="module")
def stack(models, tmp_path_factory):
    """A running stack of version 1."""
    pytest.importorskip("pytriton")
    from export.publish import publish
    from serving.stack import Ports, Stack

    root = tmp_path_factory.mktemp("gate")
    repository = publish(*models[0], root / "repository")
    with Stack(repository, root / "store", ports=Ports.free(), log_dir=root / "logs") as stack:
        stack.wait_ready(60)
        yield stack


class Traffic:
    """Asks an ensemble all the time; keeps (version, probabilities), and what failed."""

    def __init__(self, url: str) -> None:
        self.url, self.answers, self.failures = url, [], []
        self._stop = threading.Event()

    def _run(self) -> None:
        with grpc_client.InferenceServerClient(self.url) as client:
            while not self._stop.is_set():
                try:
                    self.answers.append(ask(client))
                except grpc_client.InferenceServerException as error:
                    self.failures.append(str(error))
                    return
                time.sleep(0.01)

    def __enter__(self) -> "Traffic":
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def ask(client) -> tuple[int, np.ndarray]:
    ids = np.arange(5, 37, dtype=np.int64)[None]
    tensors = []
    for name, array in (("input_ids", ids), ("attention_mask", np.ones_like(ids))):
        tensors.append(grpc_client.InferInput(name, array.shape, "INT64"))
        tensors[-1].set_data_from_numpy(array)
    answer = client.infer("predict_text_tensors", tensors, client_timeout=30)
    return int(answer.get_response().model_version), answer.as_numpy("probabilities")


def exchange(source, path, fingerprint: str, change=lambda weights: weights) -> None:
    """Put a graph in the place of another one, under its fingerprint."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            weights = change(onnx.numpy_helper.to_array(tensor))
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
    onnx.helper.set_model_props(model, {"fingerprint": fingerprint})
    onnx.save(model, path)


def round_weights(weights: np.ndarray) -> np.ndarray:
    """Round to the 8 bits of a bfloat16 fraction."""
    bits = np.ascontiguousarray(weights).view(np.uint32)
    return ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32).reshape(weights.shape)


def state_hashes(repository) -> None:
    """Make the marker agree with the files of the newest version, as whoever exchanges a graph well would."""
    state = read_published(repository)
    entry = {**state.versions[state.newest], "files": hash_version(repository, state.newest)}
    changed = replace(state, versions={**state.versions, state.newest: entry})
    configs = {path.parent.name: path.read_text() for path in repository.glob(f"*/{CONFIG_NAME}")}
    (repository / MARKER).write_text(render_marker(changed, configs))
    verify(repository)


def publish_to_wait(stack, model, *, exchanged=None):
    """Publish a version that waits, perhaps with another text encoder; return its number and its check."""
    from export.gates.parity import ParityCase
    from export.gates.server_precision import check_server, store_answers
    from export.profiles import load_profile
    from export.publish import publish

    (bundle, graphs), profile = model, load_profile("fp32")
    stored = store_answers(bundle, graphs, profile)
    publish(bundle, graphs, stack.repository, standby=True, stored=stored)
    version = read_published(stack.repository).newest
    if exchanged:
        graph, change = exchanged
        change(stack.repository / graph / str(version) / "model.onnx")
        state_hashes(stack.repository)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 1, 56, 56), dtype=np.uint8)
    cases = [ParityCase(image, "Lungs are clear.") for image in pixels]
    return version, partial(check_server, bundle, graphs, profile, cases, reference=graphs, stored=stored)


def find_servers(*stacks) -> Servers:
    keys = [stack.admin_key_path for stack in stacks]
    return Servers([stack.triton_url for stack in stacks], stacks[0].repository, keys)


def take(stack, version, check, *others):
    publication = command.Publication(servers=find_servers(stack, *others))
    return command.take_version(QUIET, publication, stack.repository, version, check)


def make_wrong(models, how: str):
    """Return a graph of the second model, and what exchanges it, perhaps for that of the first."""
    if how == "first view":
        return "fusion_study", drop_views
    (bundle, graphs), other = models[1], models[0][1]
    source, change = (other, lambda x: x) if how == "exchanged" else (graphs, round_weights)
    return "text_encoder", lambda path: exchange(source["text_encoder"], path, bundle.fingerprint, change)


def drop_views(path) -> None:
    """Let a fusion graph read only the first view of each study. With one view it answers as before."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["first_view" if name == "image_tokens" else name for name in node.input]
    for name, value in (("_begin", 0), ("_end", PATCHES), ("_axis", 1)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    model.graph.node.insert(
        0, onnx.helper.make_node("Slice", ["image_tokens", "_begin", "_end", "_axis"], ["first_view"])
    )
    onnx.save(model, path)


# tests/export/gates/test_server_gate.py holds the gate to exchanged weights without a server.
@pytest.mark.parametrize("how", [pytest.param("exchanged", marks=pytest.mark.slow), "rounded", "first view"])
def test_a_version_with_another_graph_is_stopped_at_the_server(how, models, stack):
    with grpc_client.InferenceServerClient(stack.triton_url) as client:
        version, expected = ask(client)
        assert version == 1
        with Traffic(stack.triton_url) as traffic:
            number, check = publish_to_wait(stack, models[1], exchanged=make_wrong(models, how))
            with pytest.raises(
                ParityError,
                match=f"Version {number} does not answer through Triton.*as its graphs did.*undone",
            ):
                take(stack, number, check)
        assert ask(client)[0] == 1
        with pytest.raises(grpc_client.InferenceServerException):  # it is unloaded
            client.get_model_config("text_encoder", str(number))
    assert traffic.failures == []
    assert len(traffic.answers) > 20
    assert {found for found, _ in traffic.answers} == {1}
    assert max(np.abs(values - expected).max() for _, values in traffic.answers) < 1e-4
    assert list(verify(stack.repository).versions) == [1]


def test_a_good_version_passes_can_be_verified_and_lets_the_old_one_go(models, stack):
    with Traffic(stack.triton_url) as traffic:
        number, check = publish_to_wait(stack, models[1])
        taken = take(stack, number, check)
        time.sleep(0.2)
    assert traffic.failures == []
    assert {version for version, _ in traffic.answers} == {1, number}
    assert taken[0].check.passed
    gate = verify(stack.repository).versions[number]["gates"]["server"]
    assert gate["runtime"].startswith("Triton 2.")
    assert gate["runtime"].endswith("embedded onnxruntime")
    assert (gate["provider"], gate["precision"], gate["cases"]) == ("CPU", "fp32", 4)
    verified = verify_server(QUIET, stack.triton_url)
    assert (verified.version, verified.agreement.passed) == (number, True)
    retired = retire_version(QUIET, stack.repository, servers=find_servers(stack))
    assert (retired.version, list(retired.published.versions)) == (1, [number])
    with grpc_client.InferenceServerClient(stack.triton_url) as client:
        assert ask(client)[0] == number
        for name in ("text_encoder", "preprocess_text"):
            with pytest.raises(grpc_client.InferenceServerException):
                client.get_model_config(name, "1")
        deadline = time.monotonic() + 60  # python models take seconds to end; it is not ready before
        while not client.is_server_ready():
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.mark.slow
def test_two_servers_of_one_folder_change_together(models, tmp_path):
    from export.publish import publish
    from serving.stack import Ports, Stack

    def start(name):
        return Stack(repository, tmp_path / name, ports=Ports.free(), log_dir=tmp_path / f"{name}-logs")

    def find_versions():
        found = []
        for stack in (first, second):
            with grpc_client.InferenceServerClient(stack.triton_url) as client:
                found.append(ask(client)[0])
        return found

    repository = publish(*models[0], tmp_path / "repository")
    with start("a") as first, start("b") as second:
        first.wait_ready(90)
        second.wait_ready(90)
        number, check = publish_to_wait(first, models[1], exchanged=make_wrong(models, "rounded"))
        with pytest.raises(ParityError, match="undone at all servers"):
            take(first, number, check, second)
        assert find_versions() == [1, 1]
        number, check = publish_to_wait(first, models[1])
        assert [state.version for state in take(first, number, check, second)] == [number, number]
        assert find_versions() == [number, number]
        assert verify_servers(QUIET, [first.triton_url, second.triton_url]).passed
        command.roll_back(QUIET, repository, servers=find_servers(first, second))
        assert find_versions() == [1, 1]
        servers = find_servers(first, second)
        second.stop()
        with pytest.raises(UnavailableError, match="No server was changed"):
            command.roll_back(QUIET, repository, to=number, servers=servers)
        assert verify(repository).version == 1


def test_what_was_exchanged_without_a_gate_is_found_by_verify(models, stack):
    """Somebody loads it by hand."""
    from export.versions import promote
    from serving.reload import reload_models
    from serving.triton import read_admin_key

    number, _ = publish_to_wait(stack, models[1], exchanged=make_wrong(models, "rounded"))
    promote(stack.repository, number)
    reload_models(stack.triton_url, stack.repository, read_admin_key(stack.admin_key_path))
    verified = verify_server(QUIET, stack.triton_url)
    assert verified.version == number
    assert [row.kind for row in verified.agreement.kinds if row.list_failures(verified.agreement.limits)] == [
        "study",
        "text",
    ]
