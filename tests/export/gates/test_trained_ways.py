"""The precision gate and the timing ask a model what it was trained for, and say what they left out."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest

from contract.bundle import METRICS, amend_bundle, load_bundle, write_json
from contract.errors import ConfigError, ParityError
from export.gates.parity import ParityCase
from export.gates.precision import check_precision, require_passed
from export.gates.server_precision import store_answers
from export.profiles import load_profile
from export.speed import compare_speed


@pytest.fixture(scope="module")
def make_trained(bundle, tmp_path_factory):
    """A function: counts of training studies -> the bundle, with these counts in its metrics."""
    root = tmp_path_factory.mktemp("trained")

    def make(name, **counts):
        copied = load_bundle(shutil.copytree(bundle.path, root / name))
        with amend_bundle(copied, changed=(METRICS,)) as scratch:
            write_json(scratch / METRICS, {"studies": {"train": counts}})
        return load_bundle(root / name)

    return make


@pytest.fixture(scope="module")
def of_reports(make_trained):
    return make_trained("reports", studies=9, image=0, text=9)


def spoil(graphs, name, path):
    """Return the graphs with one in which the weights of the pooling have the other sign."""
    model = onnx.load(graphs[name])
    weight = next(value for value in model.graph.initializer if value.name.endswith("pooling.weight"))
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, path / f"{name}.onnx")
    return {**graphs, name: path / f"{name}.onnx"}


def test_a_model_of_reports_is_held_to_the_limits_for_reports_alone(of_reports, graphs, cases, tmp_path):
    texts = [replace(case, pixels=None) for case in cases]
    assert of_reports.trained_ways == ("text",)
    spoilt = spoil(graphs, "fusion_image", tmp_path)
    report = check_precision(of_reports, spoilt, load_profile("fp32"), texts, reference=graphs)
    assert {row.kind for row in report.gated} == {"text"}
    image = next(row for row in report.kinds if row.kind == "image")
    assert image.probability_difference > report.limits.probability_difference
    table = report.to_markdown()
    assert (table.count("| ok |"), table.count("| not gated |"), table.count("FAILED")) == (2, 4, 0)
    assert "The limits apply to: text.\n" in table
    assert "No limits for image, because no training study has an image.\n" in table
    assert "No limits for study, because no training study has an image and a report.\n" in table
    assert json.loads(json.dumps(report.to_dict()))["not_gated"].keys() == {"study", "image"}
    assert "differ by at most 0.0e+00" in report.to_sentence()


def test_what_it_was_trained_for_is_still_gated(of_reports, bundle, graphs, cases, tmp_path):
    profile = load_profile("fp32")
    with pytest.raises(ParityError, match=r"fp32 is not published: probability_difference of text"):
        check_precision(of_reports, spoil(graphs, "fusion_text", tmp_path), profile, cases, reference=graphs)
    with pytest.raises(ParityError, match=r"fp32 is not published: probability_difference of image"):
        check_precision(bundle, spoil(graphs, "fusion_image", tmp_path), profile, cases, reference=graphs)


def test_a_bundle_that_records_nothing_is_gated_in_every_way(bundle, graphs, cases):
    report = check_precision(bundle, graphs, load_profile("fp32"), cases, reference=graphs)
    assert report.not_gated == {}
    assert {row.kind for row in report.gated} == {"study", "image", "text"}
    assert "The limits apply to: study, image, text.\n" in report.to_markdown()
    broken = replace(report.kinds[0], probability_difference=float("nan"))
    with pytest.raises(ParityError, match=r"probability_difference of study"):
        require_passed(replace(report, kinds=(broken, *report.kinds[1:])))


@pytest.mark.parametrize(
    ("counts", "kind", "steps", "tokens"),
    [
        ({"image": 0, "text": 9}, "text", {"text_encoder", "fusion_text"}, 32),
        ({"image": 9, "text": 0}, "image", {"image_encoder", "fusion_image"}, 0),
        ({"image": 9, "text": 1}, "study", {"image_encoder", "text_encoder", "fusion_study"}, 32),
    ],
)
def test_what_is_timed_is_what_the_model_was_trained_for(
    counts, kind, steps, tokens, make_trained, graphs, cases
):
    trained, profile = make_trained(f"timed-{kind}", studies=9, **counts), load_profile("fp32")
    lacking = {"text": replace(cases[0], text=None), "image": cases[2], "study": cases[2]}[kind]
    report = compare_speed(trained, [(profile, graphs), (profile, graphs)], [lacking, cases[0]], rounds=2)
    assert (report.kind, set(report.profile_ms), report.tokens) == (kind, steps, tokens)
    with pytest.raises(ConfigError, match=r"Timing a profile needs a case with"):
        compare_speed(trained, [(profile, graphs), (profile, graphs)], [lacking], rounds=2)


def test_drawn_pixels_are_asked_of_a_model_of_images_too(make_trained, graphs):
    """A case that stands in is no reason to leave out what the model was trained for."""
    trained = make_trained("both", studies=9, image=9, text=9)
    case = ParityCase(None, "The heart is enlarged.", np.zeros(22, bool))
    report = check_precision(trained, graphs, load_profile("fp32"), [case], reference=graphs)
    assert report.not_gated == {}


def test_a_server_is_asked_what_the_model_was_trained_for(of_reports, bundle, graphs):
    assert list(store_answers(of_reports, graphs, load_profile("fp32")).answers) == ["text"]
    assert set(store_answers(bundle, graphs, load_profile("fp32")).answers) == {"study", "image", "text"}
