"""PyTorch asked by the evaluation: the answers of the model itself, whatever the order, batch or source of pixels."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from contract.errors import ConfigError, ImageError
from contract.image.read import load_pixels
from contract.labels import LABEL_INDEX, LABELS
from contract.report.text import ReportTokenizer
from training.data.cache import fill_cache
from training.data.openi import build_table, read_table, write_table
from training.evaluation import predict
from training.evaluation.parts import measure_parts
from training.evaluation.plan import Case
from training.evaluation.predict import TorchPredictor, read_from_cache
from training.evaluation.split_predictions import Options, predict_split
from training.model.model import load_model
from training.phantom import draw_dataset

from .conftest import WORDS, RulePredictor

OPTIONS = Options(seed=0, resamples=20)
TEXTS = ("The heart is enlarged.", "Lungs are clear.", "There is a small left effusion today. " * 4)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    root = tmp_path_factory.mktemp("predict")
    draw_dataset(root / "phantom", studies=5, seed=1, scale=0.05, workers=1)
    write_table(build_table(root / "phantom", root / "phantom"), root / "studies.parquet")
    return root / "studies.parquet"


@pytest.fixture(scope="module")
def paths(table) -> list[str]:
    return [path for paths in read_table(table)["image_paths"].to_pylist() for path in paths]


@pytest.fixture(scope="module")
def bundle(write_bundle, small_config, tmp_path_factory):
    directory = tmp_path_factory.mktemp("bundles") / "bundle"
    config = replace(small_config, lexical_buckets=50)
    return write_bundle(directory, config, seed=3, texts=TEXTS * 3, thresholds=[0.5] * 22)


def make_cases(paths, *, image=True, text=True) -> list[Case]:
    return [
        Case(str(row), path if image else None, TEXTS[row % len(TEXTS)] if text else None)
        for row, path in enumerate(paths)
    ]


@pytest.mark.parametrize(("image", "text"), [(True, True), (True, False), (False, True)])
def test_answers_are_those_of_the_model(bundle, paths, image, text, monkeypatch):
    monkeypatch.setattr(predict, "_BATCH", 3)
    cases = make_cases(paths, image=image, text=text)
    answers = TorchPredictor(bundle).ask(cases)
    model, tokenizer = load_model(bundle), ReportTokenizer.load(bundle.tokenizer_path)
    for row, case in enumerate(cases):
        inputs = []
        with torch.inference_mode():
            if case.image:
                pixels = load_pixels(Path(case.image).read_bytes(), size=56)
                inputs.append(model.image_encoder(torch.from_numpy(pixels[None])))
            if case.text:
                tokens = tokenizer.encode([case.text.strip()], bundle.config["max_length"])
                ids, mask = (torch.from_numpy(array) for array in (tokens.input_ids, tokens.attention_mask))
                inputs += [model.text_encoder(ids, mask), ids, mask]
            kind = "study" if image and text else "image" if image else "text"
            probabilities, embedding, *_ = getattr(model.fusion, f"forward_{kind}")(*inputs)
        np.testing.assert_allclose(answers.probabilities[row], probabilities[0].numpy(), atol=1e-5)
        np.testing.assert_allclose(answers.embeddings[row], embedding[0].numpy(), atol=1e-5)
    assert answers.answered.all()


def test_an_unreadable_image_is_refused_alone(bundle, paths, tmp_path):
    (tmp_path / "broken.dcm").write_bytes(b"no image")
    cases = make_cases([paths[0], str(tmp_path / "broken.dcm"), str(tmp_path / "missing.dcm"), paths[1]])
    answers = TorchPredictor(bundle).ask(cases)
    assert list(answers.answered) == [True, False, False, True]


def test_images_are_encoded_once_and_not_kept_for_ever(bundle, paths, monkeypatch):
    read = []

    def read_pixels(path: str):
        read.append(path)
        return load_pixels(Path(path).read_bytes(), size=56)

    predictor = TorchPredictor(bundle, read_pixels=read_pixels)
    first = predictor.ask(make_cases(paths))
    predictor.ask(make_cases(paths, text=False))
    assert sorted(read) == sorted(paths)
    sizes = bundle.config["sizes"]
    monkeypatch.setattr(predict, "_CACHE_BYTES", 2 * 4 * sizes["N"] * sizes["C"])  # 2 images of float32
    monkeypatch.setattr(predict, "_BATCH", 2)
    small = TorchPredictor(bundle, read_pixels=read_pixels)
    again = small.ask(make_cases(paths))
    np.testing.assert_allclose(again.probabilities, first.probabilities, atol=1e-5)
    assert len(small._image_tokens) <= 2


def test_pixels_come_from_a_cache(bundle, paths, table, tmp_path):
    fill_cache(table, tmp_path / "cache", size=56, workers=1)
    cached = TorchPredictor(bundle, read_pixels=read_from_cache(tmp_path / "cache", 56))
    np.testing.assert_array_equal(
        cached.ask(make_cases(paths)).embeddings, TorchPredictor(bundle).ask(make_cases(paths)).embeddings
    )
    with pytest.raises(ConfigError):
        read_from_cache(tmp_path / "cache", 224)
    with pytest.raises((ConfigError, ImageError)):
        read_from_cache(tmp_path / "cache", 56)("another.dcm")


def test_progress_and_no_input(bundle):
    steps = []
    predictor = TorchPredictor(bundle)
    predictor.ask(make_cases(["", ""], image=False), lambda done, total: steps.append((done, total)))
    assert steps == [(2, 2)]
    with pytest.raises(ConfigError, match="neither"):
        predictor.ask([Case("1")])


def test_the_parts_of_a_model_add_up_to_it(bundle, monkeypatch):
    monkeypatch.setattr(predict, "_BATCH", 2)
    predictor = TorchPredictor(bundle)
    fusion = predictor._model.fusion
    torch.manual_seed(0)
    for table in (fusion.lexical.unigrams, fusion.lexical.bigrams):  # as if fitted
        table.copy_(torch.rand_like(table))
    parts = predictor.score_parts(TEXTS)
    assert set(parts) == {"transformer", "lexical part"}
    assert all(np.abs(values).min() > 0 for values in parts.values())
    logits = torch.from_numpy(parts["transformer"] + parts["lexical part"])
    answers = predictor.ask([Case(str(row), None, text) for row, text in enumerate(TEXTS)])
    np.testing.assert_allclose(fusion.calibrate(logits, "text").numpy(), answers.probabilities, atol=1e-5)


def test_parts_are_measured_with_what_both_gain(parts):
    """The transformer knows nothing and the lexical part the labels, so that both gain all over the first."""
    predictions = predict_split(parts, RulePredictor(), OPTIONS)

    def score_parts(texts):
        known = np.array([[words in text for words in WORDS.values()] for text in texts], np.float32)
        lexical = np.zeros((len(texts), len(LABELS)), np.float32)
        lexical[:, [LABEL_INDEX[key] for key in WORDS]] = known
        return {"transformer": np.zeros_like(lexical), "lexical part": lexical}

    predictor = SimpleNamespace(has_lexical=True, text_mode="findings", score_parts=score_parts)
    rows = {(row["title"], row["part"]): row for row in measure_parts(predictions, predictor, OPTIONS)}
    assert len(rows) == 6
    assert {title for title, _ in rows} == {"findings", "masked findings"}
    nothing, words, both = (rows["findings", part] for part in ("transformer", "lexical part", "both"))
    assert both["macro"]["ap"]["value"] == words["macro"]["ap"]["value"] == 1
    assert nothing["macro"]["ap"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    assert nothing["gain"]["value"] == pytest.approx(2 / 3, abs=1e-4)
    assert (words["gain"]["value"], both["gain"]) == (0, None)
    assert measure_parts(predictions, SimpleNamespace(has_lexical=False), OPTIONS) == []
