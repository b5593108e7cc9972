"""Results of many files on the disk: three formats, killed runs, other models, foreign files."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from client.case_files import CaseFile
from client.prediction_file import PredictionFile
from client.prediction_row import COLUMNS, PredictionRow
from contract.errors import ArtifactError, ConfigError, FingerprintError
from contract.labels import LABEL_KEYS
from contract.notes import NOTICE

FORMATS = ("jsonl", "csv", "parquet")
PRINT, OTHER = "ab" * 32, "cd" * 32
K = len(LABEL_KEYS)


def make_row(path: str, **changes: object) -> PredictionRow:
    row = PredictionRow(
        path=path,
        status="predicted",
        fingerprint=PRINT,
        input_state="4@1",
        kind="image",
        probabilities=tuple(round(place / K, 6) for place in range(K)),
        decisions=("present", "uncertain", *["absent"] * (K - 2)),
        warnings=("It is a lateral view, “L”; findings may differ.", "Second."),
    )
    return replace(row, **changes)


ROWS = (
    make_row("a.dcm"),
    make_row('o"dd,\n\tné.dcm', report="r.txt", kind="study", warnings=()),
    PredictionRow("c.dcm", "refused", PRINT, "", "", "The image file cannot be read: Permission denied."),
    PredictionRow("d.dcm", "failed", PRINT, "4@2", "r.txt", "Triton did not answer within 5 s."),
)


def read_rows(path: Path) -> list[PredictionRow]:
    with PredictionFile(path, PRINT) as file:
        return list(file._rows.values())


def write_rows(path: Path, rows=ROWS) -> None:
    with PredictionFile(path, PRINT) as file:
        for row in rows:
            file.add(row)


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_written_is_read_again_and_nothing_else_lies_there(suffix, tmp_path):
    path = tmp_path / "made" / f"results.{suffix}"
    write_rows(path)
    assert read_rows(path) == list(ROWS)
    before = path.read_bytes()
    read_rows(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_the_formats_as_other_programs_read_them(tmp_path):
    import pyarrow.parquet as pq

    for suffix in FORMATS:
        write_rows(tmp_path / f"r.{suffix}")
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as file:
        first, _, refused, failed = csv.DictReader(file)
    assert list(first) == [*COLUMNS, "notice"]
    assert (first["path"], first[LABEL_KEYS[1]], first[f"{LABEL_KEYS[1]}_decision"]) == (
        "a.dcm",
        str(round(1 / K, 6)),
        "uncertain",
    )
    assert first["notice"] == NOTICE
    assert (refused["status"], refused[LABEL_KEYS[0]], failed["error"]) == ("refused", "", ROWS[3].error)
    table = pq.read_table(tmp_path / "r.parquet")
    assert table.schema.metadata[b"notice"].decode() == NOTICE
    assert table.schema.metadata[b"fingerprint"].decode() == PRINT
    assert table["path"].to_pylist() == [row.path for row in ROWS]
    assert table[LABEL_KEYS[0]].to_pylist() == [0.0, 0.0, None, None]
    assert table["warnings"].to_pylist()[0] == list(ROWS[0].warnings)
    lines = (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(ROWS)
    assert json.loads(lines[0])["findings"][LABEL_KEYS[0]] == {"probability": 0.0, "decision": "present"}
    assert {json.loads(line)["notice"] for line in lines} == {NOTICE}


KILLED = """
import os, signal, sys
from pathlib import Path
from client.prediction_file import PredictionFile
from client.prediction_row import PredictionRow
with PredictionFile(Path(sys.argv[1]), "ab" * 32) as file:
    for name in sys.argv[2:]:
        file.add(PredictionRow(name, "refused", "ab" * 32, "", error="No."))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_killed_run_loses_nothing(suffix, tmp_path):
    path = tmp_path / f"r.{suffix}"
    write_rows(path, [make_row("first.dcm"), make_row("b.dcm")])
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), "a.dcm", "b.dcm"])
    assert killed.returncode == -9
    rows = read_rows(path)
    assert [(row.path, row.status) for row in rows] == [
        ("first.dcm", "predicted"),
        ("b.dcm", "refused"),
        ("a.dcm", "refused"),
    ]
    assert os.listdir(tmp_path) == [path.name]
    assert read_rows(path) == rows
    if suffix == "jsonl":
        assert len(path.read_text().splitlines()) == 3, "an older row of the same file stayed"


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("cut", [1, 7, 100, 10**6])
def test_a_torn_last_line_is_dropped_and_the_next_row_stands_on_a_line_of_its_own(suffix, cut, tmp_path):
    path = tmp_path / f"r.{suffix}"
    journal = path if suffix == "jsonl" else tmp_path / f"r.{suffix}.partial.jsonl"
    last = make_row("b.dcm").to_json()
    journal.write_text(make_row("a.dcm").to_json() + last[: max(1, len(last) - cut)])
    with PredictionFile(path, PRINT) as file:
        assert list(file._rows) == ["a.dcm"]
        file.add(make_row("c.dcm"))
    assert [row.path for row in read_rows(path)] == ["a.dcm", "c.dcm"]


