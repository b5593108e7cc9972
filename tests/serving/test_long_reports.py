"""A model that reads 512 tokens: exported, held against PyTorch, published and asked in this process."""

from pathlib import Path

import numpy as np
import pytest

from contract.notes import ReportNotes
from contract.steps import pack
from serving.inprocess import InProcess, read_config

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("tritonclient.grpc")
MOST = 512
WORDS = ("the", "heart", "is", "enlarged", "and", "there", "is", "a", "left", "effusion")


def make_report(words: int, last: str = "heart") -> bytes:
    text = " ".join((WORDS * words)[: words - 1])
    return f"FINDINGS: {text} {last}".encode()


@pytest.fixture(scope="module")
def repository(make_model, tmp_path_factory) -> Path:
    """The smallest model that has every part and reads 512 tokens, published."""
    from export.gates.parity import ParityCase, check_parity
    from export.publish import publish

    root = tmp_path_factory.mktemp("long")
    bundle, graphs = make_model(1)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 56, 56), dtype=np.uint8)
    report = check_parity(bundle, graphs, [ParityCase(pixels, " ".join(WORDS))])
    assert report.passed
    assert max(report.text_lengths) == MOST
    publish(bundle, graphs, root / "repository")
    return root / "repository"


def ask(repository: Path, *reports: bytes):
    return InProcess(repository).run("predict_text", {"report": pack(reports)})


def test_a_report_of_400_tokens_is_read_to_its_end(repository):
    answer = ask(repository, make_report(400), make_report(400, "effusion"))
    assert np.abs(np.diff(answer["probabilities"], axis=0)).max() > 0
    notes = ReportNotes.from_json(answer["report_notes"][0, 0])
    assert (notes.tokens, notes.truncated, notes.warnings) == (402, False, ())
    assert notes.describe_parts() == "findings 1 sentence"


def test_a_report_that_was_cut_says_so(repository):
    notes = ReportNotes.from_json(ask(repository, make_report(900))["report_notes"][0, 0])
    assert (notes.tokens, notes.truncated) == (MOST, True)
    assert notes.warnings == (f"The report is longer than {MOST} tokens: its end was not read.",)


def test_the_largest_length_is_warmed_up(repository):
    config = read_config(repository / "text_encoder" / "config.pbtxt")
    lengths = {int(sample["inputs"]["input_ids"]["dims"][0]) for sample in config["model_warmup"]}
    assert lengths == {MOST}
