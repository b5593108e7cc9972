"""A small sealed bundle with random weights, its graphs, and cases for the parity gate."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from contract.bundle import Bundle
from contract.labels import LABELS

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SENTENCES = (
    "The heart is enlarged. There is no pleural effusion or pneumothorax.",
    "Low lung volumes with bibasilar atelectasis. The aorta is tortuous and calcified.",
    "Lungs are clear. Heart size is normal.",
)


def make_cases() -> list:
    """Return three cases: image and report, image and report, report alone."""
    from export.parity import ParityCase

    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 112, 112), dtype=np.uint8)
    return [
        ParityCase(pixels[0], SENTENCES[0]),
        ParityCase(pixels[1], " ".join(SENTENCES * 2)),
        ParityCase(None, SENTENCES[2]),
    ]


@pytest.fixture(scope="session")
def make_bundle(
    write_bundle: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Bundle]:
    """Write a bundle of the size of the demo with random weights."""
    from training.config_file import load_config

    root = tmp_path_factory.mktemp("bundles")
    thresholds = [round(float(value), 3) for value in np.linspace(0.2, 0.6, len(LABELS))]

    def make(seed: int) -> Bundle:
        given = {"seed": seed, "texts": SENTENCES, "thresholds": thresholds}
        model = load_config("demo", {"model.lexical_buckets": 997}).model
        return write_bundle(root / str(seed), model, **given)

    return make


@pytest.fixture(scope="session")
def bundle(make_bundle: Callable[[int], Bundle]) -> Bundle:
    return make_bundle(1)


@pytest.fixture(scope="session")
def other_bundle(make_bundle: Callable[[int], Bundle]) -> Bundle:
    return make_bundle(2)


@pytest.fixture(scope="session")
def graphs(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from export.graphs import export_graphs

    return export_graphs(bundle, tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="session")
def cases() -> list:
    return make_cases()


@pytest.fixture(scope="session")
def optimized(bundle: Bundle, graphs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """All graphs with ONNX Runtime's fused operators, as the target gpu has them."""
    from export.optimize import optimize_graphs

    return optimize_graphs(bundle, graphs, tmp_path_factory.mktemp("gpu"), target="gpu")
