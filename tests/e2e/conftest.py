"""One small trained model, served on the real Triton with the real sidecar, for all tests of this folder."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.cases import Row, make_cases, make_parity_cases, read_rows
from cli.inputs import read_split
from client import CxrClient
from contract.bundle import Bundle, load_bundle
from contract.labels import LABELS
from export.graphs import export_graphs
from export.pipeline import export
from serving.stack import Ports, Stack
from training.config_file import load_config
from training.openi import build_table, write_table
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
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("e2e")
    draw_dataset(root / "phantom", studies=80, seed=3, scale=0.08)
    table = root / "studies.parquet"
    write_table(build_table(root / "phantom", root / "phantom"), table)
    changes = {"loop.epochs": 1, "seed": 3, "model.lexical_buckets": 1009}
    train(load_config("demo", changes), table, root / "bundle")
    bundle = load_bundle(root / "bundle")
    split = bundle.path / "split.json"
    train_rows = read_rows(table, study_ids=read_split(split, "train"))
    test_rows = read_rows(table, study_ids=read_split(split, "test"))
    cases = make_parity_cases(test_rows, bundle.config["text_mode"], bundle.config["sizes"]["S"], count=4)
    export(bundle.path, root / "model_repository", cases)
    return Trained(table, bundle, root / "model_repository", train_rows, test_rows)


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
def random_model(write_bundle, small_config, tmp_path_factory):
    """A bundle of the smallest model with random weights, and its graphs: enough to serve and to break."""
    root = tmp_path_factory.mktemp("random")
    texts = (
        "FINDINGS: effusion of grade 0001 is seen.",
        "fracture granuloma emphysema pneumonia scoliosis 0 2 3 4 5",
        "The heart is enlarged. Lungs are clear.",
    )
    bundle = write_bundle(root / "bundle", small_config, seed=2, texts=texts, thresholds=[0.4] * len(LABELS))
    return bundle, export_graphs(bundle, root / "graphs")
