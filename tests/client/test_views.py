"""The view of an image by the model: what the client asks for, shows and warns of, and servers of an older version."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from client import CxrClient
from client.page import write_report_page
from client.served import ServedModel, parse_model
from client.triton import Answer
from contract.decisions import Decisions, ServedLabel
from contract.errors import InputError
from contract.labels import LABELS
from contract.notes import ImageNotes
from contract.tensors import MODELS, NUMPY_DTYPES

SIZES = {"S": 56, "N": 49, "C": 32, "D": 16}
DECISIONS = Decisions.repeat(tuple(ServedLabel(x.key, x.name, 0.5) for x in LABELS))
NEW = ServedModel("ab" * 32, "full", 64, 56, 16, 7, DECISIONS, vocabulary_size=120, tells_view=True)
OLD = replace(NEW, tells_view=False)
SEEN = "The model sees a lateral radiograph (0.97) where the header says PA: one of the two is wrong."


class FakeTriton:
    """Takes every image for a lateral called PA; a model of an older version refuses to be asked for its view."""

    def __init__(self, _url: str = "", _settings: object = None) -> None:
        self.model, self.asked = NEW, []

    def read_model(self, _timeout_s: float, model: str = "", _version: str = "") -> ServedModel:
        # The config of a model without images says nothing about views.
        return replace(self.model, tells_view=None) if "text" in model else self.model

    def infer(self, model, inputs, outputs, _timeout_s, **_):
        self.asked.append(tuple(outputs))
        if "lateral" in outputs and not self.model.tells_view:
            raise InputError(f"Triton refused: unexpected inference output 'lateral' for model '{model}'")
        if inputs.get("image_bytes") is not None and inputs["image_bytes"][0, 0] == b"bad":
            raise InputError("preprocess_image: no image")
        [batch] = {len(array) for array in inputs.values()}
        specs = {tensor.name: tensor for tensor in MODELS[model].outputs}
        shapes = {name: (batch, *(9 if d == -1 else d for d in specs[name].dims(SIZES))) for name in outputs}
        answer = {name: np.zeros(shape, NUMPY_DTYPES[specs[name].dtype]) for name, shape in shapes.items()}
        notes = {
            "image_notes": ImageNotes("PA").to_json(),
            "report_notes": b'{"tokens": 3, "truncated": false, ',
        }
        notes["report_notes"] += b'"warnings": [], "parts": []}'
        for name in {*notes, "report_text"} & answer.keys():
            answer[name] = np.array([[notes.get(name, b"")]] * batch, dtype=np.object_)
        if "lateral" in answer:
            answer["lateral"] += np.float32(0.97)
        return Answer(answer, "1")

    def close(self) -> None:
        pass


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr("client.client.TritonTransport", FakeTriton)
    with CxrClient() as client:
        yield client


def test_a_prediction_says_what_the_model_takes_the_image_for(client):
    for report in (None, "Clear."):
        prediction = client.predict(b"image", report)
        assert prediction.lateral == pytest.approx(0.97)
        assert prediction.warnings == prediction.input_warnings == (SEEN,)
        told = json.loads(json.dumps(prediction.to_dict()))
        assert told["lateral"] == 0.97
        assert told["warnings"] == [SEEN]
    text = client.predict(report="Clear.")
    assert text.lateral is None
    assert text.to_dict()["lateral"] is None
    assert text.warnings == ()


def test_a_batch_of_tensors_has_a_view_for_each_image(client):
    pixels, ids = np.zeros((3, 1, 56, 56), np.uint8), np.ones((3, 32), np.int64)
    assert client.predict_tensors(pixels).lateral.tolist() == pytest.approx([0.97] * 3)
    assert client.predict_tensors(pixels, ids, ids).lateral.shape == (3,)
    assert client.predict_tensors(None, ids, ids).lateral is None


def test_a_text_before_an_image_changes_nothing(client):
    for _ in range(2):
        assert client.predict(report="Clear.").lateral is None
        assert client.predict(b"image").lateral == pytest.approx(0.97)


def test_a_repository_of_an_older_version_is_not_asked_for_the_view(client):
    client._triton.model = OLD
    prediction = client.predict(b"image")
    assert prediction.lateral is None
    assert prediction.warnings == ()
    assert client.predict_tensors(np.zeros((1, 1, 56, 56), np.uint8)).lateral is None
    assert not any("lateral" in outputs for outputs in client._triton.asked)


def test_a_server_that_goes_back_to_an_older_version_is_asked_for_less(client):
    assert client.predict(b"image").lateral is not None
    client._triton.model = OLD
    assert client.predict(b"image").lateral is None
    assert len(client._triton.asked) == 3  # once in vain
    client.predict(b"image")
    assert len(client._triton.asked) == 4


def test_a_bad_image_is_refused_once(client):
    with pytest.raises(InputError, match="no image"):
        client.predict(b"bad")
    assert len(client._triton.asked) == 1


@pytest.mark.parametrize("tells_view", [True, False])
def test_a_server_says_by_its_outputs_whether_it_tells_views(tells_view):
    labels = [{"key": x.key, "name": x.name, "threshold": 0.5} for x in LABELS]
    values = {"fingerprint": "f", "decisions": json.dumps(dict.fromkeys(("study", "image", "text"), labels))}
    values |= {"text_mode": "full", "max_length": "64", "image_size": "56", "embedding_size": "16"}
    values |= {"image_tokens_grid": "7"}
    names = [
        tensor.name for tensor in MODELS["predict_image"].outputs if tells_view or tensor.name != "lateral"
    ]
    config = {
        "parameters": {name: {"string_value": value} for name, value in values.items()},
        "output": [{"name": name} for name in names],
    }
    model = parse_model("predict_image", config, source="here")
    text = {**config, "output": [{"name": tensor.name} for tensor in MODELS["predict_text"].outputs]}
    assert parse_model("predict_text", text, source="here").tells_view is None
    assert model.tells_view is tells_view
    assert model.to_dict()["tells_view"] is tells_view


def test_the_command_shows_it_and_warns(client, tmp_path):
    (tmp_path / "image").write_bytes(b"image")
    arguments = ["predict", str(tmp_path / "image")]
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}).stdout.splitlines()
    assert "Image: view PA, lateral with probability 0.97 by the model" in shown
    assert f"Warning: {SEEN}" in shown
    assert json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)["lateral"] == 0.97


def test_the_page_shows_it_and_warns(client, tmp_path):
    prediction = client.predict(b"image")
    write_report_page(
        tmp_path / "page.html",
        title="t",
        data_note="n",
        predictions={"image": prediction},
        searches={},
        explanation=None,
        truth=(),
    )
    page = (tmp_path / "page.html").read_text()
    assert "<dt>View</dt><dd>PA; lateral with probability 0.97 by the model</dd>" in page
    assert f"<li>{SEEN}</li>" in page