def test_zeros_of_a_power_failure_are_dropped(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(make_row("a.dcm").to_json().encode() + b"\0" * 300)
    assert [row.path for row in read_rows(path)] == ["a.dcm"]
    assert b"\0" not in path.read_bytes()


FOREIGN = {
    "text.jsonl": b"my notes",
    "other.jsonl": b'{"id": 1}\n{"id": 2}\n',
    "half.jsonl": b'{"path": 3}\n',
    "numbers.jsonl": b"1\n",
    "zeros.jsonl": b"x\0\0",
    "other.csv": b"id,label\n1,2\n",
    "bytes.csv": b"\xff\xfe\x00",
    "other.parquet": b"PAR1 it is not",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_something_else_is_refused_and_left_as_it_was(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(FOREIGN[name])
    with (
        pytest.raises(ConfigError, match="something else than results of `cxr predict`"),
        PredictionFile(path, PRINT),
    ):
        pass
    assert path.read_bytes() == FOREIGN[name]
    assert os.listdir(tmp_path) == [name]


def test_another_table_in_parquet_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [1]}), tmp_path / "r.parquet")
    with pytest.raises(ConfigError, match="its columns"):
        read_rows(tmp_path / "r.parquet")


@pytest.mark.parametrize("suffix", FORMATS)
def test_results_of_another_model_are_never_mixed(suffix, tmp_path):
    path = tmp_path / f"r.{suffix}"
    write_rows(path)
    before = path.read_bytes()
    with pytest.raises(
        FingerprintError, match=r"of model abababababab, but the server runs model cdcdcdcdcdcd.*--out"
    ):
        PredictionFile(path, OTHER).__enter__()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ["r.txt", "r", "r.csv.gz", "/dev/stdout"])
def test_only_the_three_endings(name, tmp_path):
    with pytest.raises(ConfigError, match=r"must end in \.jsonl, \.csv or \.parquet"):
        PredictionFile(tmp_path / name, PRINT).__enter__()


def test_parquet_without_its_package_is_said_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="pip install pyarrow"):
        PredictionFile(tmp_path / "r.parquet", PRINT).__enter__()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_what_is_no_regular_file_is_refused(kind, tmp_path):
    path = tmp_path / "r.csv"
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    with pytest.raises(ConfigError, match="not a regular file"):
        PredictionFile(path, PRINT).__enter__()


def test_a_path_below_a_file_is_an_artifact_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="Could not write"):
        PredictionFile(tmp_path / "file" / "r.csv", PRINT).__enter__()


@pytest.mark.parametrize("suffix", FORMATS)
def test_two_runs_do_not_write_one_file(suffix, tmp_path):
    path = tmp_path / f"r.{suffix}"
    with PredictionFile(path, PRINT) as file:
        with pytest.raises(ConfigError, match="Another `cxr predict` is writing"):
            PredictionFile(path, PRINT).__enter__()
        file.add(ROWS[0])
    assert [row.path for row in read_rows(path)] == ["a.dcm"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("rows", [(), ROWS[:2]])
def test_an_interrupted_run_leaves_a_table_of_what_there_is(suffix, rows, tmp_path):
    path = tmp_path / f"r.{suffix}"

    def run() -> None:
        with PredictionFile(path, PRINT) as file:
            for row in rows:
                file.add(row)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert os.listdir(tmp_path) == ([path.name] if rows else [])
    assert [row.path for row in read_rows(path)] == [row.path for row in rows]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_link_stays_and_modes_are_kept(suffix, tmp_path):
    target, link = tmp_path / f"of-{suffix}", tmp_path / f"r.{suffix}"
    link.symlink_to(target)
    write_rows(link, ROWS[:1])
    target.chmod(0o640)
    write_rows(link, [*ROWS[:1], ROWS[3]])
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert [row.path for row in read_rows(link)] == ["a.dcm", "d.dcm"]
    assert sorted(os.listdir(tmp_path)) == sorted([link.name, target.name])


def test_a_full_disk_is_one_sentence_and_the_rows_before_stay(tmp_path, monkeypatch):
    path = tmp_path / "r.csv"

    def write(handle: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    with PredictionFile(path, PRINT) as file:
        file.add(ROWS[0])
    with PredictionFile(path, PRINT) as file:
        monkeypatch.setattr("client.prediction_file.os.write", write)
        with pytest.raises(ArtifactError, match=r"Could not write .*r\.csv: No space left"):
            file.add(ROWS[1])
    monkeypatch.undo()
    assert "a.dcm" in [row.path for row in read_rows(path)]


def test_only_what_was_answered_and_is_unchanged_need_not_be_asked_again(tmp_path):
    image, report = tmp_path / "a.png", tmp_path / "a.txt"
    image.write_bytes(b"image")
    report.write_text("Normal.")
    case = CaseFile(image)
    answered = make_row(case.name, input_state=case.read_state())
    cases = {
        "answered": (answered, case, True),
        "refused": (replace(answered, status="refused", probabilities=(), decisions=()), case, False),
        "failed": (replace(answered, status="failed", probabilities=(), decisions=()), case, False),
        "changed": (replace(answered, input_state="5@1"), case, False),
        "gone when read": (replace(answered, input_state=""), case, False),
        "a report now": (answered, CaseFile(image, report), False),
        "another file": (answered, CaseFile(report), False),
    }
    for name, (row, asked, expected) in cases.items():
        with PredictionFile(tmp_path / f"{name}.jsonl", PRINT) as file:
            file.add(row)
            assert (file.find(asked) == row) is expected, name
            assert expected or file.find(asked) is None, name


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    "name",
    ["a\rb.dcm", "\r\n.dcm", " .dcm ", '"', ",", "=1+1.dcm", " | .dcm", "u\u2028\x85.dcm", "\\xff.dcm"],
)
def test_every_name_of_a_file_is_read_again(suffix, name, tmp_path):
    rows = [make_row(name, report=name), make_row("z.dcm", warnings=("One.", "Two."))]
    write_rows(tmp_path / f"r.{suffix}", rows)
    assert read_rows(tmp_path / f"r.{suffix}") == rows
