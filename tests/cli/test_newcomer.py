"""What a newcomer types first: no command, -h, --version, make."""

import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app

ROOT = Path(__file__).parents[2]
GROUPS = ("", "data", "train", "export", "bench")


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def list_commands() -> list[str]:
    """Return every command and group as it is typed, the commands without a name left out."""
    from typer.main import get_command

    def walk(command, words):
        yield " ".join(words)
        for name, child in getattr(command, "commands", {}).items():
            if not child.hidden:
                yield from walk(child, [*words, name])

    return list(walk(get_command(app), []))


@pytest.mark.parametrize("command", list_commands())
def test_short_and_long_help_are_the_same_everywhere(command):
    short, long = (run(*command.split(), option) for option in ("-h", "--help"))
    assert (short.exit_code, long.exit_code) == (0, 0)
    assert short.output == long.output
    assert "Usage" in short.output


def test_there_are_commands_and_groups():
    assert {"predict", "train", "train compare", "bench run", *GROUPS} <= set(list_commands())


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_without_a_command_shows_its_help_and_is_a_wrong_call(group):
    alone, helped = run(*group.split()), run(*group.split(), "-h")
    assert alone.exit_code == 2
    assert alone.output.split() == helped.output.split()


@pytest.mark.parametrize("words", ["missing.parquet -h", "missing.parquet --out b -h"])
def test_help_behind_the_arguments_of_the_command_without_a_name(words):
    result = run("train", *words.split())
    assert result.exit_code == 0
    assert "--resume" in result.output


def test_version_is_one_line_for_a_bug_report():
    result = run("--version")
    assert result.exit_code == 0
    assert result.output == (
        f"cxr-serving {version('cxr-serving')}, Python {platform.python_version()}, {platform.platform()}\n"
    )


def test_version_of_a_tree_that_is_not_installed(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def read_version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("cli.options.version", read_version)
    assert run("--version").output.startswith("cxr-serving (not installed), Python 3")


@pytest.mark.parametrize("goal", [(), ("help",)])
def test_make_alone_lists_every_target_in_one_line(goal):
    done = subprocess.run(["make", "--no-print-directory", *goal], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    listed = [line.split()[1] for line in lines]
    makefiles = "".join((ROOT / name).read_text() for name in ("Makefile", "results.mk"))
    phony = re.findall(r"^\.PHONY: (.*)$", makefiles, flags=re.MULTILINE)
    assert sorted(listed) == sorted(" ".join(phony).split())
    assert all(re.match(r"make [a-z-]+ +\S+ \S", line) and len(line) <= 110 for line in lines)
