"""The client reads large images: the pixels in the request, the notes in the result, and files that are sent whole."""

import fake_triton
import numpy as np
import pytest

from client import CxrClient, ServedModel
from contract.image.png import encode_png
from contract.image.read import load_pixels
from contract.notes import ImageNotes
from contract.shrink import IMAGE_READING

SIZE = 32
LARGE = encode_png(np.random.default_rng(1).integers(0, 200, (200, 150), np.uint8))
SMALL = encode_png(np.full((40, 40), 90, np.uint8))
SERVED_NOTES = ImageNotes(warnings=("What the server says of the picture that it got.",))


def make_model(size: int = SIZE, reading: int | None = IMAGE_READING) -> ServedModel:
    return fake_triton.make_model(image_size=size, image_reading=reading)


@pytest.fixture
def ask(triton):
    """A function that predicts an image: with the first model before the request, with the last one during it."""

    def ask(image: bytes, *models: ServedModel, **settings: object):
        triton.models = {str(number): model for number, model in enumerate(models, start=1)}
        triton.outputs["image_notes"] = [[SERVED_NOTES.to_json()]]
        with CxrClient(**settings) as client:
            client.info()
            triton.version = str(len(models))
            prediction = client.predict(image)
        return prediction, [call.images[0] for call in triton.calls]

    return ask


def test_a_large_image_travels_as_the_pixels_of_the_model(ask):
    prediction, (sent,) = ask(LARGE, make_model())
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
def test_a_file_that_cannot_be_read_alike_travels_whole(ask, image, model, settings):
    prediction, files = ask(image, model, **settings)
    assert files == [image]
    assert prediction.image_notes == SERVED_NOTES


@pytest.mark.parametrize("newer", [make_model(2 * SIZE), make_model(reading=IMAGE_READING + 1)])
def test_after_a_switch_to_a_model_that_reads_otherwise_the_file_is_sent(ask, newer):
    prediction, files = ask(LARGE, make_model(), newer)
    assert len(files) == 2
    assert files[1] == LARGE
    assert prediction.image_notes == SERVED_NOTES


def test_without_packages_that_read_images_files_travel_whole(ask, monkeypatch):
    def raise_missing(*_: object, **__: object) -> None:
        from contract.image.header import make_missing_error

        raise make_missing_error()

    monkeypatch.setattr("contract.shrink.read_radiograph", raise_missing)
    _, files = ask(LARGE, make_model())
    assert files == [LARGE]
