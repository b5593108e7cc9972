"""A folder or a file that has the name of one of our packages is named, with what to do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from contract.installation import HOME, PACKAGES, describe_shadowed, find_shadowed

ROOT = Path(__file__).resolve().parents[2]


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run cxr in a folder that python looks into first."""
    return subprocess.run(
        [sys.executable, "-m", "cxr", *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "400"},
    )


def test_this_installation_is_whole():
    assert (find_shadowed(), describe_shadowed(), HOME) == ({}, None, ROOT)


def test_every_package_of_the_wheel_is_looked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert set(PACKAGES) == {pattern.removesuffix("*") for pattern in patterns}


@pytest.mark.parametrize("name", ["training.py", "training/__init__.py"])
def test_doctor_names_what_shadows_a_package(name, tmp_path):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    done = run(tmp_path, "doctor", "--local", "--json")
    assert done.returncode == 0, done.stderr
    (check,) = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "packages"]
    assert check["ok"] is False
    expected = (
        rf"imports the package training from {tmp_path}/training\S*, but this installation is in {ROOT}: "
    )
    assert re.search(expected, check["detail"])


@pytest.mark.parametrize("command", [("doctor",), ("predict", "--report", "Normal.")])
def test_a_command_that_needs_a_shadowed_package_says_so(command, tmp_path):
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "__init__.py").write_text("")
    done = run(tmp_path, *command)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"Error: Python imports the package client from {tmp_path}/client, but" in done.stderr
