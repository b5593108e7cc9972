"""`cxr bench soak`, short: each event once. For real: `make chaos`, or with MINUTES=60."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.faults.events import EVENTS
from bench.faults.faults import BAD, CORRUPT, CUT, DISK, FULL, RESTART, SWAP
from bench.faults.overload import OVERLOAD

pytest.importorskip("pytriton")
pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.e2e, pytest.mark.alone]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(random_model, tmp_path_factory) -> tuple[Path, Path]:
    from export.publish import publish

    bundle, _ = random_model
    return bundle.path, publish(*random_model, tmp_path_factory.mktemp("soak") / "repository")


def run_soak(
    model: tuple[Path, Path], out: Path, *events: str
) -> tuple[subprocess.CompletedProcess[str], dict]:
    bundle, repository = model
    command = [sys.executable, "-m", "cxr", "bench", "soak", str(repository), "--bundle", str(bundle)]
    command += [
        "--minutes",
        "0",
        "--out",
        str(out),
        *(word for event in events for word in ("--only", event)),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=out.parent,
    )
    report = out / "soak.json"
    return done, json.loads(report.read_text()) if report.exists() else {}


def check(done: subprocess.CompletedProcess[str], report: dict, events: tuple[str, ...]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert [event["event"] for event in report["events"]] == [name for name in EVENTS if name in events]
    assert all(event["times"] == 1 and event["unrecovered"] == 0 for event in report["events"])
    assert report["good_answers"] > 100
    assert report["wrong_answers"] == 0
    assert report["untyped_errors"] == {}
    assert not report["bad_clients"]["wrong"]
    assert not report["bad_clients"]["unanswered"]
    assert not report["bad_clients"]["not_refused"]
    assert report["writes"] > 10
    assert not any(report["leftovers"].values())
    assert all(event["passed"] and event["lost_writes"] == 0 for event in report["events"])


@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    "ordered",
    [
        pytest.param(("kill Triton", BAD, SWAP), id="three events"),
        pytest.param(
            ("stop a python process for 1.5 s", "kill Triton", "kill the sidecar", BAD, SWAP),
            id="five events",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_clients_see_typed_errors_and_right_answers(ordered, model, tmp_path):
    done, report = run_soak(model, tmp_path / "out", *ordered)
    check(done, report, ordered)
    kill = next(event for event in report["events"] if event["event"] == "kill Triton")
    assert kill["errors"]["UnavailableError"] > 0
    assert 0 < kill["recovery_max_s"] < 60
    bad = report["bad_clients"]
    assert min(bad["good"], bad["refused"], bad["cut"]["ended"]) > 20
    table = (tmp_path / "out" / "soak.md").read_text()
    assert "| kill Triton | pass | 1 | " in table


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system and a network of its own need namespaces")
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "ordered",
    [
        pytest.param((FULL, DISK), id="full"),
        pytest.param(
            ("kill the sidecar", RESTART, CORRUPT, FULL, DISK, CUT), id="all", marks=pytest.mark.slow
        ),
    ],
)
def test_faults_of_memory_disk_and_network(ordered, model, tmp_path):
    before = set(os.listdir("/dev/shm"))
    done, report = run_soak(model, tmp_path / "out", *ordered)
    if report.get("skipped"):
        pytest.skip(f"not possible here: {report['skipped']}")
    check(done, report, ordered)
    for event in report["events"]:
        assert sum(event["errors"].values()) > 0, f"nobody noticed: {event['event']}"
    assert "cxr_soak_fill" not in set(os.listdir("/dev/shm")) - before


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_rows_of_overload(model, tmp_path):
    """The limits depend on the machine. That each row is measured, and that clients see only typed errors, does not."""
    done, report = run_soak(model, tmp_path / "out", OVERLOAD)
    assert done.returncode in (0, 4), done.stdout + done.stderr
    assert len(report["overload"]) == 3
    assert all(row["value"] is not None and all(row["conditions"].values()) for row in report["overload"])


def test_an_unknown_event_is_named(model, tmp_path):
    done, _ = run_soak(model, tmp_path / "out", "kill the cat")
    assert done.returncode == 2
    assert "There is no event 'kill the cat'. Choose from kill a python process" in " ".join(
        done.stderr.split()
    )
