"""`cxr index tune`: where embeddings come from, what is recommended, and what the command prints."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.retrieval.sidecar import fill_store
from bench.retrieval.tune import TunedKind, draw_plot, read_embeddings, recommend
from bench.retrieval.vectors import draw_vectors
from cli.app import app
from contract.errors import ConfigError, InputError


def make_row(kind, recall, p99, share, filtered=1.0):
    return TunedKind(kind, recall, filtered, p99 / 2, p99, 1.0, 1, share)


def test_the_fastest_kind_within_floor_and_memory_is_recommended():
    flat = make_row("flat", 1.0, 20.0, 1.25)
    rows = [
        flat,
        make_row("hnsw", 0.99, 1.0, 0.4),
        make_row("rabitq:bits=1", 0.94, 2.0, 0.1),
        make_row("rabitq:bits=2", 0.99, 3.0, 0.1),
        make_row("sq8", 1.0, 4.0, 0.25),
        make_row("ivf_pq", 0.99, 2.5, 0.1, filtered=0.9),
    ]
    assert recommend(rows, 0.95, 0.25).kind == "rabitq:bits=2"
    assert recommend(rows, 0.95, 1.0).kind == "hnsw"
    assert recommend(rows, 0.995, 0.25).kind == "sq8"
    assert recommend(rows, 0.995, 0.2) is flat  # none fits
    assert recommend([flat, make_row("sq8", 1.0, 21.0, 0.2)], 0.95, 0.25) is flat  # none is faster


def test_embeddings_of_a_store_and_of_a_file(tmp_path):
    vectors = draw_vectors("mixture", 1100, 0, seed=2).stored
    fill_store(tmp_path / "store", vectors)
    np.testing.assert_array_equal(read_embeddings(str(tmp_path / "store"), 1050), vectors[:1050])
    np.save(tmp_path / "vectors.npy", vectors.astype(np.float64))
    np.testing.assert_array_equal(read_embeddings(str(tmp_path / "vectors.npy"), 5000), vectors)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(2000, np.float32), "N rows of D numbers"),
        (np.ones((2000, 4), int), "numbers with a point"),
        (np.ones((2000, 4), np.float32), "must have length 1"),
        (np.full((2000, 4), np.nan, np.float32), "must have length 1"),
        (np.full((999, 4), 0.5, np.float32), "holds 999 embeddings; at least 1000"),
    ],
)
def test_a_wrong_file_is_refused(array, message, tmp_path):
    np.save(tmp_path / "vectors.npy", array)
    with pytest.raises(InputError, match=message):
        read_embeddings(str(tmp_path / "vectors.npy"), 5000)


def test_no_such_source_and_no_array(tmp_path):
    with pytest.raises(ConfigError, match="no store and no file"):
        read_embeddings(str(tmp_path / "none"), 1000)
    (tmp_path / "text").write_text("1 2 3")
    with pytest.raises(InputError, match=r"is not a \.npy file"):
        read_embeddings(str(tmp_path / "text"), 1000)


def test_a_plot_that_cannot_be_written_is_said(tmp_path):
    found = [TunedKind("flat", 1.0, 1.0, 1.0, 2.0, 0.1, 100, 1.0)]
    draw_plot(found, 0.95, tmp_path / "new" / "kinds.png")  # the folder is made
    assert (tmp_path / "new" / "kinds.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="is a directory"):
        draw_plot(found, 0.95, tmp_path)


def test_the_command_prints_a_table_and_draws(tmp_path):
    options = ["--cases", "1500", "--queries", "100", "--kind", "sq8:lists=8,probes=8", "--kind", "flat"]
    plot = tmp_path / "kinds.png"
    wide = CliRunner(env={"COLUMNS": "200"})
    shown = wide.invoke(app, ["index", "tune", "mixture", *options, "--plot", str(plot)])
    assert shown.exit_code == 0, shown.output
    assert "sq8:lists=8,probes=8,refine=4" in shown.output
    assert "Recommended: --index " in shown.output
    assert plot.read_bytes().startswith(b"\x89PNG")
    listed = wide.invoke(app, ["index", "tune", "mixture", *options, "--json"])
    report = json.loads(listed.output)
    assert [row["kind"] for row in report["kinds"]] == ["flat", "sq8:lists=8,probes=8,refine=4"]
    assert report["kinds"][1]["recall"] >= 0.95
    assert 0.25 < report["kinds"][1]["memory_share"] < 0.35
    assert report["kinds"][0]["memory_share"] == 1.0


def test_a_wrong_kind_is_refused_before_anything_is_measured():
    shown = CliRunner().invoke(app, ["index", "tune", "mixture", "--cases", "1000", "--kind", "annoy"])
    assert shown.exit_code == 2
    assert "There is no index 'annoy'" in " ".join(shown.output.split())
