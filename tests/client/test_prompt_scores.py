"""Score findings in free words: sentences for the served model, scores from its embeddings, and refused findings."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from fake_triton import TOKENS, FakeTritonClient, make_model
from typer.testing import CliRunner

from cli.app import app
from client import FindingScore
from client.triton import TritonTransport
from contract.errors import ConfigError, FingerprintError, InputError
from contract.notes import ReportNotes
from contract.prompts import DEFAULT_TEMPERATURE
from contract.report.text import read_report

D = 8
IMAGE = np.eye(D, dtype=np.float32)[0]
VOCABULARY = {
    word: number for number, word in enumerate(["fracture", "effusion", "rib", "no", "of", "there"], start=5)
}


def embed(text: str) -> np.ndarray:
    """Return an embedding near IMAGE for a sentence that states a fracture, and away from it for a denial."""
    denied = text.lower().startswith(("no ", "there is no ", "negative "))
    cosine = (-0.25 if denied else 0.25) if "fracture" in text.lower() else 0.1
    other = 1 + len(text) % (D - 1)  # every sentence has another direction beside that of the image
    return (cosine * IMAGE + (1 - cosine**2) ** 0.5 * np.eye(D)[other]).astype(np.float32)


def tokenize(texts: list[str]) -> np.ndarray:
    """Return the ids of each text: 2, its words, 3, and 0 as padding."""
    rows = [[2, *(VOCABULARY.get(word, 1) for word in text.lower().split()), 3] for text in texts]
    return np.array([row + [0] * (TOKENS - len(row)) for row in rows])


@pytest.fixture
def triton(triton):
    """A Triton whose image shows a fracture."""

    def make_embedding(call) -> np.ndarray:
        return np.stack([embed(text) for text in read_texts(triton, call)] or [IMAGE] * call.batch)

    triton.model = make_model(text_mode="findings", embedding_size=D)
    triton.outputs = {
        "embedding": make_embedding,
        "report_text": lambda call: [[text.encode()] for text in read_texts(triton, call)],
        "input_ids": lambda call: tokenize(read_texts(triton, call)),
        "attention_mask": lambda call: tokenize(read_texts(triton, call)) > 0,
    }
    return triton


def read_texts(triton, call) -> list[str]:
    """Return the part of each report that the model reads."""
    return [read_report(data, triton.model.text_mode) for data in call.reports]


def list_batches(triton, model: str) -> list[list[str]]:
    """Return the texts of each request to a model."""
    return [read_texts(triton, call) for call in triton.calls if call.model == model]


def test_a_finding_that_the_image_shows_scores_above_one_that_it_does_not(client):
    shown, other = client.score_findings(["rib fracture.", "effusion"], client.predict(b"image"))
    assert isinstance(shown, FindingScore)
    assert (shown.finding, other.finding) == ("rib fracture", "effusion")
    assert shown.similarity_present > 0 > shown.similarity_absent
    difference = shown.similarity_present - shown.similarity_absent
    assert shown.score == pytest.approx(1 / (1 + np.exp(-difference / DEFAULT_TEMPERATURE)))
    assert shown.score > 0.95
    assert abs(other.score - 0.5) < 0.2
    assert json.loads(json.dumps(shown.to_dict())) == vars(shown)


def test_sides_are_averaged_at_unit_length(client, triton):
    """A similarity is the cosine to the mean of several sentences, which is nearer to the image than each sentence."""
    [found] = client.score_findings(["fracture"], client.predict(b"image"))
    present = [text for texts in list_batches(triton, "predict_text") for text in texts][:5]
    mean = np.mean([embed(text) for text in present], axis=0)
    assert found.similarity_present == pytest.approx(mean[0] / np.linalg.norm(mean), abs=1e-6)
    assert found.similarity_present > 0.26


def test_the_label_part_of_the_embeddings_is_left_out(client, triton):
    [plain] = client.score_findings(["fracture"], client.predict(b"image"))
    make_embedding = triton.outputs["embedding"]
    triton.model = replace(triton.model, embedding_size=D + 3, label_part=3)
    triton.outputs["embedding"] = lambda call: np.pad(
        make_embedding(call) / 2, ((0, 0), (0, 3)), constant_values=0.5
    )
    [found] = client.score_findings(["fracture"], client.predict(b"image"))
    assert found.similarity_present == pytest.approx(plain.similarity_present, abs=1e-6)
    assert found.score == pytest.approx(plain.score, abs=1e-6)


def test_temperature_is_the_models_own_where_it_says(client, triton):
    triton.model = replace(triton.model, temperature=0.5)
    [found] = client.score_findings(["fracture"], client.predict(b"image"))
    difference = found.similarity_present - found.similarity_absent
    assert found.score == pytest.approx(1 / (1 + np.exp(-difference / 0.5)))


def test_many_findings_go_in_few_full_batches(client, triton):
    findings = ["fracture" if number % 2 else "effusion" for number in range(40)]
    scores = client.score_findings(findings, client.predict(b"image"))
    assert [score.score > 0.9 for score in scores] == [bool(number % 2) for number in range(40)]
    sizes = [len(texts) for texts in list_batches(triton, "predict_text")]
    assert sizes == [32] * 12 + [16]


@pytest.mark.parametrize("mode", ["indication", "findings", "full"])
def test_every_text_mode_reads_the_sentences(client, triton, mode):
    triton.model = replace(triton.model, text_mode=mode)
    [found] = client.score_findings(["fracture"], client.predict(b"image"))
    assert found.score > 0.95
    [texts] = list_batches(triton, "predict_text")
    assert texts[0] == "Fracture."


@pytest.mark.parametrize(("image", "report"), [(b"image", "A report."), (None, "A report.")])
def test_a_study_and_a_report_are_scored_too(client, image, report):
    [found] = client.score_findings(["fracture"], client.predict(image, report))
    assert 0 < found.score < 1


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        (["  "], "The finding is empty"),
        (["fracture", "x" * 201], "Finding 2 has 201 characters"),
        (["no fracture"], "not a sentence"),
        (["肋骨 骨折"], "The finding has no word that the model knows"),
        (["fracture", "骨折"], "Finding 2 has no word that the model knows"),
    ],
)
def test_what_cannot_be_scored_is_refused(client, triton, findings, words):
    prediction = client.predict(b"image")
    with pytest.raises(InputError, match=words):
        client.score_findings(findings, prediction)
    assert "predict_text" not in [call.model for call in triton.calls]


def test_a_finding_with_one_known_word_is_scored(client):
    assert client.score_findings(["骨折 fracture"], client.predict(b"image"))


def test_a_finding_that_is_cut_off_is_refused(client, triton):
    prediction = client.predict(b"image")
    cut = ReportNotes(9, truncated=True).to_json()
    triton.outputs["report_notes"] = lambda call: [[cut]] * call.batch
    with pytest.raises(InputError, match="too long for the model"):
        client.score_findings(["fracture"], prediction)


def test_a_model_that_reads_masked_findings_refuses_what_it_cannot_read(client, triton):
    triton.model = replace(triton.model, text_mode="findings_masked")
    with pytest.raises(InputError, match="findings_masked"):
        client.score_findings(["rib fracture"], client.predict(b"image"))
    assert client.score_findings(["rib"], client.predict(b"image"))


def test_no_finding_and_a_prediction_of_another_model(client):
    prediction = client.predict(b"image")
    with pytest.raises(ConfigError):
        client.score_findings([], prediction)
    other = type(prediction)(**{**vars(prediction), "fingerprint": "cd" * 32})
    with pytest.raises(FingerprintError):
        client.score_findings(["fracture"], other)


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_command_prints_scores_and_says_what_they_are(client, tmp_path):
    (tmp_path / "image").write_bytes(b"image")
    asked = ("predict", str(tmp_path / "image"), "--finding", "rib fracture", "--finding", "[red] effusion")
    shown = run(*asked)
    assert shown.exit_code == 0, shown.output
    assert "[red] effusion" in shown.stdout  # a finding is shown as typed, not as markup
    assert "not a calibrated probability" in shown.stdout
    told = json.loads(run(*asked, "--json").stdout)
    assert [score["finding"] for score in told["finding_scores"]] == ["rib fracture", "[red] effusion"]
    keys = {"finding", "score", "similarity_present", "similarity_absent", "trained_on"}
    assert set(told["finding_scores"][0]) == keys
    assert "not a calibrated probability" in told["finding_scores_notice"]
    assert "findings" in told
    plain = run("predict", str(tmp_path / "image"), "--json")
    assert "finding_scores" not in json.loads(plain.stdout)
    assert "Not a probability" in " ".join(run("predict", "--help").stdout.split())


def test_command_refuses_a_bad_finding_before_it_asks_a_server():
    result = run("predict", "--report", "A report.", "--finding", "", "--triton", "127.0.0.1:9")
    assert result.exit_code == 2
    assert "The finding is empty" in result.stderr


def test_findings_are_not_logged(client, caplog):
    caplog.set_level(logging.DEBUG)
    client.score_findings(["zebrafish fracture"], client.predict(b"image"))
    assert "zebrafish" not in caplog.text


@pytest.mark.parametrize(("stated", "expected"), [({}, None), ({"temperature": "0.07"}, 0.07)])
def test_temperature_is_read_from_the_served_parameters(monkeypatch, stated, expected):
    transport = TritonTransport("localhost:1")
    monkeypatch.setattr(transport, "_client", lambda: FakeTritonClient(**stated))
    assert transport.read_model(1).temperature == expected
