"""One small trained model, served on the real Triton with the real sidecar, for all tests of this folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from cli.cases import make_cases, make_parity_cases
from client import CxrClient
from contract.bundle import Bundle, load_bundle
from export.graphs.from_torch import export_graphs
from export.pipeline import export
from serving.stack import Ports, Stack
from training.config.toml_file import load_config
from training.data.openi import build_table, write_table
from training.data.rows import Row, read_rows
from training.phantom import draw_dataset
from training.train import train


@dataclass(frozen=True)
class Trained:
    """A bundle trained for one epoch on a few phantoms: enough to serve, useless as a model."""

    table: Path
    bundle: Bundle
    repository: Path
    train_rows: list[Row]
    test_rows: list[Row]


@pytest.fixture(scope="session")
def trained(make_once: Callable[..., Path]) -> Trained:
    return read_trained(make_once("trained", make_trained))


def make_trained(root: Path) -> None:
    """Fill a directory with phantoms, their table, a bundle, its graphs and its repository."""
    draw_dataset(root / "phantom", studies=80, seed=3, scale=0.08)
    table = root / "studies.parquet"
    write_table(build_table(root / "phantom", root / "phantom"), table)
    changes = {"loop.epochs": 1, "seed": 3, "model.lexical_buckets": 1009}
    train(load_config("demo", changes), table, root / "bundle")
    config, rows = load_bundle(root / "bundle").config, read_part(root, "test")
    cases = make_parity_cases(rows, config["text_mode"], config["sizes"]["S"], count=4)
    graphs = export_graphs(load_bundle(root / "bundle"), root / "graphs")
    with patch("export.graphs.from_torch.export_graphs", lambda *_: graphs):
        export(root / "bundle", root / "model_repository", cases)


def read_trained(root: Path) -> Trained:
    """Return what `make_trained` left."""
    parts = read_part(root, "train"), read_part(root, "test")
    return Trained(root / "studies.parquet", load_bundle(root / "bundle"), root / "model_repository", *parts)


def read_part(root: Path, part: str) -> list[Row]:
    return read_rows(root / "studies.parquet", study_ids=load_bundle(root / "bundle").split[part])


@pytest.fixture(scope="session")
def stack(trained: Trained, tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("servers")
    with Stack(trained.repository, root / "store", ports=Ports.free(), log_dir=root / "logs") as stack:
        stack.wait_ready(120)
        yield stack


@pytest.fixture(scope="session")
def client(stack: Stack, trained: Trained):
    """A client of the running servers, with the training cases indexed."""
    with CxrClient(stack.triton_url, stack.retrieval_url, timeout_s=30) as client:
        result = client.index(make_cases(trained.train_rows, trained.bundle.config["text_mode"]))
        assert result.indexed > 30
        assert not result.refused
        yield client


@pytest.fixture(scope="session")
def models(make_model):
    """Two bundles of one architecture with other weights, and their graphs."""
    return [make_model(seed) for seed in (1, 2)]


@pytest.fixture(scope="session")
def random_model(make_model):
    """A bundle of the smallest model with random weights, and its graphs: enough to serve and to break."""
    return make_model(1)
