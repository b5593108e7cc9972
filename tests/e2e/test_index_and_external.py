"""`cxr index` over missing images, `cxr doctor` with servers up, `cxr evaluate` of a test set from elsewhere."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
from typer.testing import CliRunner

from cli.app import app


def run(*arguments: object):
    """Run `cxr` in this process, which has loaded what commands import."""
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "160"})


def replace(table: pa.Table, name: str, values: list) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def test_missing_images_are_refused_and_the_others_indexed(stack, trained, tmp_path):
    table = pq.read_table(trained.table).slice(0, 6)
    paths = table["image_paths"].to_pylist()
    paths[1] = [str(tmp_path / "gone.dcm")] * len(paths[1])
    paths[4] = [str(tmp_path)] * len(paths[4])
    pq.write_table(replace(table, "image_paths", paths), tmp_path / "s.parquet")
    servers = ("--triton", stack.triton_url, "--retrieval", stack.retrieval_url)
    ended = run("index", tmp_path / "s.parquet", *servers, "--json")
    assert ended.exit_code == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["indexed"] == 4
    assert "gone.dcm': No such file or directory" in json.dumps(result["refused"])
    assert len(result["refused"]) == 2
    pq.write_table(replace(table, "image_paths", paths).slice(1, 1), tmp_path / "s.parquet")
    ended = run("index", tmp_path / "s.parquet", *servers)
    assert ended.exit_code == 2
    assert "None of 1 cases could be indexed" in ended.stderr
    assert run("doctor", *servers).exit_code == 0


def test_an_external_test_set_is_measured_with_the_thresholds_of_the_bundle(trained, tmp_path):
    table = pq.read_table(trained.table)
    foreign = replace(table, "study_id", [f"EXT{number}" for number in range(len(table))])
    pq.write_table(foreign, tmp_path / "foreign.parquet")
    command = (tmp_path / "foreign.parquet", "--bundle", trained.bundle.path, "--resamples", 5)
    refused = run("evaluate", *command)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--out" in refused.stderr
    ended = run("evaluate", *command, "--out", tmp_path / "out", "--json")
    assert ended.exit_code == 0, ended.stderr
    results = json.loads(ended.stdout)
    assert "external test set" in results["external"]
    labelled = sum(table["labelled"].to_pylist())
    assert results["studies"]["labelled"] == {"test": labelled}
    assert list(results["retrieval"]) == list(results["as_published"])[1:] == ["test_to_test"]
    assert not [row for row in results["classification"] if row["key"].startswith("tfidf")]
    report = (tmp_path / "out" / "evaluation.md").read_text()
    assert "An external test set" in report
    assert "test → train" not in report
