"""What a person types becomes what the client takes."""

from pathlib import Path

import pytest

from cli.inputs import read_image, read_report, read_split, require_input
from contract.errors import ConfigError, ImageError, ReportError


def test_report_is_a_file_or_the_text_itself(tmp_path: Path):
    file = tmp_path / "report.txt"
    file.write_text("Small effusion.")
    assert read_report(str(file)) == b"Small effusion."
    assert read_report("Small effusion.") == b"Small effusion."
    assert read_report("x" * 5000) == b"x" * 5000
    assert read_report("line one\nline two") == b"line one\nline two"
    assert read_report(None) is None


def test_a_missing_report_file_is_not_taken_for_text(tmp_path: Path):
    with pytest.raises(ReportError, match="no report file"):
        read_report(str(tmp_path / "missing.xml"))


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


def test_split_file(tmp_path: Path):
    file = tmp_path / "split.json"
    file.write_text('{"train": ["CXR1"]}')
    assert read_split(file, "train") == ["CXR1"]
    for content, message in (('{"train": []}', "names no study for train"), ("[]", "not a split file")):
        file.write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_split(file, "train")
