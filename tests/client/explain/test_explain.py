"""Explanations of a small model with random weights."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from contract.bundle import Bundle
from contract.decisions import Decisions, ServedLabel
from contract.errors import ConfigError, ImageError, ReportError
from contract.image.read import load_pixels, load_radiograph
from contract.labels import LABEL_INDEX, LABEL_KEYS, LABELS
from contract.notes import note_image
from contract.report.text import ReportTokenizer
from contract.training_data import UNDECIDED_WARNING

torch = pytest.importorskip("torch")
pytest.importorskip("captum")

from client.explain import attribute, choose_label, explain, group_pieces, read_inputs  # noqa: E402
from client.explain.maps import encode_png  # noqa: E402
from training.model.model import load_model  # noqa: E402

REPORT = "The heart is enlarged. Pneumoperitoneum, no x-ray sign of pleural effusion."


@pytest.fixture(scope="module")
def bundle(write_bundle, small_config, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(
        tmp_path_factory.mktemp("bundles") / "small",
        replace(small_config, lexical_buckets=50),
        seed=3,
        texts=[REPORT.replace("Pneumoperitoneum, ", "")],
        thresholds=[0.4] * len(LABELS),
        biases=(-1.0, 0.0, 1.0),
    )


def make_png(seed: int) -> bytes:
    """A picture of soft blobs, taller than wide, so that it is fitted between black sides."""
    rows, columns = np.mgrid[0:120, 0:90]
    picture = np.zeros((120, 90))
    for row, column, width in np.random.default_rng(seed).uniform((10, 10, 8), (110, 80, 25), (6, 3)):
        picture += np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2))
    return encode_png((255 * picture / picture.max()).astype(np.uint8))


@pytest.fixture(scope="module")
def image() -> bytes:
    return make_png(0)


@pytest.fixture(scope="module")
def study(bundle, image):
    return explain(bundle, image=image, report=REPORT, label="pleural", steps=48)


def correlate(first, second) -> float:
    return float(np.corrcoef(first.pixel_attribution.ravel(), second.pixel_attribution.ravel())[0, 1])


@pytest.mark.parametrize("kinds", [("image", "report"), ("image",), ("report",)])
def test_attributions_sum_to_the_difference_of_the_logits(bundle, image, kinds):
    given = {name: value for name, value in (("image", image), ("report", REPORT)) if name in kinds}
    result = explain(bundle, **given, label="cardiac", steps=64)
    total = sum(result.contributions.values())
    assert abs(result.logit - result.baseline_logit) > 0.01
    assert total == pytest.approx(result.logit - result.baseline_logit, rel=0.02)
    assert result.convergence_delta == pytest.approx(
        abs(total - (result.logit - result.baseline_logit)), abs=1e-5
    )
    assert result.relative_delta < 0.02
    assert sum(result.shares.values()) == pytest.approx(1)


def test_the_logit_is_that_of_the_label_before_calibration(bundle, image, study):
    model = load_model(bundle)
    inputs = read_inputs(bundle, image=image, report=REPORT)
    index = LABEL_INDEX["pleural"]
    with torch.inference_mode():
        output = model(inputs.pixels, inputs.input_ids, inputs.attention_mask)
        probabilities = model.fusion.calibrate(output.logits, "study")
    assert study.logit == pytest.approx(float(output.logits[0, index]), abs=1e-5)
    assert study.probability == pytest.approx(float(probabilities[0, index]), abs=1e-6)
    np.testing.assert_allclose(
        study.patch_attention.ravel(), output.image_attention[0, index].numpy(), atol=1e-6
    )
    assert study.image_share == pytest.approx(float(output.image_share[0, index]), abs=1e-6)
    assert study.to_dict()["image_share"] == pytest.approx(study.image_share, abs=1e-6)
    alone = explain(bundle, image=image, label="pleural", steps=2)
    assert alone.image_share is None
    assert alone.to_dict()["image_share"] is None


def test_the_calibration_is_that_of_the_inputs(bundle, image):
    for number, given in enumerate(
        ({"image": image, "report": REPORT}, {"image": image}, {"report": REPORT})
    ):
        result = explain(bundle, **given, label="normal", steps=2)
        expected = 1 / (1 + np.exp(-(result.logit + number - 1.0)))
        assert result.kind == ("study", "image", "text")[number]
        assert result.probability == pytest.approx(expected, abs=1e-5)


def test_study_holds_both_modalities(bundle, image, study):
    assert (study.key, study.name) == ("pleural", "Pleural Disease (Effusion / Thickening)")
    assert study.radiograph.shape == (448, 448)
    assert study.radiograph.dtype == np.uint8
    np.testing.assert_array_equal(study.radiograph, load_pixels(image, size=448)[0])
    assert study.pixel_attribution.shape == (56, 56)
    assert study.pixel_attribution.dtype == np.float32
    assert study.patch_attention.shape == (7, 7)
    assert study.patch_attention.sum() == pytest.approx(1, abs=1e-5)
    assert study.report_text == REPORT
    assert study.fingerprint == bundle.fingerprint
    assert "black" in study.baseline
    assert "[PAD]" in study.baseline


def test_image_alone_and_text_alone(bundle, image):
    seen = explain(bundle, image=image, label="cardiac", steps=4)
    assert (seen.kind, seen.words, seen.report_text) == ("image", (), None)
    assert set(seen.contributions) == set(seen.shares) == {"image"}
    read = explain(bundle, report=REPORT.encode(), label="cardiac", steps=4)
    assert read.kind == "text"
    assert read.radiograph is read.pixel_attribution is read.patch_attention is None
    assert set(read.contributions) == {"text"}
    assert read.to_dict()["hottest_region"] is None


def test_padding_and_special_tokens_get_nothing(bundle, image):
    inputs = read_inputs(bundle, image=image, report=REPORT)
    parts = attribute(load_model(bundle), inputs, LABEL_INDEX["pleural"], steps=8)
    read = (inputs.spans[:, 1] > inputs.spans[:, 0]).nonzero()[0]
    others = np.setdiff1d(np.arange(len(parts.tokens)), read)
    assert int(inputs.attention_mask.sum()) == len(read) + 2
    assert len(others) > 2  # there is padding
    assert np.abs(parts.tokens[read]).min() > 0
    assert not parts.tokens[others].any()


@pytest.mark.parametrize("first", ["Enlarged", "[MASK]"])
def test_words_are_told_what_the_lexical_part_adds(bundle, first):
    """The rest is integrated as without the part, so the differences are exact; together they are complete."""
    index = LABEL_INDEX["pleural"]
    inputs = read_inputs(bundle, image=None, report=f"{first}. The heart. The heart.")
    model = load_model(bundle)
    with_words = attribute(model, inputs, index, steps=8)
    lexical, model.fusion.lexical = model.fusion.lexical, None
    without = attribute(model, inputs, index, steps=8)
    added = with_words.tokens - without.tokens
    bias = float(lexical.bias[int(first == "[MASK]"), index])
    logit = float(lexical(inputs.input_ids, inputs.attention_mask)[0, index])
    assert abs(logit) > 0.1
    assert with_words.logit - without.logit == pytest.approx(logit, abs=1e-5)
    assert with_words.baseline_logit - without.baseline_logit == pytest.approx(bias, abs=1e-5)
    assert added.sum() == pytest.approx(logit - bias, abs=1e-5)
    assert with_words.convergence_delta == pytest.approx(without.convergence_delta, abs=1e-5)
    pieces = [inputs.text[start:end] for start, end in inputs.spans.tolist()]
    first, second = (place for place, piece in enumerate(pieces) if piece == "heart")
    assert added[first] != 0
    assert added[second] == 0  # said before, and so were its pairs


def test_black_sides_get_nothing(study):
    pixels = study.pixel_attribution
    assert not pixels[:, :6].any()
    assert np.abs(pixels).max() > 0


def test_pieces_become_words(bundle, study):
    words = " ".join(word.text for word in study.words)
    assert words == "The heart is enlarged . Pneumoperitoneum , no x - ray sign of pleural effusion ."
    for word in study.words:
        assert REPORT[word.start : word.end] == word.text
        assert 0 <= word.attention <= 1
    assert 0.2 < sum(word.attention for word in study.words) < 1  # the rest is on [CLS] and [SEP]


def test_a_word_of_several_pieces_is_one_word(bundle):
    text = "Pneumoperitoneum, no effusion."
    tokens = ReportTokenizer.load(bundle.tokenizer_path).encode([text])
    spans = tokens.spans[0].copy()
    spans[1:3] = (0, 6), (6, 16)  # as a larger vocabulary would cut it
    spans[3:] = 0
    spans[3:6] = (16, 17), (18, 20), (21, 29)
    assert group_pieces(text, spans) == [(1, 2), (3, 3), (4, 4), (5, 5)]


def test_sums_of_pieces(bundle):
    """A rare word is cut into pieces by this vocabulary; its value is their sum."""
    inputs = read_inputs(bundle, image=None, report="eart enlar heartheart.")
    parts = attribute(load_model(bundle), inputs, 0, steps=8)
    result = explain(bundle, report="eart enlar heartheart.", label=LABEL_KEYS[0], steps=8)
    groups = group_pieces(inputs.text, inputs.spans)
    assert any(last > first for first, last in groups)
    for (first, last), word in zip(groups, result.words, strict=True):
        assert word.attribution == pytest.approx(float(parts.tokens[first : last + 1].sum()), abs=1e-6)


def test_the_cut_off_end_of_a_report_has_no_words(bundle):
    result = explain(bundle, report=REPORT * 8, label="pleural", steps=4)
    assert result.words[-1].end < len(result.report_text)
    assert len(result.report_text) == len(REPORT * 8)


@pytest.mark.parametrize(
    ("name", "words"), [("frontal", ""), ("lateral", "lateral"), ("hand", "HAND"), ("frames", "3 frames")]
)
def test_warnings_are_those_of_the_served_answer(bundle, chest_files, name, words):
    data = chest_files[name]
    result = explain(bundle, image=data, label="pleural", steps=1)
    assert result.image_notes == note_image(load_radiograph(data, size=56))
    assert result.report_notes is None
    assert len(result.warnings) == bool(words)
    assert words in "".join(result.warnings)
    both = explain(bundle, image=data, report=REPORT * 8, label="pleural", steps=1)
    assert both.report_notes.truncated
    assert both.warnings == (*result.warnings, *both.report_notes.warnings)
    assert "longer than 64 tokens" in both.warnings[-1]
    summary = both.to_dict()
    assert summary["warnings"] == list(both.warnings)
    assert summary["image_notes"]["view"] == ("LATERAL" if name == "lateral" else "PA")
    assert summary["report_notes"]["tokens"] == 64


def test_the_command_prints_the_warnings(bundle, chest_files, tmp_path):
    image = tmp_path / "lateral.dcm"
    image.write_bytes(chest_files["lateral"])
    chosen = ["--bundle", str(bundle.path), "--finding", "pleural"]
    given = ["explain", str(image), *chosen, "--out", str(tmp_path / "why.png")]
    shown = CliRunner().invoke(app, [*given, "--steps", "4"])
    assert shown.exit_code == 0, shown.output
    assert any(line.startswith("Warning: The image is a lateral view") for line in shown.stdout.splitlines())
    told = json.loads(CliRunner().invoke(app, [*given, "--steps", "4", "--json"]).stdout)
    assert told["image_notes"]["view"] == "LATERAL"
    assert len(told["warnings"]) == 1


def test_labels_have_maps_of_their_own(bundle, image):
    """Attributions of a token instead of a label's logit would be the same for every label."""
    maps = [
        explain(bundle, image=image, label=key, steps=8)
        for key in ("cardiac", "pleural", "normal", "hernia_diaphragm")
    ]
    for first, second in combinations(maps, 2):
        assert correlate(first, second) < 0.9
        assert first.logit != second.logit


