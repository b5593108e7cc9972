"""A small sealed bundle with random weights, its graphs, and cases for the parity gate."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from contract.bundle import (
    CONFIG,
    LABELS_FILE,
    METRICS,
    MODEL_CARD,
    SPLIT,
    TOKENIZER,
    WEIGHTS,
    Bundle,
    ServedLabel,
    load_bundle,
    seal_bundle,
    write_json,
    write_labels,
)
from contract.labels import LABELS

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SENTENCES = (
    "The heart is enlarged. There is no pleural effusion or pneumothorax.",
    "Low lung volumes with bibasilar atelectasis. The aorta is tortuous and calcified.",
    "Lungs are clear. Heart size is normal.",
)


def write_bundle(directory: Path, *, seed: int) -> Path:
    """Write a sealed bundle of the demo preset with random weights."""
    from safetensors.torch import save_file

    from contract.text import train_tokenizer
    from training.config import PRESETS
    from training.model import CxrModel

    directory.mkdir(parents=True)
    torch.manual_seed(seed)
    model = CxrModel(PRESETS["demo"].model)
    with torch.no_grad():  # wider than at initialisation, so that the answers differ from case to case
        for weight in model.fusion.parameters():
            weight.mul_(1.5)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, directory / WEIGHTS)
    config = {"model": asdict(model.config), "sizes": model.sizes, "text_mode": "findings", "max_length": 256}
    write_json(directory / CONFIG, config)
    train_tokenizer(SENTENCES * 3, directory / TOKENIZER, vocab_size=300)
    thresholds = np.linspace(0.2, 0.6, len(LABELS))
    labels = (ServedLabel(x.key, x.name, round(float(t), 3)) for x, t in zip(LABELS, thresholds, strict=True))
    write_labels(directory, tuple(labels))
    assert (directory / LABELS_FILE).is_file()
    for name in (METRICS, SPLIT):
        write_json(directory / name, {})
    (directory / MODEL_CARD).write_text("Random weights, for tests.\n")
    seal_bundle(directory, {})
    return directory


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
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(write_bundle(tmp_path_factory.mktemp("bundles") / "first", seed=1))


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(write_bundle(tmp_path_factory.mktemp("bundles") / "second", seed=2))


@pytest.fixture(scope="session")
def graphs(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from export.graphs import export_graphs

    return export_graphs(bundle, tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="session")
def cases() -> list:
    return make_cases()
