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
# The demo on images of half the side, with a model of fewer layers and channels.
SMALL = """
import cli.demo
from training.config import toml_file
cli.demo.PHANTOM_SCALE = 0.06
load, changed = toml_file.load_config, {
    "model.image_size": 56, "model.image_patch": 4, "model.image_width": 16, "model.image_depths": [1, 1],
    "model.image_heads": [2, 2], "model.text_width": 32, "model.text_layers": 1, "model.text_heads": 2,
    "model.text_feedforward": 64, "model.width": 32, "model.fusion_heads": 2, "model.embedding_size": 16,
}
toml_file.load_config = lambda name, changes: load(name, {**changes, **changed})
"""
# A demo that finds what the fixture `trained` made of the same phantoms, instead of training and tracing for minutes.
TRAINED = """
import json, pathlib, shutil
import cli.demo, training.train
from export.graphs import from_torch
place = pathlib.Path(PLACE)
def train(_config, _table, out, **_options):
    shutil.copytree(place / "bundle", out)
    return training.train.TrainResult(out, json.loads((out / "metrics.json").read_text()))
def export_graphs(_bundle, out, _progress):
    shutil.copytree(place / "graphs", out, dirs_exist_ok=True)
    return {name: out / f"{name}.onnx" for name in from_torch.GRAPHS}
cli.demo.PHANTOM_SCALE = 0.08
training.train.train, from_torch.export_graphs = train, export_graphs
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
    [
        pytest.param("80", TRAINED, id="trained before"),
        pytest.param("100", "", id="whole", marks=pytest.mark.slow),
    ],
)
def test_the_whole_path_then_kept_up_until_ctrl_c(studies: str, before: str, trained, tmp_path: Path):
    given = ("--studies", studies, "--seed", "3", "--keep", "--out", str(tmp_path / "out"))
    process = start(tmp_path, *given, before=f"PLACE = {str(trained.table.parent)!r}\n{before}")
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
    process = start(tmp_path, "--studies", studies, "--out", str(tmp_path / "out"), before=SMALL)
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