def test_cases_have_maps_of_their_own(bundle, image):
    maps = [explain(bundle, image=make_png(seed), label="pleural", steps=8) for seed in (0, 1, 2)]
    assert all(correlate(first, second) < 0.7 for first, second in combinations(maps, 2))


def test_equal_inputs_give_equal_explanations(bundle, image, study):
    again = explain(bundle, image=image, report=REPORT, label="pleural", steps=48)
    np.testing.assert_array_equal(again.pixel_attribution, study.pixel_attribution)
    assert again.words == study.words


def test_summary_is_json_without_maps(study):
    summary = json.loads(json.dumps(study.to_dict()))
    assert summary["key"] == "pleural"
    assert summary["convergence_delta"] == study.convergence_delta
    assert [word["text"] for word in summary["words"]] == [word.text for word in study.words]
    assert set(summary["shares"]) == {"image", "text"}
    region = summary["hottest_region"]
    assert 0 <= region["left"] < region["right"] <= 1
    assert not any(isinstance(value, list) and len(value) > 100 for value in summary.values())


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ({"pleural": 0.9, "cardiac": 0.95}, "cardiac"),
        ({"air_leak": 0.3, "pleural": 0.9}, "pleural"),  # 0.3 is six times the threshold, but less certain
        ({"air_leak": 0.3, "pleural": 0.2}, "air_leak"),
        ({"normal": 0.99, "pleural": 0.6}, "pleural"),
        ({"normal": 0.99, "pleural": 0.4}, "normal"),
        ({"normal": 0.4, "pleural": 0.3}, "pleural"),
    ],
)
def test_label_that_is_explained_by_default(probabilities, expected):
    labels = tuple(
        ServedLabel(label.key, label.name, 0.05 if label.key == "air_leak" else 0.5) for label in LABELS
    )
    values = np.array([probabilities.get(key, 0.001) for key in LABEL_KEYS], np.float32)
    assert LABEL_KEYS[choose_label(labels, values)] == expected


