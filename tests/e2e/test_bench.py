"""The load generator on the real server: served rows, baselines, the server's own statistics, a report."""

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.run import Options, run_bench
from cli.commands.bench import bench_app

pytestmark = pytest.mark.e2e
STEPS = ("image_encoder", "text_encoder", "fusion_study")


def test_run_against_the_real_server(stack, trained, tmp_path):
    arguments = ["run", "--triton", stack.triton_url, "--table", trained.table, "--cases", 4]
    arguments += [
        "--concurrency",
        "1,2",
        "--rate",
        "10",
        "--duration",
        "1",
        "--repeats",
        "2",
        "--warmup",
        "1",
    ]
    arguments += ["--baseline", "--repository", trained.repository, "--bundle", trained.bundle.path]
    arguments += [
        "--baseline-batch",
        "1,2",
        "--budget",
        "p50=10s",
        "--resolution",
        "5",
        "--out",
        tmp_path,
        "--json",
    ]
    result = CliRunner().invoke(bench_app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    rows = {row["name"]: row for row in report["rows"]}
    assert {"served, concurrency 2", "served, poisson 10/s", "in-process, concurrency 1, batch 2"} <= set(
        rows
    )
    assert "torch eager fp32, concurrency 1" in rows
    assert all(row["requests"] > 0 and not row["failed"] for row in rows.values())
    one = rows["served, concurrency 1"]
    assert set(one["server"]["models"]) >= set(STEPS)
    assert one["server"]["models"]["image_encoder"]["compute_infer_ms"] < one["p99_ms"]
    assert one["server"]["process"]["cpu_cores"] > 0
    assert one["server"]["process"]["processes"] > 3  # Triton and one process for each python model
    assert "4 real cases" in report["data"]["source"]
    assert report["budget"]["rate"] > 1
    assert (tmp_path / "bench.md").is_file()
    assert (tmp_path / "server_split.png").is_file()
    ids = {row["study_id"] for row in trained.test_rows}
    assert not any(f'"{study}"' in (tmp_path / "bench.json").read_text() for study in ids)


def test_profile_names_the_operations_of_every_graph(trained):
    arguments = ["profile", trained.repository, "--table", trained.table, "--cases", 2, "--runs", 4]
    arguments = [str(argument) for argument in arguments]
    result = CliRunner().invoke(bench_app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {graph["graph"] for graph in found["graphs"]} == set(STEPS)
    assert all("MatMul" in graph["operations"] for graph in found["graphs"])
    counted = sum(ms for graph in found["graphs"] for ms in graph["operations"].values())
    assert 0.2 * counted < found["whole_ms"] < 50 * counted
    assert "wall-clock time, median of 4 runs" in CliRunner().invoke(bench_app, arguments).output
    refused = CliRunner().invoke(bench_app, [*arguments, "--model", "predict_everything"])
    assert "serves no model predict_everything" in str(refused.exception)


@pytest.mark.parametrize("via", ["bytes", "client"])
def test_raw_files_of_drawn_phantoms(stack, via):
    options = Options(
        stack.triton_url, "predict_study", cases=2, duration_s=0.5, repeats=1, warmup_max_s=0.5, via=via
    )
    report = run_bench(Console(quiet=True), options)
    assert "phantoms" in report["data"]["source"]
    (row,) = report["rows"]
    assert row["requests"] > 0
    assert not row["failed"]
    assert "preprocess_study" in row["server"]["models"]
