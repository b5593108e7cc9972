"""What a person types becomes what the client takes."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.inputs import read_image, read_report, require_input
from contract.errors import ConfigError, ImageError, InputError, ReportError


def test_report_is_a_file_or_the_text_itself(tmp_path: Path):
    file = tmp_path / "report.txt"
    file.write_text("Small effusion.")
    assert read_report(str(file)) == b"Small effusion."
    assert read_report("Small effusion.") == b"Small effusion."
    assert read_report("x" * 5000) == b"x" * 5000
    assert read_report("line one\nline two") == b"line one\nline two"
    assert read_report(None) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("missing.xml", "names a file that does not exist"),
        ("my report.txt", "names a file that does not exist"),
        ("x.pdf", "names a file that does not exist"),
        ("/dev/fd/6399", "names a file that does not exist"),
        ("/data/reports/12", "names a file that does not exist"),
        ("folder", "names a folder"),
        ("folder/12", "names a file that does not exist"),
        ("there.pdf", "is a PDF: a report must be text or Open-i XML"),
        ("there.dcm", "has the suffix of an image"),
    ],
)
def test_what_names_a_file_and_is_no_report_is_never_scored(value, words, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("there.pdf", "there.dcm"):
        (tmp_path / name).write_bytes(b"%PDF-1.7")
    with pytest.raises(ReportError, match=words) as caught:
        read_report(value)
    assert "\n" not in str(caught.value)


def test_text_of_an_argument_that_is_not_utf_8_keeps_its_bytes():
    assert read_report("Gr\udcf6\udcdfe normal.") == b"Gr\xf6\xdfe normal."


READ = "import sys; from cli.inputs import read_report; sys.stdout.buffer.write(read_report(sys.argv[1]))"


@pytest.mark.parametrize("argument", ["<(printf Clear.)", "/dev/stdin", "-", "/dev/fd/0", "report.pipe"])
def test_pipes_are_read_as_files(argument, tmp_path: Path):
    """As a shell gives them: process substitution, standard input by its names, a named pipe."""
    reading = f"printf Clear. | '{sys.executable}' -c '{READ}' {argument}"
    if argument == "report.pipe":
        reading = f"mkfifo report.pipe; printf Clear. > report.pipe & {reading}"
    result = subprocess.run(
        ["bash", "-c", reading],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=60,
    )
    assert result.stdout == b"Clear.", result.stderr


@pytest.mark.parametrize("read", [lambda: read_image(Path("-")), lambda: read_report("-")])
def test_standard_input_has_a_limit(read, monkeypatch):
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            assert 0 < size < 2**29
            return bytes(size)

    monkeypatch.setattr("sys.stdin", type("Input", (), {"buffer": Endless()}))
    with pytest.raises(InputError, match="Standard input is larger than"):
        read()


def test_a_huge_report_file_is_refused(tmp_path: Path):
    file = tmp_path / "report.txt"
    file.write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(ReportError, match="larger than 1 MB"):
        read_report(str(file))


def test_missing_image_and_missing_input(tmp_path: Path):
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "missing.dcm")
    with pytest.raises(ConfigError, match="--report"):
        require_input(None, None)
