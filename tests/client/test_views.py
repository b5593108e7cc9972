"""The view of an image from the model: in the request, the result, the warnings, and with older servers."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fake_triton import make_config, make_model
from typer.testing import CliRunner

from cli.app import app
from client.page import write_report_page
from client.served import parse_model
from contract.errors import InputError
from contract.notes import ImageNotes
from contract.tensors import MODELS

NEW = make_model(vocabulary_size=120, tells_view=True)
OLD = replace(NEW, tells_view=False, tells_share=False)
SEEN = "The model sees a lateral radiograph (0.97) where the header says PA: one of the two is wrong."


@pytest.fixture
def triton(triton):
    """A Triton that takes every image for a lateral view, though the header says PA; an image b"bad" is refused."""

    def refuse(call) -> None:
        if call.images == [b"bad"]:
            raise InputError("preprocess_image: no image")

    triton.model = NEW
    triton.refuse = refuse
    triton.outputs = {
        "image_notes": [[ImageNotes("PA").to_json()]],
        "lateral": lambda call: np.full((call.batch, 1), 0.97),
    }
    return triton


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


def test_a_repository_of_an_older_version_is_not_asked_for_the_view(client, triton):
    triton.model = OLD
    prediction = client.predict(b"image")
    assert prediction.lateral is None
    assert prediction.warnings == ()
    assert client.predict_tensors(np.zeros((1, 1, 56, 56), np.uint8)).lateral is None
    assert not any("lateral" in call.outputs for call in triton.calls)


def test_a_server_that_goes_back_to_an_older_version_is_asked_for_less(client, triton):
    assert client.predict(b"image").lateral is not None
    triton.model = OLD
    assert client.predict(b"image").lateral is None
    assert len(triton.calls) == 3  # once in vain
    client.predict(b"image")
    assert len(triton.calls) == 4


@pytest.mark.parametrize("model", [NEW, OLD], ids=["new", "old"])
def test_a_bad_image_is_refused_once(client, triton, model):
    triton.model = model
    with pytest.raises(InputError, match="no image"):
        client.predict(b"bad")
    assert len(triton.calls) == 1


@pytest.mark.parametrize("tells_view", [True, False])
def test_a_server_says_by_its_outputs_whether_it_tells_views(tells_view):
    names = [spec.name for spec in MODELS["predict_image"].outputs if tells_view or spec.name != "lateral"]
    model = parse_model("predict_image", make_config("predict_image", outputs=names), source="here")
    text = make_config("predict_text")
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
