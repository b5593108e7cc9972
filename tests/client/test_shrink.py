"""Large images are read by the client: what travels, what comes back, and when the file itself is sent."""

import numpy as np
import pytest

import client.client as module
from client import CxrClient
from client.served import ServedModel
from client.triton import Answer
from contract.decisions import Decisions, ServedLabel
from contract.image.png import encode_png
from contract.image.read import load_pixels
from contract.labels import LABELS
from contract.notes import ImageNotes
from contract.shrink import IMAGE_READING
from contract.tensors import EMBEDDING, IMAGE_ATTENTION, IMAGE_BYTES, IMAGE_NOTES, PROBABILITIES

SIZE = 32
LARGE = encode_png(np.random.default_rng(1).integers(0, 200, (200, 150), np.uint8))
SMALL = encode_png(np.full((40, 40), 90, np.uint8))
SERVED_NOTES = ImageNotes(warnings=("What the server says of the picture that it got.",))


class FakeTriton:
    """Answers anything; keeps the files that it was sent. `models` are served one after the other."""

    def __init__(self, models: list[ServedModel]) -> None:
        self.models, self.files = models, []

    def __call__(self, _url: str, _settings: object) -> "FakeTriton":
        return self

    def read_model(self, _timeout_s, _model="predict_image", version="1") -> ServedModel:
        return self.models[int(version or 1) - 1]

    def infer(self, _model, inputs, _outputs, _timeout_s, *, calls=None) -> Answer:
        self.files.append(bytes(inputs[IMAGE_BYTES.name][0, 0]))
        arrays = {
            PROBABILITIES.name: np.zeros((1, len(LABELS)), np.float32),
            EMBEDDING.name: np.ones((1, 4), np.float32),
            IMAGE_ATTENTION.name: np.zeros((1, len(LABELS), 4), np.float32),
            IMAGE_NOTES.name: np.array([[SERVED_NOTES.to_json()]], dtype=np.object_),
        }
        return Answer(arrays, str(len(self.models)))  # the newest answers

    def close(self) -> None:
        pass


def make_model(size: int = SIZE, reading: int | None = IMAGE_READING) -> ServedModel:
    labels = tuple(ServedLabel(label.key, label.name, 0.5) for label in LABELS)
    return ServedModel("ab" * 32, "findings", 16, size, 4, 2, Decisions.repeat(labels), image_reading=reading)


def ask(monkeypatch, image: bytes, *models: ServedModel, **settings: object):
    triton = FakeTriton(list(models))
    monkeypatch.setattr(module, "TritonTransport", triton)
    with CxrClient(**settings) as client:
        return client.predict(image), triton.files


def test_a_large_image_travels_as_the_pixels_of_the_model(monkeypatch):
    prediction, (sent,) = ask(monkeypatch, LARGE, make_model())
    assert len(sent) < 2 * SIZE * SIZE < len(LARGE) / 10
    np.testing.assert_array_equal(load_pixels(sent, size=SIZE), load_pixels(LARGE, size=SIZE))
    assert prediction.image_notes != SERVED_NOTES  # the file's own


@pytest.mark.parametrize(
    ("image", "model", "settings"),
    [
        (SMALL, make_model(), {}),
        (b"no image" * 1000, make_model(), {}),  # the server says what is wrong with it
        (LARGE, make_model(reading=None), {}),  # published before there were numbers
        (LARGE, make_model(reading=IMAGE_READING + 1), {}),
        (LARGE, make_model(), {"shrink": False}),
    ],
    ids=["small", "no image", "older server", "newer server", "not wanted"],
)
def test_a_file_that_cannot_be_read_alike_travels_whole(monkeypatch, image, model, settings):
    prediction, files = ask(monkeypatch, image, model, **settings)
    assert files == [image]
    assert prediction.image_notes == SERVED_NOTES


@pytest.mark.parametrize("newer", [make_model(2 * SIZE), make_model(reading=IMAGE_READING + 1)])
def test_after_a_switch_to_a_model_that_reads_otherwise_the_file_is_sent(monkeypatch, newer):
    prediction, files = ask(monkeypatch, LARGE, make_model(), newer)
    assert len(files) == 2
    assert files[1] == LARGE
    assert prediction.image_notes == SERVED_NOTES


def test_without_packages_that_read_images_files_travel_whole(monkeypatch):
    def raise_missing(*_: object, **__: object) -> None:
        from contract.image.header import make_missing_error

        raise make_missing_error()

    monkeypatch.setattr("contract.shrink.read_radiograph", raise_missing)
    _, files = ask(monkeypatch, LARGE, make_model())
    assert files == [LARGE]
