"""`cxr monitor`: from a bundle and its studies to a reference, from tables of `cxr predict` to a report."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")

import pyarrow as pa
import pyarrow.parquet as pq

from cli.app import app
from client.case_files import CaseFile
from client.prediction_file import PredictionFile
from client.prediction_row import PredictionRow
from contract import bundle as files
from contract.labels import LABELS
from training.data.openi import SCHEMA, build_table, write_table
from training.monitoring import compare, statistics
from training.monitoring.reference import get_folder, read_reference
from training.phantom import draw_dataset

STUDIES = 8


def run(*arguments: object):
    return CliRunner().invoke(app, ["monitor", *map(str, arguments)], env={"COLUMNS": "400"})


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_bundle, small_config):
    """A folder with a bundle whose test side is drawn phantoms, their table, their reference, and predicted tables."""
    folder = tmp_path_factory.mktemp("monitor")
    draw_dataset(folder / "phantom", studies=STUDIES, seed=3, scale=0.05, workers=1)
    rows = build_table(folder / "phantom", folder / "phantom").to_pylist()
    for row in rows:
        row["labelled"], row["findings"] = True, row["findings"] or "The lungs are clear."
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "studies.parquet")
    bundle = write_bundle(
        folder / "bundle", small_config, seed=1, texts=["clear lungs"], thresholds=[0.5] * len(LABELS)
    )
    ids = [row["study_id"] for row in rows]
    with files.amend_bundle(bundle, changed=[files.SPLIT]) as scratch:
        split = {"train": [], "validation": ids[:3], "test": ids[3:]}
        files.write_json(scratch / files.SPLIT, split)
    made = run("reference", folder / "bundle", folder / "studies.parquet", "--json")
    assert made.exit_code == 0, made.output
    answers = read_reference(get_folder(folder / "bundle")).ways["image"].probabilities
    for ending in ("parquet", "csv", "jsonl"):
        write_results(folder / f"results.{ending}", bundle.fingerprint, rows, answers)
    return folder


def write_results(path: Path, fingerprint: str, rows, answers) -> None:
    with PredictionFile(path, fingerprint) as file:
        for row, values in zip(rows, answers, strict=False):
            case = CaseFile(Path(row["image_paths"][0]))
            given = {"kind": "image", "probabilities": tuple(map(float, values))}
            decisions = ("absent",) * len(LABELS)
            file.add(
                PredictionRow(
                    case.name, "predicted", fingerprint, case.read_state(), decisions=decisions, **given
                )
            )
        file.add(PredictionRow("broken.png", "refused", fingerprint, "", error="It is no image."))


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(compare, "FEWEST", 3)
    monkeypatch.setattr(statistics, "RESAMPLES", 100)


def test_the_reference_is_beside_the_bundle_and_holds_no_id(place):
    reference = read_reference(get_folder(place / "bundle"))
    assert set(reference.ways) == {"study", "image", "text"}
    image, text = reference.ways["image"], reference.ways["text"]
    assert image.probabilities.shape == (STUDIES, len(LABELS))
    assert image.embeddings.dtype == np.float16
    assert set(image.inputs) == {"grey", "contrast", "clipped", "aspect", "view"}
    assert set(text.inputs) == {"tokens", "unknown", "sections"}
    assert set(reference.ways["study"].inputs) == {*image.inputs, *text.inputs}
    assert 0 < image.inputs["grey"].mean() < 1
    assert 1 <= text.inputs["sections"].min() <= text.inputs["sections"].max() <= 4
    assert text.inputs["tokens"].min() > 2
    files.load_bundle(place / "bundle")  # it is still whole
    with np.load(get_folder(place / "bundle") / "reference.npz") as arrays:
        assert all(arrays[name].dtype.kind == "f" for name in arrays)
    facts = (get_folder(place / "bundle") / "reference.json").read_text()
    assert "CXR" not in facts
    assert ".dcm" not in facts


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_the_same_answers_show_no_change(place, few, ending):
    result = run(
        "report", get_folder(place / "bundle"), place / f"results.{ending}", "--json", "--fail-on-change"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {row["verdict"] for row in found["rows"]} == {"no change seen"}
    assert len(found["rows"]) == len(LABELS)
    assert max(row["psi"] for row in found["rows"]) < 1e-9
    assert "8 predicted, 1 refused" in found["notes"][0]


def test_inputs_are_read_again_and_no_path_leaves(place, few, tmp_path):
    given = ("report", place / "bundle", place / "results.csv", "--inputs", "--json")
    out, metrics = tmp_path / "drift.html", tmp_path / "drift.prom"
    result = run(*given, "--out", out, "--metrics", metrics)
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(result.stdout)["rows"]}
    assert {rows[name]["shift"] for name in ("grey", "contrast", "clipped", "aspect")} == {0.0}
    assert rows["embedding"]["statistic"] == pytest.approx(0, abs=1e-6)
    for text in (result.stdout, out.read_text(), metrics.read_text()):
        assert "phantom/" not in text
        assert ".dcm" not in text


def test_a_file_that_changed_is_left_out(place, tmp_path):
    copy = tmp_path / "results.jsonl"
    lines = (place / "results.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    copy.write_text("\n".join([json.dumps({**first, "input_state": "1@1"}), *lines[1:]]) + "\n")
    result = run("report", place / "bundle", copy, "--inputs")
    assert result.exit_code == 0, result.output
    assert "1 files were not read again" in result.output
    assert "too few cases" in result.output


def test_a_change_has_an_exit_code_of_its_own(place, few, tmp_path):
    rows = [{"image_paths": [f"{number}.png"]} for number in range(40)]
    fingerprint = read_reference(get_folder(place / "bundle")).fingerprint
    write_results(tmp_path / "moved.csv", fingerprint, rows, np.full((40, len(LABELS)), 0.999))
    result = run("report", get_folder(place / "bundle"), tmp_path / "moved.csv", "--fail-on-change")
    assert result.exit_code == 5
    assert "changed" in result.output
    assert run("report", get_folder(place / "bundle"), tmp_path / "moved.csv").exit_code == 0


def test_results_of_another_model_are_refused_by_name(place, tmp_path):
    write_results(tmp_path / "other.csv", "cd" * 32, [], [])
    result = run("report", place / "bundle", tmp_path / "other.csv")
    assert result.exit_code == 3
    assert "other.csv holds results of model cdcdcdcdcdcd" in result.output


def test_the_last_row_of_an_image_counts_and_a_report_makes_another_case(place, tmp_path):
    lines = (place / "results.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    name = {"path": first["path"] + "\u2028"}  # a line end for some readers
    more = [{**first, **name}, {**first, "kind": "study", "report": "1.xml"}, first]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in more))
    found = run(
        "report", get_folder(place / "bundle"), place / "results.csv", tmp_path / "more.jsonl", "--json"
    )
    assert found.exit_code == 0, found.output
    cases = {row["way"]: row["cases"] for row in json.loads(found.stdout)["rows"]}
    assert cases == {"image": STUDIES + 1, "study": 1}


def test_a_missing_column_is_named(place, tmp_path):
    table = pq.read_table(place / "results.parquet").drop_columns(["cardiac", "kind"])
    pq.write_table(table, tmp_path / "short.parquet")
    result = run("report", place / "bundle", tmp_path / "short.parquet")
    assert "lacks the columns kind, cardiac" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("report", "nowhere", "{place}/results.csv"), "There is no reference in nowhere"),
        (("report", "{place}/bundle", "{place}/studies.parquet"), "lacks the columns path"),
        (("report", "{place}/bundle", "{place}/no.csv"), "cannot be read as a table"),
        (("report", "{place}/bundle", "{place}/bundle"), "must end in .parquet, .csv or .jsonl"),
        (
            ("report", "{place}/bundle.monitoring", "{place}/results.csv", "--inputs"),
            "--inputs needs the bundle",
        ),
        (("report", "{place}/bundle", "{place}/results.csv", "--out", "x.txt"), "x.txt must end in .html"),
        (("report", "{place}/bundle", "{place}/results.csv", "--metrics", "x"), "x must end in .prom"),
    ],
)
def test_an_error_is_one_sentence(place, arguments, said):
    result = run(*(part.format(place=place) for part in arguments))
    assert said in result.output
    assert result.exit_code == 2


def test_a_damaged_reference_is_refused(place, tmp_path):
    shutil.copytree(get_folder(place / "bundle"), tmp_path / "reference")
    data = bytearray((tmp_path / "reference" / "reference.npz").read_bytes())
    data[200] ^= 1
    (tmp_path / "reference" / "reference.npz").write_bytes(data)
    result = run("report", tmp_path / "reference", place / "results.csv")
    assert result.exit_code == 3
    assert "is damaged or of another version" in result.output
