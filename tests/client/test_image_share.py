"""How much of a finding's attention the image has: in the request, the result, the page, and with older servers."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fake_triton import make_config, make_model

from client.page import write_report_page
from client.served import parse_model
from contract.errors import InputError
from contract.labels import LABEL_KEYS
from contract.tensors import MODELS

NEW = make_model(vocabulary_size=120, tells_view=True, tells_share=True)
BEFORE = replace(NEW, tells_share=False)  # published when views were told and shares were not
OLDEST = replace(BEFORE, tells_view=False)
SHARES = np.linspace(0, 1, 22).astype(np.float32)


@pytest.fixture
def triton(triton):
    triton.model = NEW
    triton.outputs = {
        "image_share": lambda call: np.tile(SHARES, (call.batch, 1)),
        "lateral": lambda call: np.full((call.batch, 1), 0.02),
    }
    return triton


def write_page(prediction, path) -> str:
    write_report_page(
        path,
        title="t",
        data_note="n",
        predictions={prediction.kind: prediction},
        searches={},
        explanation=None,
        truth=(),
    )
    return path.read_text()


def test_a_study_says_how_much_of_the_attention_its_image_has(client, tmp_path):
    prediction = client.predict(b"image", "Clear.")
    assert [finding.image_share for finding in prediction.findings] == pytest.approx(SHARES.tolist())
    told = json.loads(json.dumps(prediction.to_dict()))["findings"]
    assert told[-1]["image_share"] == 1
    page = write_page(prediction, tmp_path / "page.html")
    assert page.count("of this finding&#x27;s attention.") + page.count("of this finding's attention.") == 22
    assert f"The image has {SHARES[3]:.0%} of this finding" in page


def test_an_image_or_a_report_alone_says_nothing(client, tmp_path):
    for prediction in (client.predict(b"image"), client.predict(report="Clear.")):
        assert {finding.image_share for finding in prediction.findings} == {None}
        assert "finding's attention" not in write_page(prediction, tmp_path / "page.html")


def test_a_batch_of_tensors_has_a_share_for_each_label(client):
    pixels, ids = np.zeros((3, 1, 56, 56), np.uint8), np.ones((3, 32), np.int64)
    np.testing.assert_array_equal(
        client.predict_tensors(pixels, ids, ids).image_share, np.tile(SHARES, (3, 1))
    )
    assert client.predict_tensors(pixels).image_share is None
    assert client.predict_tensors(None, ids, ids).image_share is None


@pytest.mark.parametrize("model", [BEFORE, OLDEST], ids=["before", "oldest"])
def test_a_repository_of_an_older_version_is_not_asked_for_it(client, triton, model):
    triton.model = model
    prediction = client.predict(b"image", "Clear.")
    assert {finding.image_share for finding in prediction.findings} == {None}
    assert (prediction.lateral is None) == (model is OLDEST)
    assert len(triton.calls) == 1
    assert "image_share" not in triton.calls[0].outputs


@pytest.mark.parametrize("model", [BEFORE, OLDEST], ids=["before", "oldest"])
def test_a_server_that_goes_back_is_asked_for_what_it_has(client, triton, model):
    assert client.predict(b"image", "Clear.").findings[5].image_share is not None
    triton.model = model
    prediction = client.predict(b"image", "Clear.")
    assert prediction.findings[5].image_share is None
    assert (prediction.lateral is None) == (model is OLDEST)  # what it has is not lost
    assert len(triton.calls) == 3  # once in vain


def test_an_error_about_something_else_is_not_asked_again(client, triton):
    def refuse(call) -> None:
        if call.images == [b"bad"]:
            raise InputError("preprocess_study: no image in 'image_share'")

    triton.refuse = refuse
    with pytest.raises(InputError, match="no image"):
        client.predict(b"bad", "Clear.")
    assert len(triton.calls) == 1


@pytest.mark.parametrize("tells_share", [True, False])
def test_a_server_says_by_its_outputs_whether_it_tells_the_share(tells_share):
    names = [
        spec.name for spec in MODELS["predict_study"].outputs if tells_share or spec.name != "image_share"
    ]
    model = parse_model("predict_study", make_config("predict_study", outputs=names), source="here")
    assert model.tells_share is tells_share
    assert model.tells_view is True
    alone = parse_model("predict_image", make_config("predict_image"), source="here")
    assert (alone.tells_share, alone.tells_view) == (None, True)
    assert len(LABEL_KEYS) == len(SHARES)
