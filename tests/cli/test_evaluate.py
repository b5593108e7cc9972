"""Tables of an evaluation fit into a terminal of 80 columns, and a served model that differs is an error."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from cli import evaluate
from contract.decisions import Decisions, ServedLabel
from contract.errors import ParityError, ServerError
from contract.labels import LABELS

DECISIONS = Decisions.repeat(tuple(ServedLabel(label.key, label.name, 0.5) for label in LABELS))
WIDE = {"value": 0.9999, "low": 0.8888, "high": 0.9949}


def print_to(function, *arguments) -> str:
    file = io.StringIO()
    function(Console(file=file, width=80), *arguments)
    return file.getvalue()


@pytest.mark.parametrize(
    ("interval", "shown"),
    [
        ({"value": 0.879, "low": 0.824, "high": 0.921}, ".879 (.82-.92)"),
        ({"value": 1.0, "low": 0.997, "high": 1.0}, "1.000 (1-1)"),
        ({"value": 0.0, "low": 0.0, "high": 0.0}, ".000 (.00-.00)"),
        ({"value": 81.0, "low": 73.4, "high": 93.0}, "81.0 (73-93)"),
        (None, "-"),
    ],
)
def test_an_interval_is_short(interval, shown):
    assert evaluate._show(interval) == shown


def test_tables_are_not_cut_off():
    metrics = dict.fromkeys(("auroc", "ap", "f1"), WIDE)
    found = dict.fromkeys(("p@5", "map", "mrr", "ndcg@5"), WIDE)
    row = {
        "title": "another's image + findings",
        "n": 1,
        "studies": 3954,
        "macro": metrics,
        "kind": "control",
    }
    results = {
        "trained_on": "phantom",
        "classification": [row],
        "retrieval": {
            "test_to_train": {"without_normal": [{"title": row["title"], "queries": 3954, "values": found}]}
        },
        "pairs": [
            {"title": "image → report", "values": {"r@1": WIDE, "median_rank": {**WIDE, "high": 93.0}}}
        ],
        "served": {"cases": 10.0, "probabilities": 1e-6, "embeddings": 1e-7},
    }
    controls = {
        "splits": 3,
        "keep_duplicates": True,
        "studies": 391.0,
        "findings": {
            "masked findings": {**metrics, "labels": {**WIDE, "value": 17.0}},
            "indication": {"labels": WIDE},
        },
        "retrieval": {"with_normal": {"TF-IDF, full report": found}},
    }
    for text in (print_to(evaluate.print_results, results), print_to(evaluate.print_controls, controls)):
        assert "…" not in text
        assert "1.000 (.89-.99)" in text
    assert "agree on 10 answers" in print_to(evaluate.print_results, results)


def make_asked(shift: float | np.ndarray = 0.0, refused: bool = False, tied: bool = False):
    from training.evaluation.plan import Studies, Way
    from training.evaluation.predict import Answers
    from training.evaluation.split_predictions import SplitPredictions

    rows = tuple(
        {"study_id": f"CXR{number}", "patient_id": str(number), "image_paths": []} for number in range(20)
    )
    targets = np.zeros((20, len(LABELS)), bool)
    targets[:10, 0] = True
    studies = Studies(rows, {}, targets, np.ones_like(targets))
    spread = np.linspace(0, 0.9, 20 * len(LABELS), dtype=np.float32).reshape(20, -1)
    probabilities = (np.full_like(spread, 0.3) if tied else spread) + np.float32(shift)
    if refused:
        probabilities[3] = np.nan
    way = Way(False, "findings")
    answers = {way: Answers(probabilities, np.tile(np.eye(1, 4, dtype=np.float32), (20, 1)))}
    return SplitPredictions(studies, studies, answers, answers)


def test_served_answers_that_differ_are_an_error():
    bundle = SimpleNamespace(decisions=DECISIONS, label_part=0)
    gaps = evaluate.compare(make_asked(), make_asked(5e-6), bundle)
    assert gaps["probabilities"] == pytest.approx(5e-6, rel=0.1)
    with pytest.raises(ParityError, match=r"probabilities differ from PyTorch by 1\.0e-02"):
        evaluate.compare(make_asked(), make_asked(0.01), bundle)
    with pytest.raises(ServerError, match="different studies"):
        evaluate.compare(make_asked(), make_asked(refused=True), bundle)


def test_rounding_that_breaks_a_tie_moves_no_average_but_a_difference_does():
    """All studies have the same words, so all tie; those with the finding come first by a hair."""
    bundle = SimpleNamespace(decisions=DECISIONS, label_part=0)
    first = np.where(np.arange(20) < 10, 1, 0)[:, None]
    rounding, real = (
        evaluate.compare(make_asked(tied=True), make_asked(size * first, tied=True), bundle)
        for size in (2e-7, 5e-5)
    )
    assert (rounding["probabilities"] > 0, rounding["macro"]) == (True, 0)
    assert real["macro"] == pytest.approx(0.5)  # AUROC .5 -> 1
