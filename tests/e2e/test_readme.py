"""What the README shows is run: its commands and its Python example, against the running servers."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.demo import write_examples
from contract.training_data import PHANTOM_WARNING
from training.data.cache import fill_cache
from training.data.rows import has_text

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Need data, hardware or time that a test has not: what they call is tested elsewhere.
NOT_RUN = ("cxr demo", "cxr data table NLMCXR", "cxr train", "cxr export", "cxr serve")
# Takes a minute; test_evaluate.py runs it with fewer resamples.
SLOW = ("cxr evaluate",)


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


@pytest.fixture
def servers(stack, client) -> dict[str, str]:
    """The variables that tell a command the addresses of the running servers."""
    return {"CXR_TRITON": stack.triton_url, "CXR_RETRIEVAL": stack.retrieval_url}


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, marks=pytest.mark.slow if line.startswith(SLOW) else ())
        for line in find_commands()
        if not line.startswith(NOT_RUN)
    ],
)
def test_command_works_as_written(line, place, servers, monkeypatch):
    """In this process, which has loaded what commands import."""
    if "--cache cache" in line:  # of the size that the small model reads
        fill_cache(place / "studies.parquet", place / "cache", size=112)
    monkeypatch.chdir(place)
    ended = CliRunner().invoke(app, shlex.split(line)[1:], env=servers)
    assert ended.exit_code == 0, ended.stderr
    assert ended.stdout


def test_the_first_question_works_as_a_process(place, servers):
    line = next(line for line in find_commands() if line.startswith("cxr predict"))
    assert run([sys.executable, "-m", *shlex.split(line)], place, **servers)


@pytest.mark.parametrize("line", [line for line in find_commands() if line.startswith((*NOT_RUN, *SLOW))])
def test_every_option_of_the_other_commands_exists(line):
    words = shlex.split(line)
    sub_commands = [word for word in words[1:3] if re.fullmatch(r"[a-z]+", word)]
    sub_commands = sub_commands[: 2 if sub_commands[0] == "data" else 1]
    shown = CliRunner().invoke(app, [*sub_commands, "--help"], env={"COLUMNS": "200"}).stdout
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
