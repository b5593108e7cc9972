"""Two small bundles that can be published one after the other."""

import sys
from pathlib import Path

import pytest

from contract.labels import LABELS
from contract.tensors import GRAPHS

sys.path.insert(0, str(Path(__file__).parent))  # for served_repository


@pytest.fixture(scope="session")
def models(write_bundle, small_config, tmp_path_factory):
    """Two bundles of one architecture; their graphs hold a fingerprint and nothing else."""
    onnx = pytest.importorskip("onnx")
    root = tmp_path_factory.mktemp("models")
    made = []
    for seed in (1, 2):
        bundle = write_bundle(
            root / str(seed), small_config, seed=seed, texts=("clear",), thresholds=[0.4] * len(LABELS)
        )
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        graph = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [value]))
        onnx.helper.set_model_props(graph, {"fingerprint": bundle.fingerprint})
        onnx.save(graph, root / f"{seed}.onnx")
        made.append((bundle, dict.fromkeys(GRAPHS, root / f"{seed}.onnx")))
    return made
