"""`cxr demo` as a user runs it, on a small data set: to the end, kept up, and interrupted."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.faults.served_process import wait_for
from client import CxrClient
from contract.training_data import PHANTOM_WARNING

ROOT = Path(__file__).parents[2]


# A session of its own, so that a signal to its group is what Ctrl-C is in a terminal.
COMMAND = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import cxr; cxr.main()"
# The demo trains for 32 epochs. After one it goes on as after 32.
ONE_EPOCH = """
from training.config import toml_file
load = toml_file.load_config
toml_file.load_config = lambda name, changes: load(name, {**changes, "loop.epochs": 1})
"""


def start(place: Path, *arguments: str, before: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-c", before + COMMAND, "demo", *arguments],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"},
    )


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Return what the process printed up to a line with the words."""
    text = ""
    for line in process.stdout:
        text += line
        if words in line:
            return text
    pytest.fail(f"the demo ended without saying {words!r}:\n{text}")


def find_processes(place: Path) -> list[str]:
    """Return the command lines that name the directory."""
    return [line for entry in Path("/proc").glob("[0-9]*") if str(place) in (line := read_command(entry))]


def read_command(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it has ended


@pytest.mark.parametrize(
    ("studies", "before"),
    [pytest.param(80, ONE_EPOCH, id="one epoch"), pytest.param(100, "", id="whole", marks=pytest.mark.slow)],
)
def test_the_whole_path_then_kept_up_until_ctrl_c(studies: int, before: str, tmp_path: Path):
    out = tmp_path / "out"
    process = start(tmp_path, "--studies", str(studies), "--keep", "--out", str(out), before=before)
    try:
        text = read_until(process, "cxr search")
        triton, retrieval = re.findall(r"--triton (\S+) --retrieval (\S+)", text)[0]
        with CxrClient(triton, retrieval) as client:
            assert client.predict(report="Large right pleural effusion.").kind == "text"
            assert len(client.search(report="Large right pleural effusion.", k=5)) == 5
        assert find_processes(tmp_path)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130, rest
    assert "Stopped." in rest
    assert not find_processes(tmp_path)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["indexed"] > 50
    assert summary["parity"]["passed"]
    assert set(summary["metrics"]["test"]) == {"study", "image", "text"}
    page = (tmp_path / "out" / "report.html").read_text()
    for words in ("Findings", "Similar cases", "Integrated Gradients", "never a diagnosis", PHANTOM_WARNING):
        assert words in page
    readme = (ROOT / "README.md").read_text()
    for name in set(re.findall(r"demo-output/([\w./-]*\w)", readme)):
        assert (tmp_path / "out" / name).exists(), f"the README names demo-output/{name}"
    assert PHANTOM_WARNING in text
    assert re.findall(r"^\[ (\d)/9\]", text, flags=re.MULTILINE) == [str(number) for number in range(1, 10)]


@pytest.mark.parametrize(
    ("studies", "begun"),
    [("600", ".phantom*/**/*.dcm"), ("60", "bundle.run/metrics.jsonl")],
    ids=["drawing", "training"],
)
def test_ctrl_c_in_the_middle_leaves_no_process(studies, begun, tmp_path: Path):
    """While drawing (its own processes) and, after the tables were read, while training."""
    process = start(tmp_path, "--studies", studies, "--out", str(tmp_path / "out"))
    assert wait_for(lambda: any((tmp_path / "out").glob(begun)), 200)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130, rest
    assert "Stopped." in rest
    assert "Traceback" not in rest
    assert not find_processes(tmp_path)
    assert not [
        path
        for path in (tmp_path / "out").iterdir()
        if path.name.startswith((".phantom", ".bundle")) or path.name == "bundle"
    ]


def test_a_failure_stops_with_a_sentence(tmp_path: Path):
    """Reports that are not there, and an archive that is none."""
    reports = tmp_path / "broken.tgz"
    for words in ("The report file", "cannot be read"):
        process = start(tmp_path, "--reports", str(reports), "--out", str(tmp_path / "out"))
        said = process.communicate(timeout=60)[0]
        assert process.returncode == 2
        assert words in said
        assert "broken.tgz" in said
        assert "Traceback" not in said
        reports.write_bytes(b"no archive")
