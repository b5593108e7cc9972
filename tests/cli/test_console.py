"""What others wrote stands on the terminal as it is, and no table loses a column, at 40, 80 and 200 columns."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli import data, evaluate, progress, prompt_scores, show, show_bench
from cli.console import CommandConsole, escape
from cli.options import make_console
from client.cases import IndexResult, SimilarCase
from client.prediction import Finding, Prediction

NASTY = (
    ":heart:",
    ":key: [x] [/x]",
    "[bold]a[/bold]",
    "[red",
    "trailing\\",
    "\\[bold]",
    "[link=file:///x]",
    "CXR1:warning:.png",
    "12.5 None True",
)
WIDTHS = (40, 80, 200)


def print_to(function, *arguments, width: int = 400, **settings) -> str:
    file = io.StringIO()
    function(CommandConsole(file=file, width=width, **settings), *arguments)
    return file.getvalue()


def make_case(case_id: str, **fields) -> SimilarCase:
    return SimilarCase(
        **{"id": case_id, "study_id": case_id, "score": 0.87654, "labels": ("normal",), "report": "Clear."}
        | {"image_ref": ""}
        | fields
    )


def make_prediction(name: str) -> Prediction:
    return Prediction("text", (Finding("a", name, 0.5, 0.25),), embedding=None, fingerprint="f")


def print_everything(value: str) -> dict[str, str]:
    """Print a value in every place where a command shows what others wrote."""
    refused = IndexResult(1, refused=((value, value),), warned=((value, (value,)),))
    score = SimpleNamespace(finding=value, score=0.1, similarity_present=0.2, similarity_absent=0.3)
    ratio = {"row": value, "metric": value, "a": 1.0, "b": 1.0, "ratio": 1.0, "differs": False, "chance": 1.0}
    summary = SimpleNamespace(
        images=1, decoded=0, refused=[SimpleNamespace(image_id=value, reason=value)], to_dict=dict
    )
    check = SimpleNamespace(ok=True, name=value, detail=value)
    health = SimpleNamespace(triton=value, retrieval=None, fingerprint=None, cases=None)
    return {
        "prediction": print_to(show.print_prediction, make_prediction(value)),
        "warnings": print_to(show.print_warnings, [value]),
        "case id": print_to(show.print_cases, [make_case(value)]),
        "case report": print_to(show.print_cases, [make_case("1", report=value)]),
        "case label": print_to(show.print_cases, [make_case("1", labels=(value,))]),
        "indexed": print_to(show.print_indexed, refused),
        "checks": print_to(show.print_checks, [check], health),
        "scores": print_to(prompt_scores.print_scores, [score]),
        "ratios": print_to(show_bench.print_ratios, [ratio], value),
        "cache": print_to(data.print_cache, value, summary, 1.0),
        "step": print_to(print_step, value),
    }


def test_a_case_is_printed_with_its_evidence():
    fields = {"labels": ("cardiac", "pleural"), "report": "The heart is large. Right effusion."}
    shown = print_to(
        show.print_cases, [make_case("1", **fields, shared_labels=("pleural",), excerpt="Right effusion.")]
    )
    assert "cardiac, ✓ pleural" in shown
    assert "Right effusion." in shown
    assert "The heart" not in shown
    assert "The heart is large. Right effusion." in print_to(show.print_cases, [make_case("1", **fields)])


def print_step(console: CommandConsole, value: str) -> None:
    with progress.Steps(console, 1).step(value) as step:
        step.say(value)


@pytest.mark.parametrize("value", NASTY)
def test_values_are_printed_literally(value):
    for place, text in print_everything(value).items():
        shown = re.sub(r"\s+", " ", text)
        assert value in shown, (place, text)


@pytest.mark.parametrize("value", NASTY)
def test_a_bar_and_a_spinner_show_a_title_literally(value):
    file = io.StringIO()
    console = CommandConsole(file=file, width=200, force_terminal=True, color_system=None)
    with progress.show_progress(console, value) as report:
        report(1, 2)
    assert value in file.getvalue()


def test_control_characters_do_not_steer_the_terminal():
    for place, text in print_everything("a\x1b[31mb\x9b2J\x07\rc").items():
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text), place
        shown = r"a\x1b[31mb\x9b2J\x07 c" if place == "case report" else r"a\x1b[31mb\x9b2J\x07\x0dc"
        assert shown in re.sub(r"\s+", " ", text), (place, text)
    assert escape("two\nlines\tand a tab") == "two\nlines\tand a tab"


def test_numbers_get_no_colours(monkeypatch):
    file = io.StringIO()
    CommandConsole(file=file, force_terminal=True, color_system="truecolor").print("12 'a' True /tmp/x")
    assert file.getvalue() == "12 'a' True /tmp/x\n"
    assert isinstance(make_console(False), CommandConsole)


@pytest.mark.parametrize("width", WIDTHS)
def test_an_id_of_64_characters_leaves_room_for_the_other_columns(width):
    case_id = "".join(f"{number:02d}" for number in range(32))
    cases = [make_case(case_id, report="The heart is enlarged. " * 3, labels=("cardiac", "pleural"))]
    text = print_to(show.print_cases, cases, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    lines = text.splitlines()
    start = next(line.index("0.877") for line in lines if "0.877" in line)
    ids = "".join(re.sub(r"\D", "", line[:start]) for line in lines)
    assert ids == case_id, text
    right = "".join(re.sub(r"[\s│]", "", line[start:]) for line in lines)
    assert {"card", "pleu", "enla"} <= {word for word in ("card", "pleu", "enla") if word in right}, text


@pytest.mark.parametrize("width", WIDTHS)
def test_no_table_loses_a_column_or_is_wider_than_the_terminal(width):
    long = "x" * 64
    figure = {"value": 0.9999, "low": 0.8888, "high": 0.9949}
    metrics = dict.fromkeys(("auroc", "ap", "f1"), figure)
    row = {"title": "another's image + findings", "studies": 3954, "macro": metrics, "kind": "model"}
    results = {"classification": [row], "retrieval": {}, "pairs": [], "trained_on": "openi"}
    summary = SimpleNamespace(
        images=1, decoded=0, refused=[SimpleNamespace(image_id=long, reason="No image.")]
    )
    score = SimpleNamespace(finding=long, score=0.123, similarity_present=0.234, similarity_absent=0.345)
    ratio = {
        "row": long,
        "metric": "p50_ms",
        "a": 1.25,
        "b": 2.5,
        "ratio": 2.0,
        "differs": True,
        "chance": 0.01,
    }
    kind = {
        "kind": "rabitq:lists=1265,probes=20,bits=2,refine=10",
        "recall": 0.9876,
        "recall_filtered": 0.9543,
        "p50_ms": 1.23,
        "p99_ms": 12.34,
        "build_s": 123.4,
        "memory_bytes": 16_700_000,
        "memory_share": 0.08,
    }
    tuned = {
        "cases": 100_000,
        "dimension": 512,
        "kinds": [kind],
        "recommended": "flat",
        "rule": "the fastest",
    }
    shown = {
        "tuned": (print_to(show_bench.print_tuned, tuned, width=width), ("0.988", "0.954", "12.34", "16.7")),
        "prediction": (
            print_to(show.print_prediction, make_prediction(long), width=width),
            ("0.500", "0.250"),
        ),
        "scores": (print_to(prompt_scores.print_scores, [score], width=width), ("0.123", "0.234", "0.345")),
        "ratios": (print_to(show_bench.print_ratios, [ratio], "A/B", width=width), ("1.25", "2.50", "2.000")),
        "evaluation": (print_to(evaluate.print_results, results, width=width), ("3954",)),
        "cache": (print_to(data.print_cache, "cache", summary, 1.0, width=width), ("image.",)),
    }
    for name, (text, figures) in shown.items():
        prose = ("A score says", "cache: ")  # which the terminal itself breaks
        table = [line for line in text.splitlines() if not line.startswith(prose)]
        assert max(map(len, table)) <= width, (name, text)
        assert "…" not in text, (name, text)
        for value in figures:
            assert value in text, (name, value, text)


def test_no_command_makes_a_console_or_a_table_of_its_own():
    root = Path(show_bench.__file__).parents[1]
    for path in [*root.glob("cli/**/*.py"), *root.glob("bench/**/*.py"), root / "cxr.py"]:
        text = path.read_text()
        if path.name != "console.py":
            assert "rich.markup" not in text, path
            assert "rich.table" not in text, path
            assert not re.search(r"(?<!Command)\bConsole\((?!quiet=True\))", text), path
