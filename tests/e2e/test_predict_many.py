"""`cxr predict` of many files on the real servers: killed, interrupted, gone on with, and equal to one file alone."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from contract.labels import LABEL_KEYS
from training.data.rows import get_image

ROOT = Path(__file__).parents[2]
COUNT = 150


@pytest.fixture
def folder(trained, tmp_path: Path) -> Path:
    return fill_folder(trained, tmp_path)


def fill_folder(trained, place: Path) -> Path:
    images = [get_image(row) for row in [*trained.train_rows, *trained.test_rows] if row["image_paths"]]
    (place / "scans").mkdir()
    for number in range(COUNT):
        shutil.copyfile(images[number % len(images)], place / "scans" / f"{number:03}")
    (place / "scans" / "007").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    for path in (place / "scans").iterdir():
        os.utime(path, ns=(10**18, 10**18))  # the journal knows a file by its size and time
    return place


def start(folder: Path, stack, *arguments: str, **settings) -> subprocess.Popen[str]:
    # Ctrl-C reaches a process that a shell started in the foreground; one of a script in the background ignores it.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import cxr; cxr.main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "predict", *arguments, "--triton", stack.triton_url],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **{"text": True, **settings},
    )


def finish(process: subprocess.Popen[str], given=None) -> tuple[int, str, str]:
    said, errors = process.communicate(given, timeout=120)
    return process.returncode, said, errors


def count_lines(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(trained, stack, client, tmp_path_factory) -> list[dict[str, str]]:
    """The rows of a run that nobody stopped."""
    folder = fill_folder(trained, tmp_path_factory.mktemp("whole"))
    assert finish(start(folder, stack, "scans", "--out", "whole.csv"))[0] == 2  # one file is broken
    return read_table(folder / "whole.csv")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_stopped_goes_on_and_ends_as_one_that_was_not(number, folder, whole, stack):
    process = start(folder, stack, "scans", "--out", "r.csv")
    journal = folder / "r.csv.partial.jsonl"
    while count_lines(journal) < 20:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(number)
    code, _, errors = finish(process)
    if number == signal.SIGKILL:
        assert code == -9
        done = count_lines(journal)
        with journal.open("ab") as file:
            file.write(b'{"path": "scans/1')  # as a kill in the middle of a write leaves it
    else:
        assert code == 130
        assert "Repeat the command to continue r.csv" in errors
        assert "Traceback" not in errors
        done = len(read_table(folder / "r.csv"))
    assert 20 <= done < COUNT
    code, said, errors = finish(start(folder, stack, "scans", "--out", "r.csv"))
    assert code == 2, errors
    assert f"{COUNT - 1} predicted, 1 refused" in said
    kept = int(said.split(" of them from an earlier run")[0].split()[-1])
    assert done - 2 <= kept <= done  # the broken file is asked again, and a line may have been torn
    for row, expected in zip(read_table(folder / "r.csv"), whole, strict=True):
        assert {name: row[name] for name in row if name not in LABEL_KEYS} == {
            name: expected[name] for name in expected if name not in LABEL_KEYS
        }
        assert [float(row[key] or -1) for key in LABEL_KEYS] == pytest.approx(
            [float(expected[key] or -1) for key in LABEL_KEYS], abs=2e-6
        )
    assert not journal.exists()


def test_many_answer_as_one_does(folder, stack, client):
    names = [f"scans/{place:03}" for place in range(4)]
    code, _, _ = finish(start(folder, stack, "-", "--out", "r.csv", stdin=subprocess.PIPE), "\n".join(names))
    assert code == 0
    for row in read_table(folder / "r.csv"):
        prediction = client.predict((folder / row["path"]).read_bytes())
        for finding in prediction.findings:
            assert float(row[finding.key]) == pytest.approx(finding.probability, abs=2e-6)
            assert row[f"{finding.key}_decision"] == finding.decision
        assert row["fingerprint"] == prediction.fingerprint


def test_an_image_on_standard_input_is_still_one_case(folder, stack, client):
    image = (folder / "scans" / "000").read_bytes()
    code, said, errors = finish(start(folder, stack, "-", stdin=subprocess.PIPE, text=False), image)
    assert code == 0, errors
    assert "Probability" in said.decode()
    code, _, errors = finish(start(folder, stack, "-", "scans", stdin=subprocess.PIPE, text=False), image)
    assert code == 2
    assert "one case" in errors.decode()
