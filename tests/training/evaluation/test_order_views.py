"""A model orders the images of studies where headers do not; what trusted headers say stays."""

from dataclasses import asdict

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import training.evaluation.order_views as module
from cli.app import app
from contract import bundle as files
from contract.errors import ConfigError
from contract.image.header import ImageHeader
from contract.labels import LABELS
from training.data.openi import COLLECTION_KEY, HEADER, read_table, write_table
from training.evaluation.order_views import list_untrusted, order_row, order_table

NAMED = "View Position PA or AP"


def make_header(confidence: float, source: str) -> dict:
    header = asdict(ImageHeader("DICOM", rows=90, view_confidence=confidence, view_source=source))
    return {field.name: header[field.name] for field in HEADER}


def make_row(*images: tuple[str, str, float, str]) -> dict:
    """Return the images of a row: name, view, confidence, source of each."""
    return {
        "image_ids": [name for name, *_ in images],
        "image_paths": [f"{name}.dcm" for name, *_ in images],
        "views": [view for _, view, *_ in images],
        "headers": [make_header(confidence, source) for *_, confidence, source in images],
    }


SILENT = make_row(("a", "UNKNOWN", 0.5, ""), ("b", "UNKNOWN", 0.5, ""))


def order(row: dict, **told: float) -> list[tuple[str, str, str]]:
    """Return id, view and source of each image as ordered."""
    new = order_row(row, {f"{name}.dcm": lateral for name, lateral in told.items()})
    assert [path.removesuffix(".dcm") for path in new["image_paths"]] == new["image_ids"]
    sources = [header["view_source"] for header in new["headers"]]
    return list(zip(new["image_ids"], new["views"], sources, strict=True))


def test_a_silent_study_is_ordered_by_the_model():
    assert order(SILENT, a=0.97, b=0.02) == [("b", "FRONTAL", "model"), ("a", "LATERAL", "model")]
    assert order(SILENT, a=0.02, b=0.97) == [("a", "FRONTAL", "model"), ("b", "LATERAL", "model")]


def test_a_model_in_doubt_names_no_view_but_orders_silent_images():
    assert order(SILENT, a=0.7, b=0.4) == [("b", "UNKNOWN", ""), ("a", "UNKNOWN", "")]
    assert order(SILENT, a=0.5, b=0.5) == [("a", "UNKNOWN", ""), ("b", "UNKNOWN", "")]


def test_a_weak_header_gives_way_to_a_sure_model_alone():
    row = make_row(("a", "PA", 0.96, NAMED), ("b", "UNKNOWN", 0.6, "shape of the image"))
    assert list_untrusted(row) == ["a.dcm", "b.dcm"]
    assert order(row, a=0.99, b=0.01) == [("b", "FRONTAL", "model"), ("a", "LATERAL", "model")]
    assert order(row, a=0.8, b=0.2)[0] == ("a", "PA", NAMED)
    assert order(row, a=0.01, b=0.99) == [("a", "PA", "model"), ("b", "LATERAL", "model")]


def test_trusted_headers_and_lists_are_not_asked_about():
    row = make_row(
        ("a", "LATERAL", 0.999, "list of projections"), ("b", "AP", 0.995, NAMED), ("c", "UNKNOWN", 0.5, "")
    )
    assert list_untrusted(row) == ["c.dcm"]
    found = order(row, a=0.01, b=0.99, c=0.01)
    assert found == [("c", "FRONTAL", "model"), ("b", "AP", NAMED), ("a", "LATERAL", "list of projections")]


def test_a_study_that_the_model_was_not_asked_about_stays_as_it_is():
    row = make_row(("a", "LATERAL", 0.999, "list of projections"), ("b", "PA", 0.999, NAMED))
    assert order_row(row, {"c.dcm": 0.9}) is row  # its order is not this module's


def test_a_table_without_headers_gets_some():
    row = {**SILENT, "views": [], "headers": []}
    assert list_untrusted(row) == ["a.dcm", "b.dcm"]
    assert order(row, a=0.97, b=0.02) == [("b", "FRONTAL", "model"), ("a", "LATERAL", "model")]


