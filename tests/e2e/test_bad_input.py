"""Every way in which a user meets bad input at the command line: one sentence, the right exit code, nothing left."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from training.data.rows import get_image

DISK_BYTES = 1_000_000  # smaller than any graph


def run(*arguments: str, cwd: Path, limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run `cxr` as a user does; `limit_bytes` caps the size of every file that it writes, as a quota does."""

    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    command = [sys.executable, "-m", "cxr", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, preexec_fn=limit, timeout=180
    )


def expect_refusal(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert result.returncode == code, result.stderr
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
    expect_refusal(run(command, *given, *servers, cwd=tmp_path), 2, word)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["PDF named .dcm", "empty report"])
def test_explain_refuses_bad_input(name, trained, image, tmp_path):
    make_files(tmp_path, image)
    before = sorted(tmp_path.iterdir())
    result = run("explain", *BAD_INPUTS[name][0], "--bundle", str(trained.bundle.path), cwd=tmp_path)
    expect_refusal(result, 2)
    assert sorted(tmp_path.iterdir()) == before


def test_a_wrong_port(tmp_path):
    expect_refusal(
        run("predict", "--report", "Normal.", "--triton", "127.0.0.1:9", cwd=tmp_path), 4, "cxr serve"
    )


def test_a_bundle_whose_file_was_changed(trained, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(trained.bundle.path, bundle)
    with (bundle / "labels.json").open("a") as file:
        file.write(" ")
    for command in (
        ("explain", "--report", "Normal.", "--bundle", "bundle"),
        ("export", "bundle", "--table", str(trained.table), "--repository", "repository"),
    ):
        expect_refusal(run(*command, cwd=tmp_path), 3, "labels.json", "changed")
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
    expect_refusal(run(*arguments, cwd=tmp_path, limit_bytes=DISK_BYTES), 3, "Could not write")
    assert not list(tmp_path.iterdir())
