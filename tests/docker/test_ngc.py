"""What names a release of NVIDIA's Triton image is held to the one list, `contract.ngc`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from contract import ngc

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def read_project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_list_is_in_order_and_goes_from_the_oldest_to_the_default():
    tags = [release.tag for release in ngc.RELEASES]
    assert tags == sorted(set(tags))
    assert (ngc.OLDEST.tag, ngc.DEFAULT.tag) == ("25.07", "26.07") == (tags[0], tags[-1])
    versions = [[int(x) for x in release.onnxruntime.split(".")] for release in ngc.RELEASES]
    assert versions == sorted(versions)
    assert tuple(versions[0]) >= ngc.OLDEST_ONNXRUNTIME
    assert ngc.DEFAULT.image == "nvcr.io/nvidia/tritonserver:26.07-py3"


def test_the_dockerfile_builds_on_the_default_release():
    text = (ROOT / "docker" / "triton.Dockerfile").read_text()
    release = re.search(r"^ARG NGC_RELEASE=(\S+)$", text, flags=re.MULTILINE).group(1)
    (base,) = re.findall(r"^FROM (\S+)$", text, flags=re.MULTILINE)
    assert base.replace("${NGC_RELEASE}", release) == ngc.DEFAULT.image
    assert re.findall(r"NGC_RELEASE=(\d\S+)", text) == [ngc.OLDEST.tag, ngc.DEFAULT.tag]


def test_compose_builds_on_the_default_release():
    text = (ROOT / "docker" / "compose.yaml").read_text()
    assert re.findall(r"NGC_RELEASE: \$\{NGC_RELEASE:-([\d.]+)\}", text) == [ngc.DEFAULT.tag]


def test_documents_name_the_range():
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in DOCUMENTS}
    known = {release.tag for release in ngc.RELEASES}
    for name, text in texts.items():
        assert set(re.findall(r"NGC (\d\d\.\d\d)", text)) <= known, name
    span = f"{ngc.OLDEST.tag} to {ngc.DEFAULT.tag}"
    for name in ("README.md", "docs/containers.md"):
        assert f"NGC {span}" in texts[name]
    row = re.compile(r"^\| (\d\d\.\d\d) \| (\S+) \| (\S+) \| (\S+) \|$", flags=re.MULTILINE)
    listed = [ngc.NgcRelease(*cells) for cells in row.findall(texts["docs/containers.md"])]
    assert tuple(listed) == ngc.RELEASES
    assert f"Python {ngc.PYTHON}" in texts["docs/containers.md"]
    assert f"numpy {ngc.NUMPY[0]}" in texts["docs/containers.md"]


def test_the_packages_ask_for_an_onnxruntime_that_runs_the_graphs():
    oldest = ".".join(map(str, ngc.OLDEST_ONNXRUNTIME))
    extras = read_project()["optional-dependencies"]
    for extra in ("export", "cpu", "gpu"):
        found = [x for x in extras[extra] if re.match(r"onnxruntime(-gpu)?>", x)]
        assert [x.partition(">=")[2] for x in found] == [oldest], extra


def test_the_image_may_install_either_numpy():
    """The images come with 1.26, and wheels of today bring 2."""
    project = read_project()
    wanted = [*project["dependencies"], *project["optional-dependencies"]["triton"]]
    assert [x for x in wanted if x.startswith("numpy")] == [f"numpy>={ngc.NUMPY[0]}"]


@pytest.mark.slow
def test_there_are_wheels_for_the_python_of_the_images(tmp_path: Path):
    """The image has no compiler: what the extra `triton` asks for must be there as wheels for its Python."""
    project = read_project()
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["image"], *extras["triton"]]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--only-binary=:all:"]
    command += ["--python-version", ngc.PYTHON, "--target", str(tmp_path)]
    packages = [x for x in wanted if not x.startswith("cxr-serving")]
    result = subprocess.run([*command, *packages], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
