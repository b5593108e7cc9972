"""`cxr bench table`: verdicts, files and errors; the figures themselves are `make bench`."""

import json

import numpy as np
import pytest
from rich.console import Console

from cli.bench import rows as bench_rows
from cli.bench.rows import compare_answers
from cli.bench.table import measure_table, to_markdown
from cli.bench.target import TargetRow
from contract.errors import ConfigError


@pytest.mark.parametrize(
    ("row", "passed"),
    [
        (TargetRow("a", "at most", 1.05, 1.05), True),
        (TargetRow("a", "at most", 1.05, 1.051), False),
        (TargetRow("a", "at least", 0.97, 0.97), True),
        (TargetRow("a", "at least", 0.97, 0.9), False),
        (TargetRow("a", "at least", 0.97, 2.0, conditions={"cosine": False}), False),
        (TargetRow("a", "at least", 0.97, None), None),
    ],
)
def test_verdict(row, passed):
    assert row.passed is passed
    assert row.to_dict()["passed"] is passed


class Answers:
    """Stands for a model in this process."""

    def __init__(self, probabilities, embedding) -> None:
        self.answer = {
            "probabilities": np.array([probabilities], np.float32),
            "embedding": np.array([embedding], np.float32),
        }

    def run(self, model, inputs):
        return self.answer


class Bundle:
    """Two labels."""

    class Label:
        threshold = 0.5

    labels = (Label, Label)


def test_flips_and_cosine_are_counted():
    reference = Answers([0.4, 0.6], [1, 0])
    assert compare_answers(reference, reference, [{}], Bundle) == (1.0, 0, 2)
    cosine, flips, decisions = compare_answers(reference, Answers([0.4, 0.4], [0.6, 0.8]), [{}, {}], Bundle)
    assert (round(cosine, 6), flips, decisions) == (0.6, 2, 4)


def test_files_are_written_after_each_part(tmp_path, monkeypatch):
    rows = [TargetRow("served / in-process", "at most", 1.05, 1.2, detail="12 ms / 10 ms")]

    def fail():
        raise ConfigError("no more")

    monkeypatch.setattr(bench_rows, "list_parts", lambda *_: {"one": lambda: rows, "two": fail})
    with pytest.raises(ConfigError, match="no more"):
        measure_table(Console(quiet=True), tmp_path, tmp_path / "out", seconds=1)
    written = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [row["passed"] for row in written["rows"]] == [False]
    text = (tmp_path / "out" / "table.md").read_text()
    assert text == to_markdown(written)
    assert "| served / in-process | at most 1.05x | 1.2x | FAIL | 12 ms / 10 ms |" in text


def test_unknown_part_and_missing_models(tmp_path):
    with pytest.raises(ConfigError, match="no part speed"):
        measure_table(Console(quiet=True), tmp_path, tmp_path, seconds=1, only=["speed"])
