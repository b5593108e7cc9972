"""What the README shows is run: its commands and its Python example, against the running servers."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.demo import write_examples
from contract.training_data import PHANTOM_WARNING
from training.data.cache import fill_cache
from training.data.rows import has_text

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Need data, hardware or time that a test has not: what they call is tested elsewhere.
NOT_RUN = ("cxr demo", "cxr data table NLMCXR", "cxr train", "cxr export", "cxr serve")


def find_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def find_commands() -> list[str]:
    lines = "\n".join(find_blocks("bash")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.startswith("cxr ")]


@pytest.fixture
def place(trained, tmp_path: Path) -> Path:
    """A directory that holds the files the README names."""
    demo = tmp_path / "demo-output"
    demo.mkdir()
    mode = trained.bundle.config["text_mode"]
    write_examples(demo, next(row for row in trained.test_rows if row["image_paths"] and has_text(row, mode)))
    (demo / "bundle").symlink_to(trained.bundle.path)
    (demo / "phantom").symlink_to(trained.table.parent / "phantom")
    (tmp_path / "studies.parquet").symlink_to(trained.table)
    shutil.copytree(trained.bundle.path, tmp_path / "bundle")
    return tmp_path


def run(command: list[str], place: Path, **environment: str) -> str:
    result = subprocess.run(
        command,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("line", [line for line in find_commands() if not line.startswith(NOT_RUN)])
def test_command_works_as_written(line, place, stack, client):
    if "--cache cache" in line:  # of the size that the small model reads
        fill_cache(place / "studies.parquet", place / "cache", size=112)
    servers = {"CXR_TRITON": stack.triton_url, "CXR_RETRIEVAL": stack.retrieval_url}
    assert run([sys.executable, "-m", *shlex.split(line)], place, **servers)


@pytest.mark.parametrize("line", [line for line in find_commands() if line.startswith(NOT_RUN)])
def test_every_option_of_the_other_commands_exists(line):
    words = shlex.split(line)
    sub_commands = [word for word in words[1:3] if re.fullmatch(r"[a-z]+", word)]
    sub_commands = sub_commands[: 2 if sub_commands[0] == "data" else 1]
    shown = run([sys.executable, "-m", "cxr", *sub_commands, "--help"], ROOT, COLUMNS="200")
    for word in words:
        if word.startswith("--"):
            assert re.search(rf"{word}\b", shown), word


def test_python_example_works_as_written(place, stack, client):
    (example,) = find_blocks("python")
    example = example.replace("127.0.0.1:8001", stack.triton_url).replace(
        "127.0.0.1:8005", stack.retrieval_url
    )
    findings, *warnings, _, _, _ = run([sys.executable, "-c", example], place).splitlines()  # and three cases
    assert findings.startswith("[")
    assert f"Warning: {PHANTOM_WARNING}" in warnings


def find_demo_files() -> set[str]:
    """Return the paths below demo-output that the README's examples name."""
    return set(
        re.findall(r"demo-output/([\w./-]*\w)", "\n".join([*find_blocks("bash"), *find_blocks("python")]))
    )


def test_the_examples_name_files_of_the_demo_or_of_the_real_collection():
    """`tests/e2e/test_demo.py` sees that the demo leaves them."""
    assert {"chest.dcm", "report.txt", "bundle", "phantom/dicom"} <= find_demo_files()
    named = re.findall(r"[\w./-]+\.(?:dcm|txt|png|csv|xml|jpe?g)\b", "\n".join(find_blocks("bash")))
    written = {"results.csv", "why.png"}
    assert {name for name in named if not name.startswith("demo-output/")} == written


def test_the_environment_is_said():
    assert "source .venv/bin/activate" in README


def test_the_two_commands_are_targets_of_the_makefile():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = [
        line.split()[1]
        for block in find_blocks("bash")
        for line in block.splitlines()
        if line.startswith("make ")
    ]
    assert named[:2] == ["demo", "test"]
    assert set(named) <= set(targets)
