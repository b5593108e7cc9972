"""What `pip install .` brings: every file that the code reads, and a client that needs no torch."""

import json
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import tomllib

from contract.installation import PACKAGES
from training.data.rows import get_image, get_report

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built in a copy so that nothing is left here."""
    root = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "cxr.py"):
        shutil.copy(ROOT / name, root)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", "."]
    subprocess.run(command, check=True, cwd=root)
    return next((root / "dist").glob("*.whl"))


def test_wheel_holds_every_file_of_the_packages(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()]
    expected = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert len(expected) > 80
    assert not expected - held
    assert not [name for name in held if name.startswith(("tests/", "docker/"))]


def test_wheel_marks_every_typed_package(wheel):
    """What mypy checks here is checked where it is installed, too."""
    typed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["packages"]
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {"client", "contract", "retrieval", "serving"} <= set(typed)
    assert {name for name in PACKAGES if f"{name}/py.typed" in held} == set(typed) & set(PACKAGES)


@pytest.mark.slow
def test_plain_install_is_a_client_without_torch(wheel, stack, client, trained, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    bin_path = tmp_path / "env" / "bin"
    subprocess.run([bin_path / "pip", "install", "--quiet", wheel], check=True, cwd=tmp_path)
    listed = subprocess.run([bin_path / "pip", "list"], capture_output=True, text=True, check=True).stdout
    names = {line.split()[0].lower() for line in listed.splitlines()[2:]}
    assert not names & {"torch", "onnxruntime", "faiss-cpu", "nvidia-pytriton", "timm", "transformers"}
    row = next(row for row in trained.test_rows if row["image_paths"] and row["findings"])
    servers = ["--triton", stack.triton_url, "--json"]
    given = [str(get_image(row)), "--report", get_report(row)]

    def call(*arguments: str) -> dict:
        command = [bin_path / "cxr", *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    assert call("predict", *given, *servers)["kind"] == "study"
    found = call("search", *given, *servers, "--retrieval", stack.retrieval_url, "-k", "3")["cases"]
    assert len(found) == 3
