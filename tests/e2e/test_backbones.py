"""Image backbones other than Swin, from a studies table to an answer: trained, exported, served, explained.

They are tiny, with random weights, and each reads images of its own size: a ViT with class and register tokens as
DINOv2 has them, a ConvNeXt and a Swin V2.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from cli.cases import make_parity_cases
from client import CxrClient
from client.explain import explain
from client.explain.overlay import render_map
from contract.bundle import load_bundle
from contract.errors import ConfigError
from contract.steps import pack
from export.pipeline import export
from serving.inprocess import InProcess
from serving.stack import Ports, Stack
from training.config.toml_file import change_config, load_config
from training.data.openi import build_table, write_table
from training.data.rows import get_image, get_report, read_rows
from training.phantom import draw_dataset
from training.start import read_start_config
from training.train import train

pytestmark = pytest.mark.slow

BACKBONES = {  # name, side in pixels, tokens a side, arguments
    "vit": (
        "vit_base_patch14_reg4_dinov2",
        *(70, 5, {"embed_dim": 32, "depth": 2, "num_heads": 2, "reg_tokens": 2}),
    ),
    "convnext": ("convnext_atto", 96, 3, {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
    "swinv2": (
        "swinv2_tiny_window8_256",
        *(64, 8, {"embed_dim": 16, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4}),
    ),
}
SMALL = {
    "loop.epochs": 1,
    "optimizer.layer_decay": 0.8,
    "optimizer.ema_decay": 0.9,
    "weights.checkpointing": True,
    "model.text_width": 32,
    "model.text_layers": 1,
    "model.text_heads": 2,
    "model.text_feedforward": 64,
    "model.width": 32,
    "model.fusion_heads": 2,
    "model.vocabulary_size": 300,
}


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("backbones")
    draw_dataset(root / "phantom", studies=60, seed=5, scale=0.05)
    write_table(build_table(root / "phantom", root / "phantom"), root / "studies.parquet")
    return root / "studies.parquet"


@pytest.fixture(scope="module")
def rows(table):
    return [row for row in read_rows(table) if row["image_paths"] and row["findings"]]


def make_served(kind: str, table: Path, rows, root: Path):
    """Train one, export it through the parity gate; return its bundle and its repository."""
    name, side, _, arguments = BACKBONES[kind]
    changes = {
        "model.image_backbone": name,
        "model.image_size": side,
        "model.image_arguments": arguments,
        "model.image_drop_path": 0.1,
    }
    train(load_config("demo", {**SMALL, **changes}), table, root / "bundle")
    bundle = load_bundle(root / "bundle")
    cases = make_parity_cases(rows, bundle.config["text_mode"], side, count=3)
    export(bundle.path, root / "repository", cases)
    return bundle, root / "repository"


@pytest.fixture(scope="module", params=BACKBONES)
def served(request, table, rows, tmp_path_factory):
    return request.param, *make_served(request.param, table, rows, tmp_path_factory.mktemp(request.param))


def test_it_is_served_and_explained_on_its_own_grid(served, rows):
    kind, bundle, repository = served
    name, side, grid, _ = BACKBONES[kind]
    assert bundle.config["sizes"]["S"] == side
    assert bundle.config["sizes"]["N"] == grid**2
    assert f"`{name}` of timm" in (bundle.path / "MODEL_CARD.md").read_text()
    image, report = get_image(rows[0]).read_bytes(), get_report(rows[0])
    inputs = {"image_bytes": pack([image]), "report": pack([report.encode()])}
    answer = InProcess(repository).run("predict_study", inputs)
    explanation = explain(bundle, image=image, report=report, steps=8)
    index = [label.key for label in bundle.decisions.of("study")].index(explanation.key)
    assert answer["probabilities"][0, index] == pytest.approx(explanation.probability, abs=1e-4)
    assert explanation.pixel_attribution.shape == (side, side)
    assert np.abs(explanation.pixel_attribution).max() > 0
    assert explanation.patch_attention.shape == (grid, grid)
    assert 0 < explanation.shares["image"] < 1
    for found in explanation.maps:
        assert render_map(explanation, found).shape == (*explanation.original.shape, 3)


def test_another_run_starts_from_its_bundle(served, table, tmp_path):
    _, bundle, _ = served
    config = read_start_config(bundle)
    with pytest.raises(ConfigError, match=r"another architecture: its model\.image_size is"):
        train(load_config("demo", SMALL), table, tmp_path / "other", start=bundle)
    frozen = change_config(config, {"weights.freeze": ["image", "text"]})
    again = load_bundle(train(frozen, table, tmp_path / "again", start=bundle).bundle)
    assert again.fingerprint != bundle.fingerprint
    old, new = (load_weights(each) for each in (bundle, again))
    kept = [name for name in old if ".backbone." in name]
    assert len(kept) > 10
    assert all(torch.equal(old[name], new[name]) for name in kept)
    assert any(not torch.equal(old[name], new[name]) for name in old if name.startswith("fusion."))


def load_weights(bundle):
    from safetensors.torch import load_file

    return load_file(bundle.weights_path)


def test_triton_serves_a_vit(table, rows, tmp_path):
    """Images of 70 pixels, 25 tokens: nothing of the default's sizes is left in what Triton loads."""
    bundle, repository = make_served("vit", table, rows, tmp_path)
    image, report = get_image(rows[0]).read_bytes(), get_report(rows[0])
    inputs = {"image_bytes": pack([image]), "report": pack([report.encode()])}
    expected = InProcess(repository).run("predict_study", inputs)["probabilities"][0]
    with Stack(repository, tmp_path / "store", ports=Ports.free(), log_dir=tmp_path / "logs") as stack:
        stack.wait_ready(120)
        with CxrClient(stack.triton_url, stack.retrieval_url, timeout_s=30) as client:
            assert client.info().grid == 5
            prediction = client.predict(image, report)
            explanation = client.explain(bundle, image=image, report=report, steps=4)
    assert prediction.fingerprint == bundle.fingerprint
    assert [finding.probability for finding in prediction.findings] == pytest.approx(expected, abs=1e-5)
    assert prediction.image_attention.shape[-1] == 25
    assert explanation.patch_attention.shape == (5, 5)
