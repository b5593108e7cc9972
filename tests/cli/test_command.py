"""The `cxr` command: help for every sub-command, one sentence and the right exit code for every error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from cli.app import app
from contract.errors import UnavailableError


def list_commands(group=None, path=()) -> list[tuple[str, ...]]:
    """Return the words of each command that `cxr --help` and the helps of its groups list."""
    found = []
    for name, command in (group or get_command(app)).commands.items():
        if isinstance(command, TyperGroup):
            found += list_commands(command, (*path, name))
        if not command.hidden:
            found.append((*path, name))
    return found


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("command", list_commands(), ids=" ".join)
def test_help_and_json_everywhere(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    if command not in {("data",), ("bench",), ("monitor",), ("sign",)}:  # groups without a default command
        assert "--json" in result.output


def test_commands_are_found():
    assert {("demo",), ("predict",), ("train", "compare"), ("export", "rollback"), ("bench", "table")} <= set(
        list_commands()
    )


@pytest.mark.parametrize(("command", "policy"), [("train", "PASSIVE"), ("bench", None)])
def test_threads_spin_in_benchmarks_alone(command, policy, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert run(command, "--help").exit_code == 0
    assert os.environ.get("OMP_WAIT_POLICY") == policy


BAD_CALLS = {
    "nothing given": (("predict",), 2, "--report"),
    "no server": (
        ("predict", "--report", "Normal.", "--triton", "127.0.0.1:9", "--timeout", "2"),
        4,
        "cxr serve",
    ),
    "no image file": (("predict", "missing.dcm"), 2, "missing.dcm"),
    "no bundle": (("explain", "--report", "Normal.", "--bundle", "missing"), 3, "missing"),
    "no table": (("data", "audit", "missing.parquet"), 2, "cxr data table"),
    "no reports": (("demo", "--reports", "missing.tgz"), 2, "missing.tgz"),
    "no table to cache": (("data", "cache", "missing.parquet", "--out", "cache"), 2, "cxr data table"),
    "no bundle to calibrate": (("calibrate", "missing", "t.parquet", "--out", "b"), 3, "missing"),
    "no bundle to start from": (("train", "t.parquet", "--out", "b", "--from", "missing"), 3, "missing"),
    "unknown config": (("train", "missing.parquet", "--out", "b", "--config", "huge"), 2, "huge"),
    "unknown setting": (
        ("train", "missing.parquet", "--out", "b", "--set", "lerning_rate=1"),
        2,
        "optimizer.learning_rate",
    ),
    "unknown tracker": (("train", "missing.parquet", "--out", "b", "--log-with", "paper"), 2, "wandb"),
    "no run to compare": (("train", "compare", ".", "."), 2, "neither a bundle nor the run directory"),
    "unknown target": (("export", "b", "--table", "t", "--repository", "r", "--target", "tpu"), 2, "tpu"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_error_is_one_sentence_with_its_exit_code(name, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, code, words = BAD_CALLS[name]
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir()), "a refused command must leave nothing behind"


def test_demo_never_removes_files_of_others(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    result = run("demo", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_help_is_quick_because_imports_are_cheap():
    heavy = ("torch", "faiss", "numpy", "pydicom", "tritonclient")
    code = f"import cli.app, sys; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def write_split(directory: Path) -> Path:
    (directory / "split.csv").write_text("id,split\n1,train\n2,val\n3,test\n")
    return directory / "split.csv"


def test_draw_table_audit_cache(tmp_path: Path):
    phantom, table = str(tmp_path / "phantom"), str(tmp_path / "studies.parquet")
    assert run("data", "draw", phantom, "--studies", "6", "--scale", "0.05", "--json").exit_code == 0
    made = run("data", "table", phantom, "--images", phantom, "--out", table, "--json")
    assert json.loads(made.stdout)["studies"] == 6
    page = tmp_path / "audit.html"
    audit = json.loads(run("data", "audit", table, "--out", str(page), "--json").stdout)
    assert audit["studies"] == 6
    assert audit["images"] >= 6
    assert page.read_text().startswith("<!doctype html>")
    printed = run("data", "audit", table, "--split", str(write_split(tmp_path))).output
    assert "studies without any label" in printed
    assert "on more than one side: 0 patients" in printed
    assert "transfer syntax" in printed
    cache = ("data", "cache", table, "--out", str(tmp_path / "cache"), "--size", "32", "--workers", "1")
    made = json.loads(run(*cache, "--json").stdout)
    assert made["images"] == made["decoded"] == audit["images"]
    assert made["refused"] == []
    next((tmp_path / "phantom").rglob("*.dcm")).write_bytes(b"no image")
    result = run(*cache)
    assert result.exit_code == 0
    assert "1 refused" in result.output
    assert "Refused image" in result.output


@pytest.mark.parametrize("command", [("predict",), ("search",)])
def test_transport_and_compression_reach_the_client(command, monkeypatch):
    made = []

    class Client:
        def __init__(self, *_: object, **settings: object) -> None:
            made.append(settings)
            raise UnavailableError("enough")

    monkeypatch.setattr("client.CxrClient", Client)
    assert run(*command, "--report", "Normal.", "--transport", "grpc", "--compression", "gzip").exit_code == 4
    assert (made[0]["transport"], made[0]["compression"]) == ("grpc", "gzip")
    refused = run(*command, "--report", "Normal.", "--transport", "pigeon")
    assert (refused.exit_code, len(made)) == (2, 1)
    assert "shared_memory" in refused.output


def test_transport_of_a_bench_is_the_clients():
    refused = run("bench", "run", "--transport", "shared_memory")
    assert refused.exit_code == 2
    assert "--via client" in refused.output
