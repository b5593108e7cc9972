"""`cxr bench`: options, errors in one sentence, comparison of reports."""

import json
import sys

import pytest
from typer.testing import CliRunner

from bench.run import Options, parse_numbers
from cli.commands.bench import bench_app
from contract.connection import PLAIN, TLS, Connection
from contract.errors import ConfigError, UnavailableError


def run(*arguments):
    return CliRunner().invoke(bench_app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", ["run", "compare"])
def test_help(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.output


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        (["--baseline"], ConfigError, "--repository"),
        (["--concurrency", "1,x"], ConfigError, "--concurrency"),
        (["--concurrency", "0"], ConfigError, "--concurrency"),
        (["--rate", "-3"], ConfigError, "--rate"),
        (["--baseline-batch", "1.5"], ConfigError, "--baseline-batch"),
        (["--budget", "50ms"], ConfigError, "p99=50ms"),
        (["--triton", "127.0.0.1:1", "--timeout", "2"], UnavailableError, "127.0.0.1:1"),
    ],
)
def test_bad_options(arguments, kind, text):
    result = run("run", *arguments)
    assert isinstance(result.exception, kind)
    assert text in str(result.exception)


def test_the_settings_of_a_client_count_as_everywhere(tmp_path, monkeypatch):
    """Address, TLS and token come from the option, the environment or client.ini."""
    seen = []
    monkeypatch.setattr(
        "bench.run.run_bench",
        lambda _, options: seen.append((options.triton, options.connection)) or sys.exit(7),
    )
    (tmp_path / "client.ini").write_text(
        "[client]\ntriton = lab:8001\ntls_ca = lab.crt\ntls_cert = a.crt\ntls_key = a.key\n"
        f"token_file = {tmp_path}/token\n"
    )
    (tmp_path / "token").write_text("t" * 40)
    monkeypatch.setenv("CXR_CONFIG", str(tmp_path / "client.ini"))
    assert run("run").exit_code == 7
    monkeypatch.setenv("CXR_TRITON", "ward:8001")
    monkeypatch.setenv("CXR_TLS_CA", "ward.crt")
    assert run("run").exit_code == 7
    assert run("run", "--triton", "own:1", "--tls-ca", "own.crt").exit_code == 7
    assert seen == [
        ("lab:8001", Connection(TLS("lab.crt", "a.crt", "a.key"), "t" * 40)),
        ("ward:8001", Connection(TLS("ward.crt"), "t" * 40)),
        ("own:1", Connection(TLS("own.crt"), "t" * 40)),
    ]
    assert "measures one server, not 2" in str(run("run", "--triton", "a:1,b:1").exception)
    monkeypatch.setenv("CXR_CONFIG", "")
    monkeypatch.delenv("CXR_TLS_CA")
    monkeypatch.setenv("CXR_TOKEN", "t" * 40)
    assert "not sent to ward:8001" in str(run("run").exception)


def test_the_report_tells_tls_and_no_token():
    options = Options("h:1", "m", connection=Connection(TLS("a", "b", "c"), "t" * 40))
    assert options.describe()["tls"] == "mutual"
    assert "t" * 40 not in json.dumps(options.describe())
    assert [Options("h:1", "m", connection=x).describe()["tls"] for x in (PLAIN, Connection(TLS("a")))] == [
        "none",
        "server",
    ]


def test_numbers():
    assert parse_numbers("1,2, 8", "--concurrency", int) == (1, 2, 8)
    assert parse_numbers(None, "--rate", float) == ()
    assert parse_numbers("2.5", "--rate", float) == (2.5,)


def test_settings_hold_no_paths(tmp_path):
    options = Options("host:1", "predict_study", table=tmp_path, repository=tmp_path, bundle=tmp_path)
    assert str(tmp_path) not in json.dumps(options.describe())


def write_report(path, *p50s):
    repeats = [{"p50_ms": value, "p90_ms": value, "p99_ms": value, "throughput": 10.0} for value in p50s]
    rows = [{"name": "served, concurrency 1", "batch": 1, "repeats": repeats}]
    path.mkdir()
    (path / "bench.json").write_text(json.dumps({"schema": 1, "model": path.name, "rows": rows}))
    return path


def test_compare(tmp_path):
    reports = write_report(tmp_path / "a", 10, 11, 12), write_report(tmp_path / "b", 20, 22, 24)
    result = run("compare", *reports, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    p50 = answer["ratios"][0]
    assert (p50["ratio"], p50["differs"]) == (2.0, True)
    assert answer["mismatches"] == ["Another model: a and b."]
    shown = run("compare", *reports)
    assert "2.000" in shown.output
    assert "Another model" in shown.output


def test_compare_with_nothing(tmp_path):
    report = write_report(tmp_path / "a", 10)
    assert isinstance(run("compare", report, tmp_path / "none.json").exception, ConfigError)