def test_a_label_that_was_held_out_is_not_explained_by_default():
    labels = [ServedLabel(label.key, label.name, 0.4) for label in LABELS]
    held_out = LABEL_KEYS.index("cardiac")
    labels[held_out] = ServedLabel("cardiac", "Heart", 1.0, uncertain_low=0.0, uncertain_high=1.0)
    values = np.full(len(LABELS), 0.1, np.float32)
    values[held_out] = 0.5
    values[LABEL_KEYS.index("pleural")] = 0.19
    assert LABEL_KEYS[choose_label(labels, values)] == "pleural"


def test_an_explanation_of_a_label_that_was_held_out_says_so(bundle, image, monkeypatch):
    said = "Held out of training: this probability means nothing."
    assert said not in explain(bundle, image=image, label="pleural", steps=1).remarks
    monkeypatch.setattr(Bundle, "held_out", ("pleural",))
    assert said in explain(bundle, image=image, label="pleural", steps=1).remarks


def test_default_label_is_used(bundle, image):
    probabilities = [explain(bundle, image=image, label=key, steps=1).probability for key in LABEL_KEYS]
    result = explain(bundle, image=image, steps=1)
    labels = bundle.decisions.of("image")
    assert result.key == LABEL_KEYS[choose_label(labels, np.array(probabilities, np.float32))]
    strict = tuple(replace(x, threshold=0.999 if x.key == result.key else 1e-3) for x in labels)
    stricter = replace(bundle, decisions=Decisions({**bundle.decisions.ways, "image": strict}))
    assert explain(stricter, image=image, steps=1).key != result.key
    elsewhere = replace(bundle, decisions=Decisions({**bundle.decisions.ways, "text": strict}))
    assert explain(elsewhere, image=image, steps=1).key == result.key


def test_a_way_without_thresholds_is_explained_and_not_decided(bundle, image):
    of_reports = replace(bundle, decisions=Decisions({"text": bundle.decisions.of("text")}))
    result = explain(of_reports, image=image, steps=1)
    assert (result.threshold, result.verdict) == (None, "without a threshold")
    assert UNDECIDED_WARNING in result.warnings
    assert explain(of_reports, report="Clear.", steps=1).threshold is not None


def test_bad_input(bundle, image):
    with pytest.raises(ConfigError, match=r"cardiac.*normal"):
        explain(bundle, image=image, label="broken heart")
    with pytest.raises(ConfigError, match="image"):
        explain(bundle)
    with pytest.raises(ConfigError, match="steps"):
        explain(bundle, image=image, steps=0)
    with pytest.raises(ImageError):
        explain(bundle, image=image[:60])
    with pytest.raises(ReportError):
        explain(bundle, report="  ")


def test_missing_extra_names_its_install_command():
    code = "import sys; sys.modules['torch'] = None; from client.explain import explain"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert "ConfigError: Explanations need the 'explain' extra" in answer.stderr
    assert "pip install 'cxr-serving[explain]'" in answer.stderr
