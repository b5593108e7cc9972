"""A run that is killed and one in two processes end as one that is left alone in one process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cli.app import app
from contract.bundle import load_bundle
from training.data.openi import read_table

# Beside others a process that trains takes long. A limit only ends a process that stands still.
LIMIT_S = 500

SETTINGS = (
    *(
        "model.image_size=56",
        "model.image_width=16",
        "model.image_depths=[1]",
        "model.image_heads=[2]",
        "model.image_stem=patch",
        "model.image_drop_path=0.0",
    ),
    *("model.text_width=32", "model.text_layers=1", "model.text_heads=2", "loop.precision=fp32"),
    *("loop.epochs=3", "loop.validate_every=1", "data.text_dropout=0.3"),
)


@pytest.fixture
def table(phantom_table: Path) -> Path:
    return phantom_table


def make_arguments(table: Path, out: Path, *more: str) -> list[str]:
    settings = [part for setting in (*SETTINGS, *more) for part in ("--set", setting)]
    return ["train", str(table), "--out", str(out), *settings, "--log-with", "none", "--json"]


def make_command(table: Path, out: Path, *more: str, launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launcher, "-m", "cxr", *make_arguments(table, out, *more)]


def write_split(table: Path, path: Path) -> Path:
    """Write a split by patient of which the validation part is large enough for scores."""
    rows = read_table(table, ["study_id", "patient_id"]).to_pylist()
    patients = sorted({row["patient_id"] for row in rows})
    ends = {"train": patients[: len(patients) // 2], "test": patients[-5:]}
    split: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        part = next((part for part, members in ends.items() if row["patient_id"] in members), "validation")
        split[part].append(row["study_id"])
    path.write_text(json.dumps(split))
    return path


def run(command: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def run_here() -> Iterator[Callable[[list[str]], None]]:
    """A function that runs a command in this process, on one thread as the processes have: it is loaded already."""

    def run(arguments: list[str]) -> None:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run
    torch.set_num_threads(threads)


def read_epochs(run_directory: Path) -> list[dict]:
    return [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "more",
    [
        (),
        # test_train breaks a run with an average off in one process.
        pytest.param(("optimizer.ema_decay=0.9",), marks=pytest.mark.slow),
    ],
    ids=["plain", "average"],
)
def test_a_run_killed_in_its_second_epoch_ends_with_the_same_weights(table, run_here, tmp_path, more):
    run_here(make_arguments(table, tmp_path / "straight", *more))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(
        make_command(table, tmp_path / "killed", *more), stdout=subprocess.DEVNULL, env=environment
    )
    first = tmp_path / "killed.run" / "checkpoint-1"
    deadline = time.monotonic() + LIMIT_S
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    assert not (tmp_path / "killed").exists()
    run_here([*make_arguments(table, tmp_path / "killed", *more), "--resume"])
    straight, resumed = (load_bundle(tmp_path / name) for name in ("straight", "killed"))
    assert resumed.fingerprint == straight.fingerprint
    losses = [
        [epoch["loss"] for epoch in read_epochs(tmp_path / f"{name}.run")] for name in ("straight", "killed")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


def test_two_processes_train_as_one_does(table, run_here, tmp_path):
    """Without dropout, which is drawn in every process by itself; batches of 31 of which one process gets one more."""
    plain = ("model.dropout=0.0", "loop.batch_size=31", "data.text_dropout=0.0")
    split = ("--split-file", str(write_split(table, tmp_path / "split.json")))
    run_here([*make_arguments(table, tmp_path / "one", *plain), *split])
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    run([*make_command(table, tmp_path / "two", *plain, launcher=launcher), *split])
    one, two = (read_epochs(tmp_path / f"{name}.run") for name in ("one", "two"))
    assert len(one) == len(two) == 3
    for ours, theirs in zip(one, two, strict=True):
        assert ours["losses"].keys() == theirs["losses"].keys()
        for name, value in ours["losses"].items():
            assert theirs["losses"][name] == pytest.approx(value, rel=2e-3), name
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=2e-3)
        assert ours["validation"]
        for name, value in ours["validation"].items():
            assert theirs["validation"][name] == pytest.approx(value, abs=0.03), name
    assert load_bundle(tmp_path / "two").config == load_bundle(tmp_path / "one").config
