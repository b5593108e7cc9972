"""Several images of one study: the request, the result for each image, refused images, and older servers."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fake_triton import make_config, make_model
from typer.testing import CliRunner

from cli.app import app
from client import CaseInput, ServedModel
from client.page import write_report_page
from client.served import parse_model
from contract.errors import ArtifactError, ConfigError, ImageError
from contract.image.png import encode_png
from contract.labels import LABELS
from contract.notes import ImageNotes, ReportNotes
from contract.shrink import IMAGE_READING, shrink_image
from contract.tensors import MAX_VIEWS, MODELS

N = 4
TRAINED = make_model(image_size=32, grid=2, tells_view=True, most_views=MAX_VIEWS, trained_views=2)
OLD = replace(TRAINED, most_views=1, trained_views=1)
NOTES = (
    ImageNotes("PA", warnings=("It is odd.",)),
    ImageNotes("LATERAL"),
    ImageNotes("UNKNOWN"),
    ImageNotes("AP"),
)
UNTRAINED = (
    "This model was trained on one image of a study at a time, never on 2 together: how good such answers are was not "
    "measured."
)


def attend(call) -> np.ndarray:
    """Return attention that is 0 on the first image, 1 on the second, and so on."""
    attention = np.repeat(np.arange(len(call.images)), N)
    return np.broadcast_to(attention, (1, len(LABELS), len(attention)))


@pytest.fixture
def triton(triton):
    """A Triton that takes every image but the first one for a lateral view, and gets requests for all outputs."""

    def require_all_outputs(call) -> None:
        assert set(call.outputs) == {spec.name for spec in MODELS[call.model].outputs}

    triton.model = TRAINED
    triton.refuse = require_all_outputs
    triton.outputs = {
        "image_attention": attend,
        "image_notes": lambda call: [[notes.to_json() for notes in NOTES[: len(call.images)]]],
        "lateral": lambda call: [[0.02, 0.98, 0.97, 0.99][: len(call.images)]],
        "report_notes": [[ReportNotes(3, warnings=("Cut.",)).to_json()]],
    }
    return triton


def list_sent(triton) -> list[list[bytes]]:
    """Return the images of each request."""
    return [call.images for call in triton.calls]


def test_the_images_of_a_study_travel_together_and_come_back_apart(client, triton):
    for images in ([b"one", b"two"], (b"one", b"two")):
        prediction = client.predict(images, "Clear.")
        assert list_sent(triton)[-1] == [b"one", b"two"]
    first, second = prediction.images
    assert (first.notes, second.notes) == NOTES[:2]
    assert (first.lateral, second.lateral) == pytest.approx((0.02, 0.98))
    assert (prediction.image_notes, prediction.lateral) == (first.notes, first.lateral)
    assert first.attention.shape == second.attention.shape == (22, N)
    assert (first.attention == 0).all()
    assert (second.attention == 1).all()
    np.testing.assert_array_equal(
        prediction.image_attention, np.concatenate([first.attention, second.attention], axis=1)
    )


def test_warnings_name_the_image_that_each_is_of(client):
    prediction = client.predict([b"a", b"b", b"c", b"d"], "Clear.")
    assert prediction.input_warnings == (
        "Image 1: It is odd.",
        "Image 4: The model sees a lateral radiograph (0.99) where the header says AP: one of the two is wrong.",
        "Cut.",
    )  # of the second and the third nothing: another view is what they are there for
    assert "never on 4 together" in prediction.warnings[0]
    assert client.predict([b"a", b"b"]).warnings == ("Image 1: It is odd.",)


def test_one_image_is_told_of_as_before(client, triton):
    alone, listed = client.predict(b"one"), client.predict([b"one"])
    for prediction in (alone, listed):
        assert prediction.warnings == ("It is odd.",)
        assert prediction.further_images == ()
        [image] = prediction.images
        np.testing.assert_array_equal(image.attention, prediction.image_attention)
    assert list_sent(triton) == [[b"one"]] * 2
    assert client.predict(report="Clear.").images == ()


def test_a_model_that_has_never_seen_two_images_together_says_so(client, triton):
    triton.model = replace(TRAINED, trained_views=1)
    assert client.predict([b"a", b"b"]).warnings[0] == UNTRAINED
    assert client.predict(b"a").warnings == ("It is odd.",)


def test_json_tells_of_every_image(client):
    told = json.loads(json.dumps(client.predict([b"a", b"b"], "Clear.").to_dict()))
    assert [image["notes"]["view"] for image in told["images"]] == ["PA", "LATERAL"]
    assert [image["lateral"] for image in told["images"]] == [0.02, 0.98]
    assert told["image_notes"] == told["images"][0]["notes"]


BAD = {
    "none": ([], "0 images were given: give 1 to 4 images of one study."),
    "too many": ([b"a", b"b", b"c", b"d", b"e"], "5 images were given: give 1 to 4 images of one study."),
    "no image": ([b"a", 7], "Image 2 of 2: image is of type int: give the path of a file"),
    "a list in a list": ([[b"a"], b"b"], "Image 1 of 2: image is of type list"),
    "nothing": ([b"a", None], "Image 2 of 2: image is of type NoneType"),
    "one that is not there": (["gone.dcm", b"b"], "Image 1 of 2: Cannot read the image file 'gone.dcm'"),
    "one twice": ([b"a", b"b", b"a"], "Images 1 and 3 are the same"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_study_is_refused_before_anything_is_sent(client, triton, name):
    images, words = BAD[name]
    with pytest.raises(ImageError, match=words):
        client.predict(images, "Clear.")
    assert list_sent(triton) == []


def test_many_cases_may_have_several_images_each(client):
    cases = [CaseInput("1", "1", [b"a", b"b"]), CaseInput("2", "2", b"c"), CaseInput("3", "3", [])]
    two, one, refused = (outcome for _, outcome in client.predict_many(cases))
    assert (len(two.images), len(one.images)) == (2, 1)
    assert isinstance(refused, ImageError)


def test_a_repository_of_an_older_version_is_not_asked_about_several_images(client, triton):
    triton.model = OLD
    with pytest.raises(
        ArtifactError,
        match=r"^Triton at host:1 serves a model that reads one image of a study, not 2: an older",
    ):
        client.predict([b"a", b"b"])
    assert list_sent(triton) == []
    assert client.predict(b"a").image_notes == NOTES[0]
    triton.model = TRAINED  # published again meanwhile
    assert len(client.predict([b"a", b"b"]).images) == 2


def test_a_server_that_goes_back_to_an_older_version_refuses_in_the_same_words(client, triton):
    client.predict([b"a", b"b"])
    triton.model = OLD
    with pytest.raises(ArtifactError, match="Publish the bundle again"):
        client.predict([b"a", b"b"])


def test_an_older_repository_reads_one_image_by_what_it_says():
    def parse(**more: str) -> ServedModel:
        return parse_model("predict_image", make_config("predict_image", **more), source="Triton")

    assert (parse().most_views, parse().trained_views) == (1, 1)
    found = parse(most_views="4", trained_views="2")
    assert (found.most_views, found.trained_views) == (4, 2)


def test_each_large_image_is_read_here_and_its_notes_come_back_to_it(client, triton):
    triton.model = replace(TRAINED, image_reading=IMAGE_READING)
    draw = np.random.default_rng(0)
    large = [encode_png(draw.integers(0, 200, (200, 150), np.uint8)) for _ in range(2)]
    prediction = client.predict([b"small", *large])
    sent = list_sent(triton)[-1]
    assert sent[0] == b"small"
    assert [len(data) < 2 * 32 * 32 for data in sent[1:]] == [True, True]
    assert prediction.image_notes == NOTES[0]
    noisy = shrink_image(large[0], size=32)[1]
    assert [image.notes for image in prediction.further_images] == [noisy] * 2
    first = client.predict([large[0], b"small"])
    assert [image.notes for image in first.images] == [noisy, NOTES[1]]


def test_the_page_shows_the_view_of_every_image(client, tmp_path):
    prediction = client.predict([b"a", b"b"], "Clear.")
    page = tmp_path / "page.html"
    write_report_page(
        page,
        title="Study",
        data_note="Nobody's.",
        predictions={"study": prediction, "image": client.predict(b"a")},
        searches={},
        explanation=None,
        truth=(),
    )
    text = page.read_text()
    assert "<dt>View, image 1</dt><dd>PA; lateral with probability 0.02 by the model" in text
    assert "<dt>View, image 2</dt><dd>LATERAL; lateral with probability 0.98 by the model" in text
    assert "Image 1: It is odd." in text


@pytest.fixture
def files(triton, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())


def test_the_command_reads_further_views(files):
    arguments = ["predict", "a.png", "--view", "b.png"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "Image 1: view PA, lateral with probability 0.02 by the model" in shown.output
    assert "Image 2: view LATERAL, lateral with probability 0.98 by the model" in shown.output
    told = json.loads(CliRunner().invoke(app, [*arguments, "--report", "Clear.", "--json"]).stdout)
    assert told["kind"] == "study"
    assert len(told["images"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--view", "b.png"], "Give an image"),
        (["--view", "b.png", "--report", "Clear."], "--view adds an image to the first one"),
        (["a.png", "b.png", "--view", "a.png"], "work with one case"),
        (["a.png", "--view", "b.png", "--out", "r.csv"], "work with one case"),
        (["a.png", "--view", "a.png"], "Images 1 and 2 are the same"),
        (["a.png", "--view", "gone.png"], "gone.png"),
    ],
)
def test_views_that_cannot_be_read_together_are_one_sentence(files, arguments, words):
    result = CliRunner().invoke(app, ["predict", *arguments])
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_an_explanation_is_of_one_image():
    explain = pytest.importorskip("client.explain").explain
    with pytest.raises(ConfigError, match="An explanation needs one image, but 2 were given"):
        explain(None, image=[b"a", b"b"])
