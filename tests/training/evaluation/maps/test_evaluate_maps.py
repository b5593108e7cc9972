"""`cxr evaluate explain`, from a studies table with boxes to the gate of a bundle."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from contract.bundle import SPLIT, amend_bundle, load_bundle, write_json
from contract.labels import LABELS
from contract.map_checks import read_map_check

torch = pytest.importorskip("torch")
pytest.importorskip("captum")

from training.card.card import insert_evaluation, insert_maps  # noqa: E402
from training.data.openi import build_table, read_table, write_table  # noqa: E402
from training.phantom import draw_dataset  # noqa: E402

FAST = ("--method", "attention", "--method", "grad_cam", "--method", "integrated_gradients")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    draw_dataset(root / "phantom", studies=20, seed=2, scale=0.05, workers=1)
    write_table(build_table(root / "phantom", root / "phantom", None), root / "studies.parquet")
    return root


@pytest.fixture(scope="module")
def bundle(data, write_bundle, small_config, tmp_path_factory: pytest.TempPathFactory):
    made = write_bundle(
        tmp_path_factory.mktemp("bundles") / "small",
        replace(small_config, text_positions=128),
        seed=1,
        texts=["The heart is enlarged. There is a small effusion."],
        thresholds=[0.5] * len(LABELS),
        longest=64,
    )
    ids = read_table(data / "studies.parquet", ["study_id"])["study_id"].to_pylist()
    with amend_bundle(made, changed=(SPLIT,)) as scratch:
        write_json(scratch / SPLIT, {"train": ids[:2], "validation": ids[2:4], "test": ids[4:]})
    return load_bundle(made.path)


def run(*line: object):
    return CliRunner().invoke(app, ["evaluate", "explain", *map(str, line)])


@pytest.fixture(scope="module")
def measured(data, bundle):
    line = (data / "studies.parquet", "--bundle", bundle.path, "--boxes", data / "phantom/boxes.json")
    ways = ("--way", "image", "--way", "study")
    told = run(*line, *FAST, *ways, "--findings", 2, "--resamples", 50, "--json")
    assert told.exit_code == 0, told.output
    return json.loads(told.stdout)


def test_random_weights_pass_no_gate(measured, bundle):
    """A model that learned nothing cannot be ahead of the centre, so none of its maps is offered."""
    assert measured["ways"]["image"]["gate"]["default"] is None
    check = read_map_check(load_bundle(bundle.path), "image")
    assert check.default is None
    assert set(check.failed) == {"attention", "grad_cam", "integrated_gradients"}
    assert check.findings == measured["ways"]["image"]["findings"] == 2


def test_every_block_is_measured(measured):
    for way in ("image", "study"):
        found = measured["ways"][way]
        methods = set(measured["titles"])
        assert set(found["localisation"]) == {*methods, "centre", "random"}
        for row in found["localisation"].values():
            for value in row.values():
                assert 0 <= value["low"] <= value["value"] <= value["high"] <= 1
        assert set(found["faithfulness"]) == {*methods, "centre", "random"}
        assert set(found["infidelity"]) == set(found["sensitivity"]) == set(found["sanity"]) == methods
        assert set(found["agreement"]) == {"same_case", "top_hit"}
        for row in found["sanity"].values():
            assert row["inverted"] == 0  # the reader gives the same pixels for both polarities
            assert (row["padding"] is None) == (way == "image")
        assert found["sanity"]["integrated_gradients"]["missing"] < 0.01
        assert found["sanity"]["attention"]["missing"] is None
        assert all(seconds > 0 for seconds in found["seconds"].values())


def test_results_are_kept_in_the_bundle(measured, bundle):
    folder = Path(measured["written"])
    assert folder == bundle.path / "explanations"
    names = {path.name for path in folder.iterdir()}
    assert {"explanations.json", "explanations.md", "pointing-image.png", "cascade-study.png"} <= names
    again = load_bundle(bundle.path)  # still sealed
    assert again.fingerprint == bundle.fingerprint
    report = (folder / "explanations.md").read_text()
    for part in ("Does it find the finding?", "Is it sane?", "boxes of boxes.json", "centre of the picture"):
        assert part in report
    card = (bundle.path / "MODEL_CARD.md").read_text()
    assert card.count("# Explanations") == 1
    assert "No map passed its checks" in card


def test_sections_of_a_card_do_not_replace_each_other():
    card = insert_maps("# Model\n", "first maps")
    card = insert_evaluation(card, "an evaluation")
    card = insert_maps(card, "second maps")
    assert "first maps" not in card
    assert card.count("second maps") == card.count("an evaluation") == card.count("# Model") == 1


def test_a_map_that_is_drawn_on_the_box_passes(data, bundle, tmp_path, monkeypatch):
    """The gate opens for a map that finds the findings and depends on the model."""
    from client.explain import methods

    table, boxes = data / "studies.parquet", data / "phantom/boxes.json"
    from cli import evaluate_maps

    by_case = {}
    original = evaluate_maps.make_subjects

    def remember(*arguments):
        found = original(*arguments)
        by_case.update({(id(one.inputs), one.label): one.draw_boxes() for one in found})
        return found

    whole = float(sum(value.double().sum() for value in evaluate_maps_model(bundle).parameters()))

    def draw(model, inputs, label, _steps):
        known = by_case.get((id(inputs), label))
        is_trained = abs(float(sum(value.double().sum() for value in model.parameters())) - whole) < 1e-6
        if known is not None and is_trained:
            return known.astype(np.float32), None
        return np.random.default_rng(label).random((56, 56)).astype(np.float32), None

    monkeypatch.setattr(evaluate_maps, "make_subjects", remember)
    oracle = replace(methods.METHODS["grad_cam"], compute=draw)
    monkeypatch.setitem(methods.METHODS, "grad_cam", oracle)
    monkeypatch.setattr("training.evaluation.maps.twin.make_twin", lambda _: None)
    line = (
        table,
        "--bundle",
        bundle.path,
        "--boxes",
        boxes,
        "--method",
        "grad_cam",
        "--out",
        tmp_path / "out",
    )
    told = run(*line, "--resamples", 200, "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)["ways"]["image"]
    assert found["localisation"]["grad_cam"]["pointing"]["value"] == 1
    assert found["gate"]["methods"]["grad_cam"] == {"passed": True, "reason": ""}
    assert found["gate"]["default"] == "grad_cam"


def evaluate_maps_model(bundle):
    from client.explain.network import open_model

    return open_model(bundle)


def test_bad_input(data, bundle, tmp_path):
    table = data / "studies.parquet"
    boxes = ("--boxes", data / "phantom/boxes.json")
    line = (table, "--bundle", bundle.path)
    (tmp_path / "file").write_text("")
    for extra, message in (
        ((*boxes, "--part", "all"), "give a directory for these with --out"),
        ((), "Give a file of boxes with --boxes"),
        ((*boxes, "--method", "gradcam"), "no method 'gradcam'"),
        ((*boxes, "--out", tmp_path / "file"), "is not a directory"),
    ):
        told = run(*line, *extra)
        assert told.exit_code == 2
        assert message in " ".join(told.output.split())
