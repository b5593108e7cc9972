"""`cxr bench table`: verdicts, files and errors; the figures themselves are `make bench`."""

import json
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from bench.targets import rows as bench_rows
from bench.targets.rows import compare_answers
from bench.targets.table import measure_table, to_markdown
from bench.targets.target import TargetRow, merge_runs
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
        (TargetRow("a", "at least", None, 2.0), None),
    ],
)
def test_verdict(row, passed):
    assert row.passed is passed
    assert row.to_dict()["passed"] is passed


def test_words_for_what_has_no_verdict():
    assert TargetRow("a", "at least", None, 2.0).verdict == "no target"
    assert TargetRow("a", "at least", 0.97, None).verdict == "not measured"
    assert TargetRow("a", "at least", None, None).verdict == "not measured"


def test_of_several_runs_the_middle_one_counts():
    runs = [
        [TargetRow("a", "at most", 1.05, value, detail=f"run {value}", conditions={"none failed": met})]
        for value, met in ((1.2, True), (1.0, True), (1.04, False))
    ]
    (row,) = merge_runs(runs)
    assert (row.value, row.detail, row.runs) == (1.04, "run 1.04", (1.2, 1.0, 1.04))
    assert row.passed is False  # the limit is kept, but one of the runs had failures
    (kept,) = merge_runs([rows for rows in runs if rows[0].conditions["none failed"]] + [runs[0]])
    assert (kept.value, kept.conditions) == (1.2, {"none failed": True})


def test_a_row_that_was_never_measured_stays_so():
    missing = TargetRow("perf_analyzer", "at most", 5.0, None, "%", "no perf_analyzer")
    assert merge_runs([[missing], [missing]]) == [missing]


class Answers:
    """Stands for a model in this process."""

    def __init__(self, probabilities, embedding) -> None:
        self.answer = {
            "probabilities": np.array([probabilities], np.float32),
            "embedding": np.array([embedding], np.float32),
        }

    def run(self, model, inputs):
        return self.answer


# Two labels, as a study is decided.
TWO = (SimpleNamespace(threshold=0.5),) * 2
BUNDLE = SimpleNamespace(decisions=SimpleNamespace(of=lambda way: {"study": TWO}[way]), label_part=0)


def test_flips_and_cosine_are_counted():
    reference = Answers([0.4, 0.6], [1, 0])
    assert compare_answers(reference, reference, [{}], BUNDLE) == (1.0, 0, 2)
    cosine, flips, decisions = compare_answers(reference, Answers([0.4, 0.4], [0.6, 0.8]), [{}, {}], BUNDLE)
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
    assert "\nVersions: " in text


def test_the_range_of_the_runs_stands_beside_the_median(tmp_path, monkeypatch):
    values = iter([1.3, 1.1, 1.2])
    monkeypatch.setattr(
        bench_rows,
        "list_parts",
        lambda *_: {"one": lambda: [TargetRow("a", "at most", None, next(values))]},
    )
    report = measure_table(Console(quiet=True), tmp_path, tmp_path / "out", seconds=1, runs=3)
    assert report["rows"][0]["runs"] == [1.3, 1.1, 1.2]
    assert "| a | - | 1.2x (1.1 to 1.3) | no target |  |" in to_markdown(report)


def test_each_row_is_printed_before_the_next_is_measured(tmp_path, monkeypatch):
    console = Console(file=StringIO(), width=200)

    def measure():
        yield TargetRow("served / in-process", "at most", 1.05, 1.2)
        raise ConfigError(console.file.getvalue())

    monkeypatch.setattr(bench_rows, "list_parts", lambda *_: {"serving": measure})
    with pytest.raises(
        ConfigError, match=r"Measuring: serving, run 1 of 1\n  served / in-process: 1.2x \(FAIL, 0 s\)\n"
    ):
        measure_table(console, tmp_path, tmp_path, seconds=1)


def test_an_interrupt_loses_the_run_that_it_ends_and_no_other(tmp_path, monkeypatch):
    values = iter([1.3])

    def measure():
        return [TargetRow("a", "at most", None, next(values))]

    monkeypatch.setattr(bench_rows, "list_parts", lambda *_: {"one": measure})
    with pytest.raises(StopIteration):
        measure_table(Console(quiet=True), tmp_path, tmp_path / "out", seconds=1, runs=3)
    assert json.loads((tmp_path / "out" / "table.json").read_text())["rows"][0]["runs"] == [1.3]


def test_unknown_part_and_missing_models(tmp_path):
    with pytest.raises(ConfigError, match="no part speed"):
        measure_table(Console(quiet=True), tmp_path, tmp_path, seconds=1, only=["speed"])
