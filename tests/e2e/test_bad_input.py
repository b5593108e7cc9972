"""Every way in which a user meets bad input at the command line: one sentence, the right exit code, nothing left."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from training.data.rows import get_image

DISK_BYTES = 1_000_000  # smaller than any graph


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in the folder of the test."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: str):
    """Run `cxr` in this process, which has loaded what commands import."""
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


@contextmanager
def full_disk(limit_bytes: int) -> Iterator[None]:
    """Make the operating system refuse to write files beyond a size, as it does when a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def expect_refusal(result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def image(trained) -> Path:
    return next(get_image(row) for row in trained.test_rows if row["image_paths"])


def make_files(directory: Path, image: Path) -> None:
    (directory / "truncated.dcm").write_bytes(image.read_bytes()[:2000])
    (directory / "letter.dcm").write_bytes(b"%PDF-1.7\n" + b"0" * 500)
    (directory / "long.txt").write_text("opacity " * 10_000)
    (directory / "broken.xml").write_text("<eCitation><MedlineCitation>")


BAD_INPUTS = {
    "truncated DICOM": (("truncated.dcm",), "preprocess_image"),
    "PDF named .dcm": (("letter.dcm",), "PDF"),
    "empty report": (("--report", ""), "preprocess_text"),
    "report of 10,000 words": (("--report", "long.txt"), "preprocess_text"),
    "broken XML": (("--report", "broken.xml"), "preprocess_text"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
@pytest.mark.parametrize("command", ["predict", "search"])
def test_served_commands_refuse_bad_input(command, name, stack, image, tmp_path):
    make_files(tmp_path, image)
    before = sorted(tmp_path.iterdir())
    given, word = BAD_INPUTS[name]
    servers = [
        "--triton",
        stack.triton_url,
        *(["--retrieval", stack.retrieval_url] if command == "search" else []),
    ]
    expect_refusal(run(command, *given, *servers), 2, word)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["PDF named .dcm", "empty report"])
def test_explain_refuses_bad_input(name, trained, image, tmp_path):
    make_files(tmp_path, image)
    before = sorted(tmp_path.iterdir())
    result = run("explain", *BAD_INPUTS[name][0], "--bundle", str(trained.bundle.path))
    expect_refusal(result, 2)
    assert sorted(tmp_path.iterdir()) == before


def test_a_wrong_port():
    """As a process, as a user runs it: its exit code and its output are those of the command in the other tests."""
    given = ("predict", "--report", "Normal.", "--triton", "127.0.0.1:9")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"}
    command = [sys.executable, "-m", "cxr", *given]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    here = run(*given)
    expect_refusal(here, 4, "cxr serve")
    assert (ended.returncode, ended.stdout, ended.stderr) == (here.exit_code, here.stdout, here.stderr)


def test_a_bundle_whose_file_was_changed(trained, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(trained.bundle.path, bundle)
    with (bundle / "labels.json").open("a") as file:
        file.write(" ")
    for command in (
        ("explain", "--report", "Normal.", "--bundle", "bundle"),
        ("export", "bundle", "--table", str(trained.table), "--repository", "repository"),
    ):
        expect_refusal(run(*command), 3, "labels.json", "changed")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_full_disk_while_publishing(trained, tmp_path):
    arguments = (
        "export",
        str(trained.bundle.path),
        "--table",
        str(trained.table),
        "--repository",
        "repository",
    )
    with full_disk(DISK_BYTES):
        result = run(*arguments)
    expect_refusal(result, 3, "Could not write")
    assert not list(tmp_path.iterdir())
