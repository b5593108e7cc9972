"""`cxr predict` of many files: what it takes, prints, writes and exits with."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from client import CxrClient, Finding, Prediction
from client.images import ReadImage
from client.predictor import Predictor
from client.served import ServedModel
from contract.errors import DeadlineError, ImageError
from contract.labels import LABELS
from contract.notes import NOTICE, ImageNotes

PRINT = "ab" * 32
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def asked(monkeypatch) -> list[bytes]:
    """What reaches the server, which stands for one that knows what a file says."""
    asked: list[bytes] = []

    def predict(_predictor, image, report, *_):
        asked.append(image)
        if b"broken" in image:
            raise ImageError("The DICOM file is damaged or truncated.")
        if b"slow" in image:
            raise DeadlineError("Triton did not answer within 10 s.")
        high = 0.9 if b"ill" in image else 0.1
        findings = (
            Finding(LABELS[0].key, LABELS[0].name, high, 0.5),
            *(Finding(x.key, x.name, 0.2, 0.5) for x in LABELS[1:]),
        )
        notes = ImageNotes(warnings=("The image is a lateral view.",) if b"lateral" in image else ())
        kind = "image" if report is None else "study"
        return Prediction(kind, findings, np.zeros(4, np.float32), PRINT, images=(ReadImage(notes),))
        yield  # an operation of `client.steps` that asks nobody

    served = ServedModel(PRINT, "full", 64, 56, 16, 7, ())
    monkeypatch.setattr(Predictor, "predict", predict)
    monkeypatch.setattr(CxrClient, "info", lambda _client, **_: served)
    monkeypatch.setattr("client.predict_files.time.sleep", lambda _: None)
    return asked


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    for name, content in {"a.png": b"ill", "b.png": b"lateral", "sub/c": b"well", "notes.txt": b""}.items():
        (tmp_path / "scans" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "scans" / name).write_bytes(PNG + content if content else b"notes")
    monkeypatch.chdir(tmp_path)
    return Path("scans")


def run(*arguments: str, stdin: bytes | None = None):
    return CliRunner().invoke(app, ["predict", *arguments], input=stdin)


def test_a_folder_is_one_line_each_and_says_what_it_passed_over(asked, folder):
    result = run("scans")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"scans/a.png\tpredicted\t{LABELS[0].key} 0.900 present",
        "scans/b.png\tpredicted\tnothing present; warning: The image is a lateral view.",
        "scans/sub/c\tpredicted\tnothing present",
    ]
    assert "3 predicted, 0 refused, 1 with a warning, 1 other file skipped." in result.stderr
    assert NOTICE in result.stderr
    assert len(asked) == 3


def test_lines_of_json(asked, folder):
    result = run("scans/a.png", "scans/b.png", "--json")
    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["path"], first["status"], first["fingerprint"]) == ("scans/a.png", "predicted", PRINT)
    assert first["findings"][LABELS[0].key] == {"probability": 0.9, "decision": "present"}
    assert second["warnings"] == ["The image is a lateral view."]
    assert first["notice"] == NOTICE


@pytest.mark.parametrize(
    ("content", "code", "status"), [(b"broken", 2, "refused"), (None, 2, "refused"), (b"slow", 4, "failed")]
)
def test_a_bad_file_is_a_row_and_the_exit_code_says_so(asked, folder, content, code, status):
    if content:
        (folder / "bad.dcm").write_bytes(content)
    result = run("scans/bad.dcm", "scans/a.png", "scans/b.png")
    assert result.exit_code == code
    assert [line.split("\t")[1] for line in result.stdout.splitlines()] == [status, "predicted", "predicted"]
    assert f"2 predicted, {int(code == 2)} refused" in result.stderr
    assert "Traceback" not in result.output


def test_a_list_of_paths_with_reports(asked, folder):
    Path("r.txt").write_text("Normal.")
    result = run("-", "--json", stdin=b"scans/a.png\tr.txt\n\nscans/b.png\n")
    assert result.exit_code == 0
    assert [json.loads(line)["kind"] for line in result.stdout.splitlines()] == ["study", "image"]
    assert json.loads(result.stdout.splitlines()[0])["report"] == "r.txt"


def test_an_empty_list(asked, folder):
    result = run("-", stdin=b"\n")
    assert result.exit_code == 2
    assert "The list of paths is empty" in result.stderr


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_second_run_asks_for_what_is_new_changed_or_was_refused(suffix, asked, folder):
    (folder / "bad.png").write_bytes(b"broken")
    out = f"results.{suffix}"
    result = run("scans", "--out", out)
    assert result.exit_code == 2
    assert f"{out}: 3 predicted, 1 refused, 1 with a warning, 1 other file skipped." in result.stdout
    assert "  scans/bad.png: The DICOM file is damaged or truncated." in result.stdout
    assert NOTICE in result.stdout
    asked.clear()
    (folder / "a.png").write_bytes(PNG + b"well again")
    (folder / "new.png").write_bytes(PNG + b"new")
    result = run("scans", "--out", out, "--json")
    summary = json.loads(result.stdout)
    assert sorted(asked) == sorted([PNG + b"well again", PNG + b"new", b"broken"])
    assert summary == {
        "out": out,
        "predicted": 4,
        "refused": 1,
        "failed": 0,
        "kept": 2,
        "warned": 1,
        "skipped": 1,
        "warnings": [],
        "notice": NOTICE,
    }
    asked.clear()
    (folder / "bad.png").unlink()
    assert run("scans", "--out", out).exit_code == 0
    assert asked == []


def test_one_file_with_out_is_a_table_of_one_row(asked, folder):
    assert run("scans/a.png", "--out", "r.csv").exit_code == 0
    assert len(Path("r.csv").read_text().splitlines()) == 2


def test_a_name_with_control_characters_stays_on_its_line(asked, folder):
    name = folder / "x\n\x1b[2Jy.png"
    name.write_bytes(PNG)
    result = run(str(name), "scans/a.png")
    assert result.stdout.splitlines()[0] == "scans/x\\n\\x1b[2Jy.png\tpredicted\tnothing present"


def test_what_looks_like_markup_or_an_emoji_stays_as_it_is(asked, folder):
    (folder / ":heart:[bold]x.png").write_bytes(b"broken")
    result = run("scans", "--out", ":key:[red].csv")
    assert ":key:[red].csv: 3 predicted, 1 refused" in result.stdout
    assert "scans/:heart:[bold]x.png: The DICOM file is damaged" in result.stdout


def test_only_the_first_refused_are_named(asked, folder):
    for number in range(13):
        (folder / f"bad{number:02}.png").write_bytes(b"broken")
    result = run("scans", "--out", "r.csv")
    assert result.stdout.count("is damaged or truncated") == 10
    assert "  3 more; see the column error" in result.stdout


REFUSED = {
    "a report for many": (("scans", "--report", "Normal."), "--view and --finding work with one case"),
    "a finding for many": (("scans", "--finding", "rib fracture"), "work with one case"),
    "a view for many": (("scans", "--view", "scans/b.png"), "work with one case"),
    "a report for a table": (("scans/a.png", "--report", "Normal.", "--out", "r.csv"), "cxr predict - <"),
    "another ending": (("scans", "--out", "r.txt"), "must end in .jsonl, .csv or .parquet"),
    "a folder for a file": (("scans", "--out", "folder.csv"), "not a regular file"),
    "a table of others": (("scans", "--out", "others.csv"), "something else than results"),
    "no radiograph": (("empty",), "no DICOM, PNG or JPEG file in empty"),
    "one that is not there": (("gone.dcm",), "gone.dcm"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_one_sentence(name, asked, folder):
    Path("folder.csv").mkdir()
    Path("empty").mkdir()
    Path("others.csv").write_text("a,b\n1,2\n")
    arguments, words = REFUSED[name]
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert asked == []
    assert sorted(path.name for path in Path().iterdir()) == ["empty", "folder.csv", "others.csv", "scans"]


def test_without_a_server_nothing_is_written(folder):
    result = run("scans", "--out", "r.csv", "--triton", "127.0.0.1:9", "--timeout", "2")
    assert result.exit_code == 4
    assert "cxr serve" in result.stderr
    assert not Path("r.csv").exists()
