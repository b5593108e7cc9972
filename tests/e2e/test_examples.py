"""Each example runs as it is written, against the running servers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

from contract.labels import LABEL_KEYS
from training.data.rows import get_image

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.e2e


def run(name: str, *arguments: object, triton: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CXR_TRITON": triton},
    )


@pytest.fixture
def image(trained) -> Path:
    return get_image(next(row for row in trained.test_rows if row["image_paths"]))


def test_plain_tritonclient_gets_the_answer_of_the_client(image, stack, client):
    report = "Large right pleural effusion."
    done = run("predict_with_tritonclient.py", image, report, triton=stack.triton_url)
    assert done.returncode == 0, done.stderr
    shown = [line for line in done.stdout.splitlines() if not line.startswith("Warning: ")]
    expected = [finding for finding in client.predict(image, report).findings if finding.present]
    assert [line.rpartition(": ")[0] for line in shown] == [finding.name for finding in expected]


def test_an_event_loop_gets_the_answer_of_the_client(image, stack, client, tmp_path):
    (tmp_path / "b.dcm").write_bytes(b"no radiograph")
    done = run(
        "predict_in_event_loop.py", image, tmp_path / "b.dcm", triton=f"{stack.triton_url},{stack.triton_url}"
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    expected = [finding.name for finding in client.predict(image).findings if finding.present]
    assert first == f"{image}: {', '.join(expected) or 'nothing present'}"
    assert "not a DICOM, PNG or JPEG image" in second


def test_a_folder_becomes_a_row_for_each_file(image, stack, client, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(image.read_bytes())
    (folder / "b.dcm").write_bytes(b"no radiograph")
    done = run("predict_folder_to_parquet.py", folder, tmp_path / "out.parquet", triton=stack.triton_url)
    assert done.returncode == 0, done.stderr
    good, bad = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [Path(row["path"]).name for row in (good, bad)] == ["a.dcm", "b.dcm"]
    assert good["error"] is None
    assert bad["error"]
    assert bad["normal"] is None
    expected = {finding.key: finding.probability for finding in client.predict(image).findings}
    assert {key: good[key] for key in LABEL_KEYS} == pytest.approx(expected, abs=1e-5)


def test_every_example_is_listed_and_run():
    names = {path.name for path in EXAMPLES.glob("*.py")}
    listed = (EXAMPLES / "README.md").read_text()
    tests = Path(__file__).read_text()
    assert names
    assert all(f"({name})" in listed and f'"{name}"' in tests for name in names)
