"""A small sealed bundle with random weights, its graphs, and cases for the parity gate."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from contract.bundle import Bundle, load_bundle
from contract.labels import LABELS
from contract.tensors import GRAPHS

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
    from export.gates.parity import ParityCase

    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 112, 112), dtype=np.uint8)
    return [
        ParityCase(pixels[0], SENTENCES[0]),
        ParityCase(pixels[1], " ".join(SENTENCES * 2)),
        ParityCase(None, SENTENCES[2]),
    ]


@pytest.fixture(scope="session")
def make_bundle(
    write_bundle: Callable[..., Bundle], make_once: Callable[..., Path]
) -> Callable[[int], Bundle]:
    """A function: seed -> a bundle of the size of the demo with random weights, made once for all tests."""
    from training.config.toml_file import load_config

    thresholds = [round(float(value), 3) for value in np.linspace(0.2, 0.6, len(LABELS))]

    def make(seed: int) -> Bundle:
        def fill(place: Path) -> None:
            given = {"seed": seed, "texts": SENTENCES, "thresholds": thresholds}
            model = load_config("demo", {"model.lexical_buckets": 997}).model
            write_bundle(place / "bundle", model, **given)

        return load_bundle(make_once(f"demo-bundle-{seed}", fill) / "bundle")

    return make


@pytest.fixture(scope="session")
def bundle(make_bundle: Callable[[int], Bundle]) -> Bundle:
    return make_bundle(1)


@pytest.fixture(scope="session")
def other_bundle(make_bundle: Callable[[int], Bundle]) -> Bundle:
    return make_bundle(2)


@pytest.fixture(scope="session")
def make_graphs(make_once: Callable[..., Path]) -> Callable[[Bundle], dict[str, Path]]:
    """A function: bundle -> its graphs, made once for all tests."""
    from export.graphs.from_torch import export_graphs

    def make(bundle: Bundle) -> dict[str, Path]:
        place = make_once(f"graphs-{bundle.fingerprint}", lambda place: export_graphs(bundle, place))
        return {name: place / f"{name}.onnx" for name in GRAPHS}

    return make


@pytest.fixture(scope="session")
def graphs(bundle: Bundle, make_graphs: Callable[[Bundle], dict[str, Path]]) -> dict[str, Path]:
    return make_graphs(bundle)


@pytest.fixture(scope="session")
def cases() -> list:
    return make_cases()


@pytest.fixture(scope="session")
def optimized(bundle: Bundle, graphs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """All graphs with ONNX Runtime's fused operators, as the target gpu has them."""
    from export.graphs.optimize import optimize_graphs

    return optimize_graphs(bundle, graphs, tmp_path_factory.mktemp("gpu"), target="gpu")
