"""What a person types wrong: one sentence that names it, the right exit code, nothing written."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cli.app import app
from client.health import Health
from training.phantom import draw_dataset

NOBODY = ("--triton", "127.0.0.1:9", "--retrieval", "127.0.0.1:9")


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A directory with phantom/ (6 studies), s.parquet of them, text.txt and an empty folder."""
    directory = tmp_path_factory.mktemp("data")
    draw_dataset(directory / "phantom", studies=6, seed=3, scale=0.03, workers=1)
    made = run("data", "table", directory / "phantom", "--out", directory / "s.parquet")
    assert made.exit_code == 0
    (directory / "text.txt").write_text("hello")
    (directory / "empty").mkdir()
    return directory


WRONG = {
    "timeout 0": ("predict -r x --timeout 0", 2, "--timeout"),
    "timeout below 0": ("predict -r x --timeout -1", 2, "--timeout"),
    "timeout inf": ("predict -r x --timeout inf", 2, "--timeout"),
    "timeout nan": ("search -r x --timeout nan", 2, "--timeout"),
    "timeout in words": ("index s.parquet --timeout soon", 2, "--timeout"),
    "k below 0": ("search -r x -k -1", 2, "-k"),
    "k in words": ("search -r x -k many", 2, "-k"),
    "unknown label": ("search -r x --with-any zebra", 2, "zebra"),
    "unknown view": ("search -r x --case-view sideways", 2, "sideways"),
    "score above 1": ("search -r x --min-score 2", 2, "--min-score"),
    "diversity below 0": ("search -r x --diversity -1", 2, "--diversity"),
    "many different cases": ("search -r x --diversity 0.5 -k 101", 2, "at most 100 with a diversity"),
    "unknown option": ("predict --imag x", 2, "--imag"),
    "unknown command": ("predikt", 2, "predikt"),
    "unknown sub-command": ("data tabel", 2, "tabel"),
    "missing argument": ("calibrate", 2, "bundle"),
    "port too high": ("serve --repository empty --store st --http-port 99999", 2, "99999"),
    "port 0": ("serve --repository empty --store st --grpc-port 0", 2, "1"),
    "port in words": ("serve --repository empty --store st --retrieval-port x", 2, "--retrieval-port"),
    "image is a directory": ("predict empty", 2, "no DICOM, PNG or JPEG file in empty"),
    "index of a directory": ("index empty", 2, "no studies table empty"),
    "index of text": ("index text.txt", 3, "text.txt is not a Parquet file"),
    "split is a table": ("index s.parquet --split s.parquet", 2, "not a split file"),
    "split is a directory": ("index s.parquet --split empty", 2, "split file empty"),
    "draw over a file": ("data draw text.txt", 2, "text.txt exists already"),
    "draw below a file": ("data draw text.txt/new", 3, "Could not write text.txt/new"),
    "reports are text": ("data table text.txt --out new.parquet", 2, "text.txt cannot be read"),
    "table is a directory": (
        "data table phantom --out empty",
        2,
        "empty is a directory. Give the path of a file",
    ),
    "table below a file": ("data table phantom --out text.txt/new", 3, "text.txt/new: Not a directory"),
    "images are a file": ("data table phantom --images text.txt --out new", 2, "no image directory"),
    "page is a directory": ("data audit s.parquet --out empty", 2, "empty is a directory"),
    "page below a file": ("data audit s.parquet --out text.txt/new", 3, "text.txt/new: Not a directory"),
    "no bundle": ("explain -r x --bundle empty", 3, "empty is not a model bundle"),
    "export of a directory": ("export empty --table s.parquet --repository new", 3, "not a model bundle"),
    "rollback of a directory": ("export rollback empty", 3, "not published by cxr"),
    "reports of no bench": ("bench compare empty empty", 2, "report empty/bench.json does not exist"),
    "external without a bundle": ("evaluate s.parquet --external", 2, "need --bundle"),
    "url with a scheme": ("predict -r x --triton http://127.0.0.1:9 --timeout 2", 2, "host:port"),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_sentence_and_nothing_written(name, data, monkeypatch):
    line, code, words = WRONG[name]
    monkeypatch.chdir(data)
    monkeypatch.setenv("COLUMNS", "40")  # a sentence is one line at every width
    before = sorted(data.iterdir())
    result = run(*line.split())
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert words in result.stderr
    assert "Unexpected error" not in result.stderr
    assert sorted(data.iterdir()) == before


def test_images_that_are_not_there_are_an_error(data, tmp_path):
    (tmp_path / "other.png").write_bytes(b"")
    out = tmp_path / "new.parquet"
    result = run("data", "table", data / "phantom", "--images", tmp_path, "--out", out)
    assert result.exit_code == 2
    assert "None of " in result.stderr
    assert f"under {tmp_path} (1 image files)" in result.stderr
    assert ".dcm" in result.stderr
    assert not out.exists()


def test_images_that_are_partly_there_are_counted(data, tmp_path):
    files = sorted((data / "phantom").rglob("*.dcm"))
    for path in files[:-2]:
        (tmp_path / path.name).symlink_to(path)
    command = ("data", "table", data / "phantom", "--images", tmp_path, "--out", tmp_path / "new.parquet")
    printed = run(*command)
    assert printed.exit_code == 0
    assert f"{len(files) - 2} of {len(files)} images found, 2 missing" in printed.stdout
    images = json.loads(run(*command, "--json").stdout)["images"]
    assert images == {"named": len(files), "found": len(files) - 2, "missing": 2}


def test_doctor_exits_with_4_when_no_server_answers():
    result = run("doctor", *NOBODY)
    assert result.exit_code == 4
    assert result.stdout.count("down") == 2
    told = run("doctor", *NOBODY, "--json")
    assert told.exit_code == 4
    assert json.loads(told.stdout)["servers"]["triton"]


def test_doctor_asks_no_server_where_it_is_told_so():
    result = run("doctor", *NOBODY, "--local")
    assert result.exit_code == 0
    assert "triton server" not in result.stdout
    assert json.loads(run("doctor", "--local", "--json").stdout)["servers"] is None


@pytest.mark.parametrize(
    ("health", "code"),
    [
        (Health(None, None, "f" * 64, 5), 0),
        (Health("down", None, None, 5), 4),
        (Health(None, "down", "f" * 64), 4),
        (Health(None, "The index is of model a, Triton serves b.", "f" * 64, 5), 3),
        (Health("down", "down"), 4),
    ],
)
def test_doctor_tells_a_server_from_an_index(health, code):
    from cli.show import find_exit_code

    assert find_exit_code(health) == code


def test_a_table_of_another_collection_is_told_from_a_part_of_the_own(data, tmp_path):
    from types import SimpleNamespace

    from cli.evaluate import plan_external
    from contract.errors import ConfigError

    ids = pq.read_table(data / "s.parquet")["study_id"].to_pylist()
    split = {"train": ids[:2], "validation": ids[2:4], "test": ids[4:]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    bundle = SimpleNamespace(path=tmp_path, split=split, manifest={"data_source": "phantom"})
    table = pq.read_table(data / "s.parquet")
    pq.write_table(table.slice(1), tmp_path / "part.parquet")
    foreign = table.set_column(0, "study_id", pa.array([f"CXR9{number}" for number in range(6)]))
    pq.write_table(foreign, tmp_path / "foreign.parquet")

    def plan(name: str, **options: object) -> bool:
        chosen = {"external": False, "split_file": None, "out": None} | options
        return plan_external(bundle, tmp_path / name, **chosen)

    pq.write_table(table, tmp_path / "own.parquet")
    assert plan("own.parquet") is False
    assert plan("foreign.parquet", out=tmp_path / "out") is True
    assert plan("own.parquet", external=True, out=tmp_path / "out") is True
    others = table.replace_schema_metadata({"collection": "openi"})  # other studies with the same ids
    pq.write_table(others, tmp_path / "others.parquet")
    assert plan("others.parquet", out=tmp_path / "out") is True
    assert plan("foreign.parquet", split_file=tmp_path / "split.json") is False
    with pytest.raises(ConfigError, match=r"lacks 1 of the 6 studies .* --external"):
        plan("part.parquet")
    for options in ({}, {"external": True}):
        with pytest.raises(ConfigError, match=r"external test set.* --out"):
            plan("foreign.parquet", **options)
    with pytest.raises(ConfigError, match="--external or --split-file"):
        plan("own.parquet", external=True, split_file=tmp_path / "split.json")
    with pytest.raises(ConfigError, match="not a directory"):
        plan("own.parquet", external=True, out=tmp_path / "part.parquet")
