"""The view head: what it is fitted on, what an older bundle answers without it, and what is said of it."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from contract import bundle as files
from contract.errors import ConfigError
from contract.labels import LABELS
from contract.tensors import MODELS
from training.config.toml_file import load_config
from training.data.studies import StudySet, read_laterals
from training.evaluation.view_scores import FEWEST, describe_score, score_views
from training.fit_views import find_trusted, fit_views, measure_views
from training.model.model import CxrModel, graph_modules, load_model
from training.model.view_head import PREFIX, ViewHead, fit_view_head
from training.validate import Examined

COUNT = 24  # studies, each of a bright frontal and a dark lateral


def make_studies(laterals=(False, True), *, texts=None) -> StudySet:
    noise = np.random.default_rng(0).integers(0, 60, (2 * COUNT, 1, 56, 56), np.uint8)
    noise[::2] += 150
    words = texts or ("clear",) * COUNT
    names = tuple(f"CXR{number}" for number in range(COUNT))
    return StudySet(
        study_ids=names,
        patient_ids=names,
        texts=words,
        impressions=words,
        indications=words,
        wordings=(words, words),
        views=tuple((2 * number, 2 * number + 1) for number in range(COUNT)),
        laterals=(tuple(laterals),) * COUNT,
        pixels=noise,
        targets=np.zeros((COUNT, len(LABELS)), bool),
        known=np.zeros((COUNT, len(LABELS)), bool),
    )


@pytest.fixture
def model(small_config) -> CxrModel:
    torch.manual_seed(0)
    return CxrModel(small_config).eval()


def examine(studies, *, C=1.0) -> Examined:
    config = load_config("demo", {"view_head.C": C})
    split = {"train": np.arange(12), "validation": np.arange(0), "test": np.arange(12, COUNT)}
    return Examined(config, studies, None, split)


def test_head_learns_both_kinds_and_is_measured_on_the_test_part(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    examined = examine(make_studies())
    assert fit_views(examined, model) == "View head fitted on 12 lateral and 12 frontal training images."
    score = measure_views(examined, model, "test")
    assert (score["laterals"], score["frontals"]) == (12, 12)
    assert score["accuracy"] == score["auroc"] == 1
    assert 0 < model.fusion.lateral(torch.zeros(1, 49, 32)).item() < 1
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{PREFIX}weight", f"{PREFIX}bias"}  # the rest learns nothing from it


def test_images_without_a_trusted_view_are_left_out():
    places, laterals = find_trusted(make_studies((None, True)), np.array([0, 3]))
    assert places.tolist() == [1, 7]
    assert laterals.tolist() == [True, True]


@pytest.mark.parametrize(
    ("laterals", "C", "reason"),
    [
        ((False, True), 0.0, r"No view head: view_head.C is 0\."),
        ((False, None), 1.0, "No view head: .* 0 lateral and 12 frontal"),
        ((None, True), 1.0, "No view head: .* 12 lateral and 0 frontal"),
        ((None, None), 1.0, "No view head: .* 0 lateral and 0 frontal"),
    ],
)
def test_without_both_kinds_or_by_config_there_is_no_head(model, laterals, C, reason):
    model.fusion.lateral.weight.fill_(
        1.0
    )  # of the bundle that the run started from: the encoder has changed since
    examined = examine(make_studies(laterals), C=C)
    assert re.match(reason, fit_views(examined, model))
    assert not model.fusion.lateral.is_fitted
    assert measure_views(examined, model, "test") == {}
    assert model.fusion.lateral(torch.randn(3, 49, 32)).tolist() == [[0.5]] * 3


def test_a_negative_penalty_is_refused():
    with pytest.raises(ConfigError, match=r"view_head\.C must not be negative"):
        load_config("demo", {"view_head.C": -1.0})


def test_features_of_other_sizes_are_weighed_alike():
    """Token values differ by orders of magnitude; the penalty must not decide which of them count."""
    rng = np.random.default_rng(0)
    laterals = rng.random(200) < 0.5
    features = rng.normal(0, 1, (200, 3)).astype(np.float32)
    features[:, 0] = 1e-3 * (features[:, 0] + 3 * laterals)
    head = ViewHead(3)
    fit_view_head(head, features, laterals, 1.0)
    found = head(torch.from_numpy(features)[:, None])[:, 0].numpy()
    assert ((found >= 0.5) == laterals).mean() > 0.9


def test_both_image_graphs_tell_the_view(model):
    model.fusion.lateral.weight.normal_()
    tokens = torch.randn(2, 49, 32)
    expected = model.fusion.lateral(tokens)
    modules = graph_modules(model)
    torch.testing.assert_close(modules["fusion_image"](tokens)[-1], expected)
    ids, mask = torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64)
    text_tokens = modules["text_encoder"](ids, mask)
    outputs = modules["fusion_study"](tokens, text_tokens, ids, mask)
    answers = {
        tensor.name: value for tensor, value in zip(MODELS["fusion_study"].outputs, outputs, strict=True)
    }
    torch.testing.assert_close(answers["lateral"], expected)
    assert len(modules["fusion_text"](text_tokens, ids, mask)) == 3


def test_a_bundle_of_an_older_version_loads_and_tells_no_view(write_bundle, small_config, tmp_path):
    thresholds = [0.5] * len(LABELS)
    bundle = write_bundle(tmp_path / "b", small_config, seed=1, texts=["clear lungs"], thresholds=thresholds)
    assert load_model(bundle).fusion.lateral.is_fitted
    weights = load_file(bundle.weights_path)
    old = {name: value for name, value in weights.items() if not name.startswith(PREFIX)}
    assert len(old) == len(weights) - 2
    save_file(old, bundle.weights_path)
    files.seal_bundle(bundle.path, {})
    model = load_model(files.load_bundle(bundle.path))
    assert model.fusion.lateral(torch.randn(2, 49, 32)).tolist() == [[0.5], [0.5]]


def test_too_few_images_are_not_measured():
    laterals = np.arange(30) < FEWEST - 1
    score = score_views(laterals.astype(np.float32), laterals)
    assert score == {"laterals": 9, "frontals": 21}
    assert describe_score(score).startswith("Not measured: 9 lateral and 21 frontal images")


def test_figures_are_those_of_the_answers():
    laterals = np.arange(20) < 10
    answers = np.where(laterals, 0.95, 0.2).astype(np.float32)
    answers[[0, 19]] = 0.4, 0.97  # a lateral that is missed, a frontal that is called lateral
    score = score_views(answers, laterals)
    assert score["accuracy"] == pytest.approx(0.9)
    assert score["auroc"] == pytest.approx((9 * 9 + 9) / 100)
    assert score["laterals_called_lateral"] == pytest.approx(0.9)
    assert score["frontals_called_lateral"] == pytest.approx(0.1)
    assert "Accuracy 0.900, AUROC 0.900 on 10 lateral and 10 frontal images" in describe_score(score)


def test_rows_of_a_table_say_which_views_are_trusted():
    headers = [
        {"view_confidence": 0.999, "view_source": "View Position lateral; shape of the image"},
        {"view_confidence": 0.999, "view_source": "list of projections"},
        {"view_confidence": 0.98, "view_source": "View Position PA or AP"},
        {
            "view_confidence": 0.999,
            "view_source": "exposure beside the other images; other images of the study",
        },
        {"view_confidence": 0.999, "view_source": "model"},
        {"view_confidence": 0.5, "view_source": ""},
        None,
    ]
    views = ["LATERAL", "FRONTAL", "PA", "LATERAL", "LATERAL", "UNKNOWN", "PA"]
    row = {"image_paths": ["x"] * 7, "views": views, "headers": headers}
    assert read_laterals(row) == [True, False, None, None, None, None, None]
    assert read_laterals({**row, "views": [], "headers": []}) == [None] * 7


def test_a_study_set_without_images_has_nothing_to_fit(model):
    studies = replace(make_studies(), views=((),) * COUNT, laterals=((),) * COUNT)
    assert "0 lateral and 0 frontal" in fit_views(examine(studies), model)
