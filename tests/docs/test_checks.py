"""What runs before a commit, on GitHub and in `make check` is the same."""

import re
from pathlib import Path

import tomllib
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def read_extra(name: str) -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {entry.name: entry for entry in map(Requirement, project["optional-dependencies"][name])}


def test_the_hooks_use_a_ruff_that_the_dev_extra_allows():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["id"] for hook in repo["hooks"]] == ["ruff-check", "ruff-format"]
    assert repo["rev"].removeprefix("v") in read_extra("dev")["ruff"].specifier


def test_the_workflow_runs_what_any_machine_runs():
    (job,) = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text())["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "make check"


def test_check_builds_the_documentation_and_a_warning_ends_it():
    makefile = (ROOT / "Makefile").read_text()
    (check,) = re.findall(r"^check:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    assert "\t$(DOCS)\n" in check
    assert re.search(r"^strict: true$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert "docs" in read_extra("dev")["cxr-serving"].extras


def test_the_site_loads_nothing_from_elsewhere():
    settings = (ROOT / "mkdocs.yml").read_text()
    assert re.search(r"^  font: false$", settings, flags=re.MULTILINE)
    assert not re.search(r"mermaid|^ +- offline|https?:", settings, flags=re.MULTILINE)  # both load scripts