@pytest.fixture
def bundle(write_bundle, small_config, tmp_path):
    thresholds = [0.5] * len(LABELS)
    return write_bundle(tmp_path / "bundle", small_config, seed=1, texts=["clear"], thresholds=thresholds)


@pytest.fixture
def answers(monkeypatch):
    """What the model says by the first letter of a file; NaN of one that cannot be read."""
    told = {"a": 0.97, "b": 0.02, "c": float("nan")}

    def tell(_self, paths, progress=None):
        progress(len(paths), len(paths))
        return np.array([told[path[0]] for path in paths], np.float32)

    monkeypatch.setattr(module.TorchPredictor, "tell_laterals", tell)
    return told


def run(*arguments: object):
    return CliRunner().invoke(app, ["data", "order", *map(str, arguments)], env={"COLUMNS": "200"})


def test_the_command_writes_a_new_table_and_says_what_changed(write_rows, bundle, answers, tmp_path):
    kept = make_row(("b", "PA", 0.999, NAMED), ("a", "LATERAL", 0.999, "list of projections"))
    unread = make_row(("c", "UNKNOWN", 0.5, ""))
    table = write_rows([SILENT, kept, unread, {"findings": "Clear."}])
    write_table(read_table(table).replace_schema_metadata({COLLECTION_KEY: b"openi"}), table)
    before, out = table.read_bytes(), tmp_path / "ordered.parquet"
    result = run(table, bundle.path, "--out", out)
    assert result.exit_code == 0, result.output
    assert "3 of 5 images had no reliable view in their header" in result.output
    assert (
        "1 of them unreadable. It decided the view of 2. 1 of 4 studies now begin with another image"
        in result.output
    )
    assert table.read_bytes() == before
    new, old = read_table(out), read_table(table)
    assert new.schema.metadata[COLLECTION_KEY] == b"openi"
    assert new["image_ids"].to_pylist() == [["b", "a"], ["b", "a"], ["c"], []]
    assert new.to_pylist()[1:] == old.to_pylist()[1:]
    assert order_table(out, bundle, tmp_path / "again.parquet", progress=lambda *_: None).moved == 0


def test_json_counts_the_same(write_rows, bundle, answers, tmp_path):
    document = run(write_rows([SILENT]), bundle.path, "--out", tmp_path / "o.parquet", "--json").stdout
    assert '"asked": 2' in document
    assert '"moved": 1' in document


def test_a_bundle_without_a_view_head_is_refused(write_rows, bundle, tmp_path):
    weights = load_file(bundle.weights_path)
    save_file({name: x for name, x in weights.items() if ".lateral." not in name}, bundle.weights_path)
    files.seal_bundle(bundle.path, {})
    result = run(write_rows([SILENT]), bundle.path, "--out", tmp_path / "out.parquet")
    assert result.exit_code == 2
    assert "has no view head" in " ".join(result.output.split())
    assert not (tmp_path / "out.parquet").exists()


def test_the_table_itself_is_kept(write_rows, bundle):
    table = write_rows([SILENT])
    before = table.read_bytes()
    with pytest.raises(ConfigError, match="the table itself"):
        order_table(table, bundle, table)
    assert table.read_bytes() == before


def test_files_that_cannot_be_read_leave_nothing(write_rows, bundle, tmp_path):
    with pytest.raises(ConfigError, match=r"None of 2 images can be read\. The first one is a\.dcm"):
        order_table(write_rows([SILENT]), bundle, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_the_model_is_asked_in_earnest(write_rows, bundle, chest_files, tmp_path):
    """Files through the real predictor: what it says is what the head says of their tokens."""
    (tmp_path / "a.dcm").write_bytes(chest_files["frontal"])
    predictor = module.TorchPredictor(bundle)
    [lateral, missing] = predictor.tell_laterals([str(tmp_path / "a.dcm"), str(tmp_path / "none.dcm")])
    assert 0.1 < lateral < 0.9
    assert lateral != 0.5
    assert np.isnan(missing)
