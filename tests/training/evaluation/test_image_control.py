"""The controls of images on made-up pictures: what a bright corner says they see, what they cannot see they miss."""

import numpy as np
import pytest

from contract.decisions import Decisions
from contract.errors import ConfigError, ImageError
from contract.labels import LABEL_INDEX
from training.evaluation import image_control
from training.evaluation.image_control import TITLES, compute_hog, compute_small_pixels, run_image_controls
from training.evaluation.measure import measure_controls, run_controls
from training.evaluation.paired import compare_ways
from training.evaluation.regressions import evaluate_answers
from training.evaluation.split_predictions import Options, predict_split

from .conftest import SIZE, RulePredictor, draw_pixels, make_studies

IMAGES_ONLY = {"findings": "", "impression": "", "indication": ""}


def draw_noise(path: str) -> np.ndarray:
    return (
        np.random.default_rng(int(path.split(".", maxsplit=1)[0]))
        .integers(90, 110, (1, SIZE, SIZE))
        .astype(np.uint8)
    )


def test_both_see_a_corner_and_neither_sees_it_in_noise(parts):
    for read, low, high in ((draw_pixels, 0.95, 1.0), (draw_noise, 0.2, 0.8)):
        found = run_image_controls(parts, read)
        assert list(found) == list(TITLES)
        for answers in found.values():
            assert len(answers.rows) == len(parts["test"])
            assert low <= evaluate_answers(answers, parts["test"], resamples=0).macro["auroc"].value <= high


def test_features_have_the_stated_shapes_and_ranges():
    pixels = np.concatenate([draw_pixels(f"{number}.dcm") for number in range(3)])
    small, gradients = compute_small_pixels(pixels), compute_hog(pixels)
    assert small.shape == (3, 1024)
    assert gradients.shape == (3, 1764)
    assert small.min() >= 0
    assert small.max() <= 1
    assert small[0].reshape(32, 32)[:8, :8].mean() > small[0].reshape(32, 32)[20:, 20:].mean() + 0.2
    assert compute_hog(np.zeros((1, SIZE, SIZE), np.uint8)).max() == 0


def test_unreadable_images_are_left_out_and_none_at_all_is_an_error(parts):
    def refuse_some(path: str) -> np.ndarray:
        if path in {"95.dcm", "3.dcm"}:
            raise ImageError(f"{path} is broken.")
        return draw_pixels(path)

    def refuse(path: str) -> np.ndarray:
        raise ImageError(f"{path} is broken.")

    rows = run_image_controls(parts, refuse_some)["hog"].rows
    assert list(rows) == [row for row in range(60) if row != 5]
    with pytest.raises(ConfigError, match="train split holds no labelled image"):
        run_image_controls(parts, refuse)
    without = {**parts, "validation": make_studies(range(60, 90), image=False)}
    with pytest.raises(ConfigError, match="validation split"):
        run_image_controls(without, draw_pixels)


def test_images_are_read_in_blocks(parts, monkeypatch):
    def read_most(path):
        if path.endswith("3.dcm"):
            raise ImageError("no image")
        return draw_pixels(path)

    whole = run_image_controls(parts, read_most)
    monkeypatch.setattr(image_control, "_BLOCK", 7)
    for name, answers in run_image_controls(parts, read_most).items():
        assert np.array_equal(answers.rows, whole[name].rows)
        assert 0 < len(answers.rows) < len(parts["test"])
        assert np.array_equal(answers.probabilities, whole[name].probabilities)


def test_unknown_labels_are_neither_learned_nor_measured(parts):
    studies = {
        part: make_studies(range(*bounds), unknown_labels=["cardiac"], labels=["normal"])
        for part, bounds in (("train", (0, 60)), ("validation", (60, 90)), ("test", (90, 150)))
    }
    answers = run_image_controls(studies, draw_pixels)["pixels"]
    assert len(set(answers.probabilities[:, LABEL_INDEX["cardiac"]])) == 1
    assert evaluate_answers(answers, studies["test"], resamples=0).averaged == ()


def test_a_table_of_images_alone_is_asked_and_compared():
    parts = {
        part: make_studies(range(*bounds), **IMAGES_ONLY)
        for part, bounds in (("train", (0, 60)), ("validation", (60, 90)), ("test", (90, 150)))
    }
    options = Options(resamples=20)
    predictions = predict_split(parts, RulePredictor(), options)
    assert [way.key for way in predictions.answers] == ["image", "image/swapped_image"]
    controls = run_controls(predictions.test, parts, draw_pixels)
    assert list(controls.images) == list(TITLES)
    assert not controls.texts
    rows = measure_controls(predictions.test, controls, options)
    assert [row["key"] for row in rows] == list(TITLES)
    paired = compare_ways(predictions, controls, Decisions({}), options)
    assert [row["title"] for row in paired] == [f"image: model - {title}" for title in TITLES.values()]
    assert all(abs(row["values"]["auroc"]["value"]) < 0.05 for row in paired)  # both are right
